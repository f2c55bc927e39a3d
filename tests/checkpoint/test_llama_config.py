"""The config.json of the Llama family: what transformers makes of it, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import transformers

from trtllm_pt.checkpoint.llama_config import FAMILIES, llama_to_model_config
from trtllm_pt.errors import UsageError

CLASSES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
KEYS = [(model_type, key) for model_type, family in FAMILIES.items() for key in family.defaults]
# Values other than all defaults, where a whole config needs to fit together.
SMALL = {
    "hidden_size": 128,
    "num_attention_heads": 64,
    "num_key_value_heads": 16,
    "num_hidden_layers": 4,
    "head_dim": 16,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def read(model_type: str, **keys: Any) -> Any:
    return llama_to_model_config({"model_type": model_type} | keys)


@pytest.mark.parametrize(("model_type", "key"), KEYS)
def test_defaults_are_those_of_transformers(model_type: str, key: str) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(CLASSES[model_type])}
    assert FAMILIES[model_type].defaults[key] == fields.get(key)  # transformers also reads a key that is no field


# What transformers reads of a config without changing the logits, and RoPE, which has tests of its own.
HARMLESS = {
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "initializer_range",
    "pad_token_id",
    "pretraining_tp",
    "rope_parameters",
    "use_cache",
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_key_that_transformers_has_is_read(model_type: str) -> None:
    base = {field.name for field in dataclasses.fields(transformers.PreTrainedConfig)}
    known = {field.name for field in dataclasses.fields(CLASSES[model_type])} - base - HARMLESS
    assert known <= set(FAMILIES[model_type].defaults)
    assert CLASSES[model_type].attribute_map == {}  # no key has an older name


@pytest.mark.parametrize(("model_type", "key"), [*KEYS, *((name, None) for name in FAMILIES)])
def test_a_key_that_is_left_out(model_type: str, key: str | None) -> None:
    """Our reading of a config without the key is that of the complete config that transformers makes of it."""
    given = {name: value for name, value in SMALL.items() if name != key} if key else {}
    if "use_sliding_window" in FAMILIES[model_type].defaults and key:
        given |= {name: value for name, value in SLIDING.items() if name != key}
    complete = json.loads(CLASSES[model_type](**given).to_json_string(use_diff=False))
    assert read(model_type, **given) == llama_to_model_config(complete)


@pytest.mark.parametrize(
    ("model_type", "keys"),
    [
        ("llama", {"num_key_value_heads": None}),
        ("llama", {"head_dim": None}),
        ("llama", {"rope_parameters": None, "rope_scaling": None}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"head_dim": None}),
        ("qwen2", {"num_key_value_heads": None}),
        ("qwen2", {"sliding_window": None}),
        ("qwen2", {"sliding_window": None, "use_sliding_window": True}),
        ("qwen3", {"layer_types": None, "use_sliding_window": True}),
    ],
)
def test_null_is_what_it_is_in_transformers(model_type: str, keys: dict[str, Any]) -> None:
    complete = json.loads(CLASSES[model_type](**SMALL | keys).to_json_string(use_diff=False))
    assert read(model_type, **SMALL | keys) == llama_to_model_config(complete)


def test_the_family_may_be_said_in_either_way() -> None:
    for model_type, family in FAMILIES.items():
        both = {"model_type": model_type, "architectures": [family.architecture]}
        configs = [llama_to_model_config(part) for part in (both, *({key: value} for key, value in both.items()))]
        assert configs[0] == configs[1] == configs[2]


OLD_AND_NEW = [
    ({"rope_parameters": LLAMA3}, {"rope_theta": 1000.0, "rope_scaling": LLAMA3 | {"rope_theta": None}}),
    ({"rope_parameters": LLAMA3}, {"rope_scaling": LLAMA3}),
    ({"rope_parameters": LLAMA3}, {"rope_parameters": LLAMA3, "rope_scaling": LLAMA3, "rope_theta": 1000.0}),
    (
        {"rope_parameters": LLAMA3},
        {
            "rope_parameters": LLAMA3 | {"original_max_position_embeddings": None},
            "original_max_position_embeddings": 16,
        },
    ),
    ({"rope_parameters": LINEAR}, {"rope_scaling": {"type": "linear", "factor": 2}}),
    ({"rope_parameters": LINEAR}, {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}}),
    ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 500000, "rope_type": "default"}, "rope_theta": 5e5}),
    ({}, {"rope_scaling": {"type": "default"}, "partial_rotary_factor": 1}),
    ({}, {"torch_dtype": "bfloat16", "dtype": "bfloat16"}),
    ({}, {"torch_dtype": "float16"}),
]


@pytest.mark.parametrize(("new", "other"), OLD_AND_NEW, ids=str)
def test_old_and_new_names_say_the_same(new: dict[str, Any], other: dict[str, Any]) -> None:
    assert read("llama", **SMALL, **new) == read("llama", **SMALL, **other)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["GemmaForCausalLM"]}, "architecture 'GemmaForCausalLM' is not supported; supported: Llama"),
    ({"architectures": [], "model_type": None}, "there is no architecture, and model_type None is not supported"),
    ({"model_type": "gemma"}, "model_type 'gemma' is not supported; supported: LlamaForCausalLM, Mistral"),
    (
        {"architectures": ["LlamaForCausalLM"], "model_type": "mistral"},
        r"architectures \('LlamaForCausalLM'\) and model_type \('mistral'\) contradict each other",
    ),
    ({"hidden_act": "gelu"}, r"hidden_act \('gelu'\) must be 'silu'"),
    ({"mlp_bias": True}, r"mlp_bias \(true\)"),
    ({"per_layer_config": {"0": {"num_key_value_heads": 1}}}, "per_layer_config is not supported"),
    ({"is_causal": False}, r"is_causal \(false\) must be true"),
    ({"rms_norm_eps": None}, r"rms_norm_eps \(null\) must have a value, or be left out, which stands for 1e-06"),
    ({"tie_word_embeddings": "false"}, r"tie_word_embeddings \('false'\) must be true or false"),
    ({"model_type": "qwen2", "use_sliding_window": "false"}, "use_sliding_window .* must be true or false"),
    ({"attention_bias": 0}, r"attention_bias \(0\) must be true or false"),
    ({"model_type": "qwen3", "head_dim": None}, r"head_dim \(null\) must have a value, or be left out, .* 128"),
    ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor \(0.5\) must be 1"),
    ({"num_key_value_heads": 3}, r"num_kv_heads \(3\) must divide"),
    (
        {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["linear_attention"] * 4},
        "layer_types must be 4 of",
    ),
    ({"model_type": "qwen2", "layer_types": ["chunked_attention"] * 4}, "layer_types must be 4 of"),
    ({"model_type": "qwen2", "layer_types": ["full_attention"] * 3}, "layer_types must be 4 of"),
    (
        {"model_type": "qwen3", "layer_types": ["sliding_attention"] * 4},
        "layer_types has 'sliding_attention', which needs use_sliding_window and sliding_window",
    ),
    # Two places that say one thing, differently.
    (
        {"torch_dtype": "bfloat16", "dtype": "float32"},
        r"dtype \('float32'\) and torch_dtype \('bfloat16'\) contradict each other",
    ),
    (
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        r"rope_theta \(10000.0\) and rope_parameters rope_theta \(500000.0\) contradict each other",
    ),
    (
        {"rope_scaling": LINEAR | {"rope_theta": 2.0}, "rope_theta": 3.0},
        r"rope_theta \(3.0\) and rope_scaling rope_theta \(2.0\)",
    ),
    (
        {"rope_parameters": LINEAR, "rope_scaling": {"type": "linear", "factor": 4.0}},
        r"rope_parameters factor \(2.0\) and rope_scaling factor \(4.0\) contradict each other",
    ),
    (
        {"rope_parameters": YARN, "rope_scaling": YARN | {"beta_fast": 16}},
        r"rope_parameters beta_fast \('nothing'\) and rope_scaling beta_fast \(16\) contradict each other; keep one",
    ),
    (
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "rope_scaling": YARN},
        r"rope_parameters rope_type \('default'\) and rope_scaling rope_type \('yarn'\) contradict each other",
    ),
    (
        {"rope_parameters": {"rope_theta": 1e4, "factor": 2.0}, "rope_scaling": LINEAR},
        r"rope_parameters rope_type \('default'\) and rope_scaling rope_type \('linear'\) contradict each other",
    ),
    (
        {"rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 2.0}},
        r"rope_scaling rope_type \('linear'\) and rope_scaling type \('yarn'\) contradict each other",
    ),
    (
        {"rope_parameters": LLAMA3, "original_max_position_embeddings": 32},
        r"original_max_position_embeddings \(32\) and rope_parameters original_max_position_embeddings \(16\)",
    ),
    (
        {"partial_rotary_factor": 1.0, "rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}},
        r"partial_rotary_factor \(1.0\) and rope_parameters partial_rotary_factor \(0.5\)",
    ),
    # RoPE scaling that is not known, or not whole.
    ({"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope'; supported: linear, dynamic, llama3, yarn"),
    ({"rope_parameters": {"factor": 2.0}}, r"RoPE parameters \['factor'\] need a rope_type"),
    ({"rope_parameters": {"rope_type": "linear"}}, r"has keys \['rope_type'\]; it must have \['factor', 'rope_type'\]"),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "finetuned": True}},
        r"of type 'yarn' has keys .*'finetuned'.*; it must have .*, and may have \['attention_factor', 'beta_fast'",
    ),
    (
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 512}},
        r"original_max_position_embeddings \(512\) must be max_position_embeddings \(2048\), or be left out",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=[str(changes) for changes, _ in REFUSALS])
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        llama_to_model_config({"model_type": "llama"} | SMALL | changes)
