"""The network under construction: what `default_net()` gives."""

from __future__ import annotations

from typing import Any

from tests.backends.tensorrt_llm.standin.binding import implements
from tests.backends.tensorrt_llm.standin.trt import dtype_of
from tests.backends.tensorrt_llm.standin.world import state


@implements("tensorrt_llm.plugin.plugin")
class PluginConfig:
    """As TensorRT-LLM's builder leaves it, with its defaults, for a model of `dtype`."""

    def __init__(self, dtype: Any, use_paged_context_fmha: Any, use_fp8_context_fmha: Any) -> None:
        self.dtype = self.gpt_attention_plugin = self.nccl_plugin = dtype
        self.remove_input_padding = self.paged_kv_cache = self.context_fmha = True
        self.tokens_per_block = 32
        self.use_paged_context_fmha, self.use_fp8_context_fmha = use_paged_context_fmha, use_fp8_context_fmha


@implements("tensorrt_llm.network")
class Network:
    @property
    def plugin_config(self) -> Any:
        return state().plugin_config

    @property
    def strongly_typed(self) -> bool:
        return True


network = Network.__new__(Network)


@implements("tensorrt_llm._common")
def default_net() -> Network:
    return network


@implements("tensorrt_llm._utils")
def str_dtype_to_trt(dtype: str) -> Any:
    return dtype_of(dtype)


def plugin_config(dtype: str, quantises_cache: bool, has_fp8: bool) -> Any:
    """The builder's rules: FP8 context attention goes with FP8 weights and an FP8 cache, and with nothing else; an FP8
    cache alone has no paged context attention."""
    return PluginConfig(
        dtype=dtype,
        use_paged_context_fmha=has_fp8 or not quantises_cache,
        use_fp8_context_fmha=has_fp8 and quantises_cache,
    )
