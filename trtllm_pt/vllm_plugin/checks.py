"""What is checked when vLLM starts: the model, and vLLM's options, before any rank starts or any weight is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from trtllm_pt.checkpoint.source import ModelDir
from trtllm_pt.checkpoint.tokenizer_files import check_tokenizer
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import TRACKED, ModelConfig
from trtllm_pt.model.layout import rank_layout

if TYPE_CHECKING:
    from vllm.config import VllmConfig

# Options of vLLM's ParallelConfig that divide a model in ways that our network does not, and their only value.
_UNDIVIDED = {
    "pipeline_parallel_size": 1,
    "prefill_context_parallel_size": 1,
    "decode_context_parallel_size": 1,
    "enable_expert_parallel": False,
    "enable_eplb": False,
    "enable_dbo": False,
}
# The others read hidden states of layers that only some of vLLM's own models give out.
_SPECULATION = ("ngram", "ngram_gpu", "suffix", "draft_model")
_FILES = ("auto", "hf", "safetensors")  # load formats that read the model's own files
_EXPERTS_MULTIPLE = 32  # vLLM's kernel for experts on processors has no other widths


class Checks(VerifyAndUpdateConfig):
    """The hook that vLLM calls for our architecture."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Raise UsageError, in one line, for a model or an option that we cannot serve."""
        model: ModelConfig = vllm_config.model_config.hf_config.model
        ranks = vllm_config.parallel_config.tensor_parallel_size
        try:
            rank_layout(model, ranks)
        except UsageError as error:
            raise UsageError(f"tensor_parallel_size ({ranks}) does not fit the model: {error}") from None
        for problem in _problems(vllm_config, model):
            raise UsageError(problem)
        folder = Path(vllm_config.model_config.model)
        if not folder.is_dir():
            return  # a name on a hub, whose files vLLM downloads later
        if vllm_config.load_config.load_format in _FILES and vllm_config.model_config.quantization is None:
            ModelDir(folder)
        if not vllm_config.model_config.skip_tokenizer_init:
            check_tokenizer(folder, model.vocab_size)


def _problems(vllm_config: VllmConfig, model: ModelConfig) -> Iterator[str]:
    for name, only in _UNDIVIDED.items():
        value = getattr(vllm_config.parallel_config, name)
        if value != only:
            yield f"{name} ({value}) must be {only}: a rank holds whole tracks, or its part of every layer"
    if vllm_config.lora_config is not None:
        yield "enable_lora (True) must be False: LoRA adapters are not supported with this model"
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.method not in _SPECULATION:
        yield f"speculative_config method ({speculative.method!r}) must be one of {', '.join(_SPECULATION)}"
    longest = vllm_config.model_config.max_model_len
    if longest > model.max_position_embeddings:
        yield f"max_model_len ({longest}) must not exceed max_position_embeddings ({model.max_position_embeddings})"
    yield from _quantization_problems(vllm_config, model)
    if vllm_config.device_config.device_type == "cpu":
        yield from _cpu_problems(model)


def _quantization_problems(vllm_config: VllmConfig, model: ModelConfig) -> Iterator[str]:
    method = vllm_config.model_config.quantization
    if method is None:
        return
    if model.has_moe:
        yield f"quantization ({method!r}) does not apply to models with experts: ffn_pattern has 'moe'"
    ranks = vllm_config.parallel_config.tensor_parallel_size
    stored = hasattr(vllm_config.model_config.hf_config, "quantization_config")
    if not stored and vllm_config.device_config.device_type == "cpu":
        yield f"quantization ({method!r}) needs a model that is stored quantised: on a CPU, vLLM cannot quantise one"
    if stored and ranks > 1 and model.schedule not in TRACKED:
        yield (
            f"quantization ({method!r}): the matrices of a model that is stored quantised are not divided, so "
            f"tensor_parallel_size ({ranks}) must be 1 for schedule {model.schedule!r}"
        )


def _cpu_problems(model: ModelConfig) -> Iterator[str]:
    """Yield what vLLM's kernels for processors cannot compute. vLLM itself would notice at the first request."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if model.head_size not in sizes:
        yield f"head_size ({model.head_size}) must be one of {', '.join(map(str, sizes))} for vLLM on a CPU"
    if model.has_moe and model.hidden_size % _EXPERTS_MULTIPLE:
        yield (
            f"hidden_size ({model.hidden_size}) must be a multiple of {_EXPERTS_MULTIPLE} for experts in vLLM on a CPU"
        )
