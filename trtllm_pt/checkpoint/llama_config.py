"""Read the config.json of a model of the Llama family, as versions 4 and 5 of transformers write it.

A key that is left out has the default of its family. What a file says in two places, under an old name and a new one,
has to be the same in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.rope import yarn_magnitude


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One architecture of transformers, and its defaults of the keys that are read here."""

    architecture: str
    defaults: Mapping[str, Any]


_COMMON = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_QWEN = _COMMON | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "layer_types": None,
}
_LLAMA = {"vocab_size": 32000, "intermediate_size": 11008, "num_key_value_heads": None, "max_position_embeddings": 2048}
_MISTRAL = {"vocab_size": 32000, "intermediate_size": 14336, "num_key_value_heads": 8, "sliding_window": 4096}
FAMILIES = {  # by model_type
    "llama": Family(
        architecture="LlamaForCausalLM",
        defaults=_COMMON | _LLAMA | {"attention_bias": False, "mlp_bias": False},
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        defaults=_COMMON | _MISTRAL | {"max_position_embeddings": 131072},
    ),
    "qwen2": Family(architecture="Qwen2ForCausalLM", defaults=_QWEN),
    "qwen3": Family(architecture="Qwen3ForCausalLM", defaults=_QWEN | {"head_dim": 128, "attention_bias": False}),
}
# Keys that may be null although their default is a value: null means something else than the default.
_NULLABLE = ("num_key_value_heads", "sliding_window")
_ROPE_THETA = 10000.0
# The keys of RoPE that may also stand beside `rope_parameters` and `rope_scaling`, and not only in them.
_OUTSIDE = ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings")


