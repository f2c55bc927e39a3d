"""Configs and models."""

from __future__ import annotations

import copy
import json
from functools import cached_property, reduce
from operator import or_
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.backends.tensorrt_llm.standin.binding import bind, evaluate, implements
from tests.backends.tensorrt_llm.standin.catalogue import API
from tests.backends.tensorrt_llm.standin.functional import Tensor, gather_last_token_logits
from tests.backends.tensorrt_llm.standin.layers import Attention
from tests.backends.tensorrt_llm.standin.module import Module
from tests.backends.tensorrt_llm.standin.quantization import quantize
from tests.backends.tensorrt_llm.standin.world import state

HERE = "tensorrt_llm.models.modeling_utils"
MODEL_MAP: dict[str, type] = {}


@implements("tensorrt_llm.mapping")
class Mapping:
    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(MpiTopology)

    def __init__(
        self, world_size: int, rank: int, gpus_per_node: int, tp_size: int, pp_size: int, cp_size: int
    ) -> None:
        if tp_size * pp_size * cp_size != world_size:
            raise ValueError(f"world_size must equal tp_size * pp_size * cp_size, not {world_size}")
        self.world_size, self.rank, self.gpus_per_node = world_size, rank, gpus_per_node
        self.tp_size, self.pp_size, self.cp_size = tp_size, pp_size, cp_size
        self.moe_tp_size, self.moe_ep_size = tp_size, 1

    @classmethod
    def from_dict(cls, mapping: dict[str, Any]) -> Any:
        return cls(**mapping)

    def to_dict(self) -> dict[str, Any]:
        names = ("world_size", "rank", "gpus_per_node", "tp_size", "pp_size", "cp_size", "moe_tp_size", "moe_ep_size")
        return {name: getattr(self, name) for name in names}


@implements("tensorrt_llm.mapping")
class MpiTopology(Mapping):
    """What `Mapping(…)` gives."""

    @property
    def tp_rank(self) -> int:
        return self.rank % self.tp_size

    @property
    def tp_group(self) -> list[int]:
        return list(range(self.tp_size))


class RuntimeDefaults:
    """tensorrt_llm.bindings.executor's, a compiled class: no JSON can be made of it."""

    def __init__(self, max_attention_window: Any, sink_token_length: Any) -> None:
        self.max_attention_window, self.sink_token_length = max_attention_window, sink_token_length

    __init__ = bind(HERE, "RuntimeDefaults.__init__", API["runtime_defaults"], __init__)


@implements("tensorrt_llm._utils")
class QuantModeWrapper:
    """The modes of a model's layers: a question is answered by any of them."""

    def __init__(self, objs: list[Any]) -> None:
        self.objs = objs

    def __getattr__(self, name: str) -> Any:
        def ask(*args: Any) -> Any:
            return reduce(or_, (getattr(mode, name)(*args) for mode in self.objs), False)

        return ask

    def __getitem__(self, index: int) -> Any:
        return self.objs[index]


@implements(HERE)
class QuantConfig:
    def __init__(self, quant_algo: Any, kv_cache_quant_algo: Any, exclude_modules: Any) -> None:
        self.quant_algo, self.kv_cache_quant_algo, self.exclude_modules = (
            quant_algo,
            kv_cache_quant_algo,
            exclude_modules,
        )

    @cached_property
    def quant_mode(self) -> Any:
        mode = evaluate(HERE, "QuantMode").from_quant_algo(self.quant_algo, self.kv_cache_quant_algo)
        return QuantModeWrapper([mode])

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Any:
        return cls(**config)

    def to_dict(self) -> dict[str, Any]:
        return {"quant_algo": self.quant_algo, "kv_cache_quant_algo": self.kv_cache_quant_algo}


