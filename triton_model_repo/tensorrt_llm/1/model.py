"""Made by `trtllm-pt repo`."""

from trtllm_pt.serving.embedded import TritonPythonModel

__all__ = ["TritonPythonModel"]
