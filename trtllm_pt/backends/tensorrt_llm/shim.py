"""The file for `trtllm-build --model_cls_file`, with --model_cls_name ParallelTrackForCausalLM.

TensorRT-LLM loads this file under another module name. The class comes from a module that its worker processes can
import.
"""

from trtllm_pt.backends.tensorrt_llm.network import ParallelTrackForCausalLM as ParallelTrackForCausalLM
