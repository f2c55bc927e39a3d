"""The Llama family against transformers' own logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.llama import llama_to_model_config
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama, tied, biases": ("Llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "Llama 3.1": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "Llama, linear scaling": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3}}),
    "Mistral": ("Mistral", {"sliding_window": 5, "head_dim": 8}),
    "Mistral, no window": ("Mistral", {"sliding_window": None}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen2, windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "Qwen3": ("Qwen3", {"head_dim": 16}),
    "Qwen3, biases": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
}


def saved(family: str, options: dict[str, Any], folder: Path, shard_size: str = "5GB") -> Any:
    config = getattr(transformers, f"{family}Config")(**SIZES, **options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, tmp_path: Path) -> None:
    hf = saved(*CASES[name], tmp_path)
    tokens = torch.randint(99, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(load_reference(tmp_path)(tokens), hf(tokens).logits, rtol=1e-4, atol=1e-4)


def test_older_spelling_gives_the_same_config() -> None:
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    model = SIZES | {"architectures": ["LlamaForCausalLM"]}
    new = llama_to_model_config(model | {"rope_parameters": LLAMA3})
    assert llama_to_model_config(model | {"rope_theta": 1000.0, "rope_scaling": scaling}) == new
    linear = llama_to_model_config(model | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    assert linear.rope_scaling == {"rope_type": "linear", "factor": 2.0} and linear.rope_theta == 10000.0


def test_shards_to_ranks(tmp_path: Path) -> None:
    saved("Qwen2", {}, tmp_path / "hf", "50KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    (tmp_path / "hf/tokenizer.json").write_text("{}")
    (tmp_path / "hf/generation_config.json").unlink()
    checkpoint = convert(tmp_path / "hf", tmp_path / "ckpt", 4)  # 2 KV heads on 4 ranks
    assert CheckpointManifest.from_dir(checkpoint).model.schedule == "tp"
    want = load_reference(tmp_path / "hf").state_dict()
    for name, tensor in load_reference(checkpoint).state_dict().items():
        assert torch.equal(tensor, want[name]), name
    generation = json.loads((checkpoint / "tokenizer/generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "architecture 'GemmaForCausalLM' is not supported; supported: Llama"),
        ({"architectures": []}, "architecture None is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"the model is quantised \(gptq\)"),
        ({"hidden_act": "gelu"}, r"hidden_act \('gelu'\) must be 'silu'"),
        ({"mlp_bias": True}, r"mlp_bias \(true\)"),
        ({"rms_norm_eps": None}, "config.json lacks 'rms_norm_eps'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_scaling has rope_type 'yarn'; supported:"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor \(0.5\) must be 1"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads|num_kv_heads \(3\) must divide"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        llama_to_model_config(SIZES | {"architectures": ["LlamaForCausalLM"]} | changes)


def test_unknown_layer_types_are_refused() -> None:
    windows = {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["linear_attention"] * 3}
    with pytest.raises(UsageError, match="layer_types must be 3 of"):
        llama_to_model_config(SIZES | {"architectures": ["Qwen3ForCausalLM"]} | windows)
