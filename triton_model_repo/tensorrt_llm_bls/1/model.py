"""Made by `trtllm-pt repo`."""

from trtllm_pt.serving.triton.models.bls import TritonPythonModel

__all__ = ["TritonPythonModel"]
