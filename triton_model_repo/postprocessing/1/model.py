"""Made by `trtllm-pt repo`."""

from trtllm_pt.serving.postprocessing import TritonPythonModel

__all__ = ["TritonPythonModel"]
