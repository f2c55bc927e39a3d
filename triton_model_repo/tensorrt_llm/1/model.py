"""Made by `trtllm-pt repo`."""

from trtllm_pt.serving.triton.models.engine import TritonPythonModel

__all__ = ["TritonPythonModel"]
