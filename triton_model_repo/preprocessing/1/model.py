"""Made by `trtllm-pt repo`."""

from trtllm_pt.serving.triton.models.preprocessing import TritonPythonModel

__all__ = ["TritonPythonModel"]