@implements(HERE)
class PretrainedConfig:
    def __init__(
        self,
        architecture: str,
        dtype: str,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        vocab_size: Any,
        hidden_act: Any,
        logits_dtype: Any,
        norm_epsilon: Any,
        position_embedding_type: Any,
        max_position_embeddings: Any,
        rotary_embedding_dim: Any,
        num_key_value_heads: Any,
        intermediate_size: Any,
        mapping: Any,
        quantization: Any,
        use_parallel_embedding: Any,
        embedding_sharding_dim: Any,
        head_size: Any,
        qk_layernorm: Any,
        runtime_defaults: Any,
        **kwargs: Any,
    ) -> None:
        self.architecture, self.dtype, self.logits_dtype = architecture, dtype, logits_dtype
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.num_key_value_heads = num_attention_heads, num_key_value_heads
        if num_key_value_heads is None:
            self.num_key_value_heads = num_attention_heads
        self.head_size = hidden_size // num_attention_heads if head_size is None else head_size
        self.intermediate_size = hidden_size * 4 if intermediate_size is None else intermediate_size
        self.hidden_act, self.norm_epsilon, self.qk_layernorm = hidden_act, norm_epsilon, qk_layernorm
        self.max_position_embeddings = max_position_embeddings
        if isinstance(position_embedding_type, str):
            position_embedding_type = evaluate(HERE, "PositionEmbeddingType").from_string(position_embedding_type)
        self.position_embedding_type = position_embedding_type
        self.rotary_embedding_dim = self.head_size if rotary_embedding_dim is None else rotary_embedding_dim
        self.mapping = Mapping.from_dict(mapping) if isinstance(mapping, dict) else mapping or Mapping()
        is_dict = isinstance(quantization, dict)
        self.quantization = QuantConfig.from_dict(quantization) if is_dict else quantization or QuantConfig()
        self.use_parallel_embedding, self.embedding_sharding_dim = use_parallel_embedding, embedding_sharding_dim
        self.runtime_defaults = self.create_runtime_defaults(runtime_defaults)
        for key, value in kwargs.items():
            setattr(self, key, value)

    @staticmethod
    def create_runtime_defaults(defaults: Any) -> Any:
        return RuntimeDefaults(**defaults) if isinstance(defaults, dict) else defaults

    @property
    def quant_mode(self) -> Any:
        return self.quantization.quant_mode

    @property
    def quant_algo(self) -> Any:
        return self.quantization.quant_algo

    def set_rank(self, rank: int) -> None:
        self.mapping.rank = rank

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> Any:
        return getattr(MODEL_MAP[config["architecture"]], "config_class", cls)(**config)

    @classmethod
    def from_json_file(cls, config_file: str) -> Any:
        return cls.from_dict(json.loads(Path(config_file).read_text()))

    @classmethod
    def from_checkpoint(cls, ckpt_dir: str) -> Any:
        return cls.from_json_file(str(Path(ckpt_dir) / "config.json"))

    def to_dict(self) -> dict[str, Any]:
        output = copy.deepcopy(self.__dict__)
        output["position_embedding_type"] = self.position_embedding_type.name
        output["mapping"], output["quantization"] = self.mapping.to_dict(), self.quantization.to_dict()
        del output["mapping"]["rank"]
        return output


class _PostInit(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        made.__post_init__()
        return made


@implements(HERE)
class PretrainedModel(Module, metaclass=_PostInit):
    def __init__(self, config: Any) -> None:
        Module.__init__(self)
        self.config = config

    def __post_init__(self) -> None:
        quantize(self, self.config.quantization)
        assert not self.config.use_parallel_embedding, "a table divided over ranks is not covered"

    @classmethod
    def from_checkpoint(cls, ckpt_dir: str, rank: int | None, config: Any, preprocess_weights_hook: Any) -> Any:
        config = PretrainedConfig.from_checkpoint(ckpt_dir) if config is None else config
        if rank is not None:
            config.set_rank(rank)
        weights = load_file(Path(ckpt_dir) / f"rank{config.mapping.rank}.safetensors")
        if preprocess_weights_hook is not None:
            weights = preprocess_weights_hook(weights)
        model = cls(config)
        model.load(preprocess_weights(weights, config))
        return model

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Every parameter without a value needs one; more are left alone."""
        wanted = {name: parameter for name, parameter in self.named_parameters() if not parameter.is_inited()}
        missing = set(wanted) - set(weights)
        if any(name.endswith("vocab_embedding.weight") for name in weights):
            missing = {name for name in missing if not name.endswith("lm_head.weight")}
        if missing:
            raise RuntimeError(f"Required but not provided tensors: {sorted(missing)}")
        for name, parameter in self.named_parameters():
            if name in weights:
                parameter.value = weights[name]


@implements(HERE)
def preprocess_weights(weights: dict[str, torch.Tensor], model_config: Any) -> dict[str, torch.Tensor]:
    """The KV cache's scale gets its reciprocal; a weight-only model's floating matrices would be quantised here."""
    made = dict(weights)
    for name, value in weights.items():
        if name.endswith(".kv_cache_scaling_factor"):
            made.setdefault(name.replace("kv_cache_scaling_factor", "kv_cache_rcp_scaling_factor"), 1 / value)
        if model_config.quant_algo in ("W8A16", "W4A16") and name.endswith(
            ("qkv.weight", "dense.weight", "fc.weight", "proj.weight", "gate.weight")
        ):
            assert value.dtype == torch.int8, f"{name} is not quantised"
    return made


@implements(HERE)
class DecoderModelForCausalLM(PretrainedModel):
    def __init__(self, config: Any, transformer: Any, lm_head: Any) -> None:
        PretrainedModel.__init__(self, config)
        self.transformer, self.lm_head = transformer, lm_head
        Attention.create_attention_const_params(self, config)
        self.position_embedding_type = config.position_embedding_type

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Any,
        use_cache: Any,
        last_token_ids: Any,
        attention_mask: Any,
        kv_cache_params: Any,
        attention_params: Any,
    ) -> Any:
        attention_params = Attention.fill_attention_params(self, attention_params)
        hidden_states = self.transformer.forward(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=use_cache,
            attention_mask=attention_mask,
            kv_cache_params=kv_cache_params,
            attention_params=attention_params,
        )
        if use_cache:
            hidden_states, _ = hidden_states
        packed = state().plugin_config.remove_input_padding
        last = gather_last_token_logits(hidden_states, last_token_ids, packed)
        logits = self.lm_head(last)
        logits.mark_output("logits", self.config.logits_dtype)
        return logits, last, hidden_states
