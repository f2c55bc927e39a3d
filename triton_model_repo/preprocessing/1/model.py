"""Made by `trtllm-pt repo`."""

from trtllm_pt.serving.preprocessing import TritonPythonModel

__all__ = ["TritonPythonModel"]