def llama_to_model_config(hf: dict[str, Any]) -> ModelConfig:
    """Convert a config.json. Raises UsageError for a contradiction, or a value that is not supported."""
    model_type = _model_type(hf)
    _refuse(hf)
    c = _with_defaults(hf, FAMILIES[model_type].defaults)
    theta, scaling = _rope(hf, c["max_position_embeddings"])
    pattern, window = _attention(c)
    biases = c.get("attention_bias", False)
    return ModelConfig(
        num_layers=c["num_hidden_layers"],
        hidden_size=c["hidden_size"],
        num_heads=c["num_attention_heads"],
        num_kv_heads=_or(c["num_key_value_heads"], c["num_attention_heads"]),
        head_size=_or(c["head_dim"], c["hidden_size"] // c["num_attention_heads"]),
        intermediate_size=c["intermediate_size"],
        vocab_size=c["vocab_size"],
        max_position_embeddings=c["max_position_embeddings"],
        attention_pattern=pattern,
        window=window,
        rope_theta=theta,
        rope_scaling=scaling,
        qk_norm=model_type == "qwen3",
        norm_eps=c["rms_norm_eps"],
        qkv_bias=biases or model_type == "qwen2",
        output_bias=biases,
        tie_embeddings=c["tie_word_embeddings"],
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _model_type(hf: dict[str, Any]) -> str:
    """Return the family's model_type, which a file may also say by its architecture."""
    architecture, named = (hf.get("architectures") or [None])[0], hf.get("model_type")
    by_architecture = {family.architecture: model_type for model_type, family in FAMILIES.items()}
    known = ", ".join(by_architecture)
    if architecture is not None and architecture not in by_architecture:
        raise UsageError(f"architecture {architecture!r} is not supported; supported: {known}")
    if architecture is None and named not in FAMILIES:
        raise UsageError(f"there is no architecture, and model_type {named!r} is not supported; supported: {known}")
    found = named if architecture is None else by_architecture[architecture]
    if named not in (None, found):
        raise UsageError(f"architectures ({architecture!r}) and model_type ({named!r}) contradict each other")
    return str(found)


def _refuse(hf: dict[str, Any]) -> None:
    """Raise UsageError for what no field of ModelConfig describes."""
    if hf.get("hidden_act", "silu") != "silu":
        raise UsageError(f"hidden_act ({hf['hidden_act']!r}) must be 'silu'")
    if hf.get("mlp_bias"):
        raise UsageError("mlp_bias (true) is not supported")
    if hf.get("per_layer_config"):
        raise UsageError("per_layer_config is not supported: all layers have the same sizes")
    if hf.get("is_causal") is False:
        raise UsageError("is_causal (false) must be true")
    _agreed({key: hf.get(key) for key in ("dtype", "torch_dtype")})


def _with_defaults(hf: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: hf.get(key, default) for key, default in defaults.items()}
    for key, value in found.items():
        if isinstance(defaults[key], bool) and value is not None and not isinstance(value, bool):
            raise UsageError(f"{key} ({value!r}) must be true or false")
        if value is None and defaults[key] is not None and key not in _NULLABLE:
            raise UsageError(f"{key} (null) must have a value, or be left out, which stands for {defaults[key]!r}")
    return found


def _agreed(places: Mapping[str, Any]) -> Any:
    """Return the value that all places have that have one, or None. Raises UsageError, naming two that differ."""
    given = [(place, value) for place, value in places.items() if value is not None]
    for place, value in given[1:]:
        if value != given[0][1]:
            raise UsageError(f"{given[0][0]} ({given[0][1]!r}) and {place} ({value!r}) contradict each other; keep one")
    return given[0][1] if given else None


def _rope(hf: dict[str, Any], positions: int) -> tuple[float, dict[str, Any] | None]:
    """Return rope_theta and rope_scaling. transformers 4 has `rope_scaling`, and some keys beside it; 5 has
    `rope_parameters` with all of them."""
    stated = {name: _typed(name, hf[name]) for name in ("rope_parameters", "rope_scaling") if hf.get(name)}
    named = {key for keys in stated.values() for key in keys} - set(_OUTSIDE)
    for key in sorted(named, key=lambda key: (key != "rope_type", key)):
        _agreed({f"{name} {key}": keys.get(key, "nothing") for name, keys in stated.items()})
    outside = {
        key: _agreed({key: hf.get(key)} | {f"{name} {key}": keys.get(key) for name, keys in stated.items()})
        for key in _OUTSIDE
    }
    found = {key: value for keys in stated.values() for key, value in keys.items() if key not in _OUTSIDE}
    if (rotated := _or(outside["partial_rotary_factor"], 1.0)) != 1:
        raise UsageError(f"partial_rotary_factor ({rotated}) must be 1")
    scaling = _scaling(found, positions, outside["original_max_position_embeddings"])
    return float(_or(outside["rope_theta"], _ROPE_THETA)), scaling


def _typed(name: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Return the keys without those that are null, and with `rope_type`, which was called `type` before."""
    kind = _agreed({f"{name} {key}": keys.get(key) for key in ("rope_type", "type")})
    rest = {key: value for key, value in keys.items() if key not in ("rope_type", "type")}
    if "truncate" in rest and rest["truncate"] is None:  # transformers takes null for false here
        rest["truncate"] = False
    return {key: value for key, value in rest.items() if value is not None} | {"rope_type": _or(kind, "default")}


def _scaling(found: dict[str, Any], positions: int, original: int | None) -> dict[str, Any] | None:
    """Return rope_scaling as ModelConfig has it, or None for unscaled positions."""
    kind = found.get("rope_type", "default")
    if kind == "default":
        if rest := sorted(set(found) - {"rope_type"}):
            raise UsageError(f"RoPE parameters {rest} need a rope_type; rope_type is 'default'")
        return None
    if kind in ("llama3", "yarn"):
        found = found | {"original_max_position_embeddings": _or(original, positions)}
    elif original not in (None, positions):
        raise UsageError(
            f"original_max_position_embeddings ({original}) must be max_position_embeddings ({positions}), or be left "
            f"out, for RoPE scaling of type {kind!r}"
        )
    return _yarn(found, positions) if kind == "yarn" else found


def _yarn(found: dict[str, Any], positions: int) -> dict[str, Any]:
    """Return YaRN's keys, with one attention factor in place of two weights of it."""
    rest = {key: value for key, value in found.items() if not key.startswith(("mscale", "beta_"))}
    rest |= {key: found[key] for key in ("beta_fast", "beta_slow") if found.get(key)}  # 0 stands for the default
    if "factor" not in rest:
        rest["factor"] = positions / rest["original_max_position_embeddings"]
    weights = [found.get(key) for key in ("mscale", "mscale_all_dim")]
    if "attention_factor" not in rest and all(weights):
        above, below = (yarn_magnitude(rest["factor"], weight) for weight in weights if weight is not None)
        rest["attention_factor"] = above / below
    return rest


def _attention(c: dict[str, Any]) -> tuple[tuple[str, ...], int | None]:
    """Return attention_pattern and window. Like ours, transformers' window includes the current token."""
    if "sliding_window" not in c:
        return ("global",), None
    if "layer_types" not in c:  # all layers have the window
        return (("global",), None) if c["sliding_window"] is None else (("sliding",), c["sliding_window"])
    window = c["sliding_window"] if c["use_sliding_window"] else None
    layers, first = c["num_hidden_layers"], c["max_window_layers"]
    slides = [window is not None and layer >= first for layer in range(layers)]
    types = _or(c["layer_types"], ["sliding_attention" if slide else "full_attention" for slide in slides])
    if set(types) - {"sliding_attention", "full_attention"} or len(types) != layers:
        raise UsageError(f"layer_types must be {layers} of 'sliding_attention' and 'full_attention', not {types}")
    if "sliding_attention" not in types:
        return ("global",), None
    if window is None:
        raise UsageError("layer_types has 'sliding_attention', which needs use_sliding_window and sliding_window")
    kinds = tuple("sliding" if kind == "sliding_attention" else "global" for kind in types)
    return kinds if len(set(kinds)) > 1 else kinds[:1], window
