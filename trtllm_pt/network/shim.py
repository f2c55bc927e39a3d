"""The file for `trtllm-build --model_cls_file`; its --model_cls_name is ParallelTrackForCausalLM.

TensorRT-LLM loads it under a name of its own. The class comes from a module that its worker processes can import.
"""

from trtllm_pt.network.tensorrt_llm import ParallelTrackForCausalLM as ParallelTrackForCausalLM
