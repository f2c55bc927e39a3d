"""Made by `trtllm-pt repo`."""

from trtllm_pt.serving.bls import TritonPythonModel

__all__ = ["TritonPythonModel"]
