"""The `config.json` of a checkpoint: the keys of TensorRT-LLM's PretrainedConfig, and the key `parallel_track` of ours.

Heads, KV heads and the FFN width are totals over the tracks, because TensorRT-LLM's runtime divides them by the ranks.
`hidden_size` is the width of one track, which is also the width of an all-reduce. TensorRT-LLM's keys follow from the
model config, the ranks, the dtype and the quantisation; a file whose keys contradict each other is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_pt.errors import UsageError
from trtllm_pt.model import quantization
from trtllm_pt.model import schedule as schedules
from trtllm_pt.model.config import ModelConfig, read_json, unknown_key
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.model.quantization import Quantization, StoredTensor
from trtllm_pt.model.schedule import Schedule, schedule_of
from trtllm_pt.model.tensors import TensorSpec

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
DTYPES = ("bfloat16", "float16", "float32")
_KEY, _EMBEDDING = "parallel_track", "embedding_quant_algo"
GPUS_PER_NODE = 8  # TensorRT-LLM's default
# The types of RoPE scaling for which TensorRT-LLM makes the right tables. For the others our network brings its own.
_SCALED_BY_TENSORRT_LLM = ("linear", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointManifest:
    """The model, division, dtype and quantisation of a checkpoint.

    Raises UsageError if the model cannot be divided over `ranks`, or for an unknown dtype or quantisation, or sizes
    that the quantisation does not support.
    """

    model: ModelConfig
    ranks: int
    dtype: str  # of all weights except routers, which are float32, and quantised matrices
    quant_algo: str | None = None  # of the layers' matrices: one of QUANT_ALGOS
    kv_cache_quant_algo: str | None = None  # of the KV cache: one of KV_CACHE_QUANT_ALGOS
    embedding_quant_algo: str | None = None  # of the embedding and the output head: W8A16
    gpus_per_node: int = GPUS_PER_NODE  # in a job on several machines; only TensorRT-LLM needs to know

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype ({self.dtype!r}) must be one of {', '.join(DTYPES)}")
        if type(self.gpus_per_node) is not int or self.gpus_per_node < 1:
            raise UsageError(f"gpus_per_node ({self.gpus_per_node!r}) must be a whole number, at least 1")
        rank_layout(self.model, self.ranks)
        quantization.check(self.model, self.ranks, self.quantization)

    @property
    def quantization(self) -> Quantization:
        """The fields *quant_algo in one value."""
        return Quantization(self.quant_algo, self.embedding_quant_algo, self.kv_cache_quant_algo)

    @property
    def quantized(self) -> str:
        """The quantisation in the form of messages: `W8A16`, `FP8 + FP8 KV cache`, or "" without any."""
        return str(self.quantization)

    def stored(self, spec: TensorSpec) -> tuple[StoredTensor, ...]:
        """Return the tensors that store a weight: the weight first, then its scales."""
        return quantization.stored(spec, self.dtype, self.quantization)

    @property
    def schedule(self) -> Schedule:
        """The model's sync schedule."""
        return schedule_of(self.model)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a PyTorch dtype."""
        import torch  # imported here, so that reading a manifest does not import it

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def missing_ranks(self, folder: Path) -> list[int]:
        """Return the ranks whose file is not in `folder`."""
        return [rank for rank in range(self.ranks) if not rank_file(folder, rank).exists()]

    def to_json(self) -> dict[str, Any]:
        """Return the contents of config.json."""
        c = self.model
        ffn = c.intermediate_size or c.moe_intermediate_size
        scaling = c.rope_scaling and c.rope_scaling["rope_type"]
        fields: dict[str, Any] = {
            "architecture": "ParallelTrackForCausalLM",
            "dtype": self.dtype,
            "logits_dtype": "float32",
            "vocab_size": c.vocab_size,
            "max_position_embeddings": c.max_position_embeddings,
            "hidden_size": c.hidden_size,
            "num_hidden_layers": c.num_layers,
            "num_attention_heads": c.tracks * c.num_heads,
            "num_key_value_heads": c.tracks * c.num_kv_heads,
            "head_size": c.head_size,
            "intermediate_size": c.tracks * ffn,
            "hidden_act": "swiglu" if c.has_moe else "silu",
            "norm_epsilon": c.norm_eps,
            "position_embedding_type": "rope_gpt_neox",
            "rotary_base": c.rope_theta,
            "rotary_scaling": c.rope_scaling if scaling in _SCALED_BY_TENSORRT_LLM else None,
            "qk_layernorm": c.qk_norm,
            "mapping": {
                "world_size": self.ranks,
                "tp_size": self.ranks,
                "pp_size": 1,
                "cp_size": 1,
                "gpus_per_node": self.gpus_per_node,
            },
            "quantization": {"quant_algo": self.quant_algo, "kv_cache_quant_algo": self.kv_cache_quant_algo},
            "use_parallel_embedding": False,
            "embedding_sharding_dim": 0,
        }
        if c.has_moe:  # normalization_mode 1: the weights of the chosen experts sum to 1
            fields["moe"] = {"num_experts": c.num_experts, "top_k": c.experts_per_token, "normalization_mode": 1}
        if c.window is not None:
            windows = [c.layer_window(layer) or c.max_position_embeddings for layer in range(c.num_layers)]
            fields["runtime_defaults"] = {"max_attention_window": windows}
        steps = schedules.to_json(self.schedule)
        own = {"format_version": FORMAT_VERSION, "model": c.to_json(), "schedule": steps}
        if self.embedding_quant_algo:  # TensorRT-LLM's `quantization` has no key for it
            own[_EMBEDDING] = self.embedding_quant_algo
        return fields | {_KEY: own}

    @classmethod
    def from_json(cls, data: dict[str, Any], strict: bool = True) -> CheckpointManifest:
        """Read a manifest from the contents of config.json.

        strict: False accepts additional keys, as in the pretrained_config of an engine, where TensorRT-LLM adds some.
        Raises UsageError for another format version, and if strict, for an unknown, missing or contradicting key.
        """
        manifest = cls._of_own_key(data)
        if strict:
            # The own key has been read; it may lack fields that are newer than the checkpoint.
            _compare(data, json.loads(json.dumps(manifest.to_json())) | {_KEY: data[_KEY]})
        return manifest

    @classmethod
    def _of_own_key(cls, data: dict[str, Any]) -> CheckpointManifest:
        own = data.get(_KEY)
        if not isinstance(own, dict):
            raise UsageError(f"not a checkpoint of trtllm-pt: the key {_KEY!r} is missing")
        version = own.get("format_version")
        if version != FORMAT_VERSION:
            raise UsageError(
                f"checkpoint format version {version!r}; this trtllm-pt reads {FORMAT_VERSION}: convert again"
            )
        if set(own) - {_EMBEDDING} != {"format_version", "model", "schedule"}:
            raise UsageError(f"{_KEY!r} has keys {sorted(own)}; it must have format_version, model, schedule")
        mapping, dtype = data.get("mapping"), data.get("dtype")
        if not isinstance(mapping, dict):
            raise UsageError(f"mapping ({mapping!r}) must be an object")
        ranks = mapping.get("world_size")
        if not isinstance(ranks, int):
            raise UsageError(f"mapping.world_size ({ranks!r}) must be a whole number")
        model = ModelConfig.from_json(own["model"])
        if not isinstance(own["schedule"], list) or schedules.from_json(own["schedule"]) != schedule_of(model):
            raise UsageError(f"the steps of 'schedule' are not those of the model's schedule {model.schedule!r}")
        algos = data.get("quantization")
        if not isinstance(algos, dict):
            raise UsageError(f"quantization ({algos!r}) must be an object")
        quant_algo, kv_cache_quant_algo = algos.get("quant_algo"), algos.get("kv_cache_quant_algo")
        return cls(
            model=model,
            ranks=ranks,
            dtype=str(dtype),
            quant_algo=quant_algo,
            kv_cache_quant_algo=kv_cache_quant_algo,
            embedding_quant_algo=own.get(_EMBEDDING),
            gpus_per_node=mapping.get("gpus_per_node", GPUS_PER_NODE),
        )

    @classmethod
    def from_dir(cls, folder: Path) -> CheckpointManifest:
        """Read the manifest of a checkpoint directory. Raises UsageError, naming the file, if it is not valid."""
        path = folder / "config.json"
        data = read_json(path)
        try:
            return cls.from_json(data)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None


def _compare(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in found:
        if key not in wanted:
            raise unknown_key(key, wanted, "the checkpoint's config")
    for key, value in wanted.items():
        if key not in found:
            raise UsageError(f"key {key!r} is missing")
        if found[key] != value:
            raise UsageError(f"{key} ({found[key]!r}) does not agree with {_KEY!r}, which gives {value!r}")


def rank_file(folder: Path, rank: int) -> Path:
    """Return the path of a rank's file in a checkpoint directory."""
    return folder / f"rank{rank}.safetensors"
