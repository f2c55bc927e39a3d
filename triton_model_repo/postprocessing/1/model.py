"""Made by `trtllm-pt repo`."""

from trtllm_pt.serving.triton.models.postprocessing import TritonPythonModel

__all__ = ["TritonPythonModel"]
