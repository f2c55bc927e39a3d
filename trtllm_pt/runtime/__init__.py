"""Running engines: the protocol's two implementations, and LLM, the Python API over them."""

from trtllm_pt.messages import SamplingParams
from trtllm_pt.runtime.llm import LLM, RunResult

__all__ = ["LLM", "RunResult", "SamplingParams"]
