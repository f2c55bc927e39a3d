"""The file for `trtllm-build --model_cls_file`; its --model_cls_name is ParallelTrackForCausalLM.

TensorRT-LLM loads it under a name of its own. The class comes from a module that its worker processes can import.
"""

from trtllm_pt.backends.tensorrt_llm.network import ParallelTrackForCausalLM as ParallelTrackForCausalLM
