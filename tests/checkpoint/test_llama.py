"""The Llama family against transformers' own logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.checkpoint.models import save_tokenizer
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.checkpoint.manifest import CheckpointManifest

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
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Llama, tied, biases": ("Llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "Llama 3.1": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "Llama, linear scaling": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e3}}),
    "Llama, yarn": ("Llama", {"rope_parameters": YARN, "head_dim": 16}),
    "Llama, dynamic scaling": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    "Mistral": ("Mistral", {"sliding_window": 5, "head_dim": 8}),
    "Mistral, no window": ("Mistral", {"sliding_window": None}),
    "Mistral, yarn with mscale": ("Mistral", {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.4}}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen2, windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "Qwen2, yarn": ("Qwen2", {"rope_parameters": YARN | {"truncate": False, "beta_fast": 8, "beta_slow": 2}}),
    "Qwen3": ("Qwen3", {"head_dim": 16}),
    "Qwen3, biases": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "Qwen3, yarn with a factor": ("Qwen3", {"head_dim": 16, "rope_parameters": YARN | {"attention_factor": 1.6}}),
}


def saved(family: str, options: dict[str, Any], folder: Path, shard_size: str = "5GB", sizes: Any = SIZES) -> Any:
    config = getattr(transformers, f"{family}Config")(**sizes, **options)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, tmp_path: Path) -> None:
    hf = saved(*CASES[name], tmp_path)
    tokens = torch.randint(99, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(load_reference(tmp_path)(tokens), hf(tokens).logits, rtol=1e-4, atol=1e-4)


def test_shards_to_ranks(tmp_path: Path) -> None:
    saved("Qwen2", {}, tmp_path / "hf", "50KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    save_tokenizer(tmp_path / "hf")
    (tmp_path / "hf/generation_config.json").unlink()
    checkpoint = convert(tmp_path / "hf", tmp_path / "ckpt", 4)  # 2 KV heads on 4 ranks
    assert CheckpointManifest.from_dir(checkpoint).model.schedule == "tp"
    want = load_reference(tmp_path / "hf").state_dict()
    for name, tensor in load_reference(checkpoint).state_dict().items():
        assert torch.equal(tensor, want[name]), name
    generation = json.loads((checkpoint / "tokenizer/generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}


FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
# Left out, they have defaults that differ between the families, or from what one would take.
LEFT_OUT = ("num_key_value_heads", "head_dim", "sliding_window", "rms_norm_eps", "tie_word_embeddings", "architectures")


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_that_are_left_out(family: str, tmp_path: Path) -> None:
    """Nearly all keys: as many heads as fit the default of KV heads, and a head size that fits Qwen3's."""
    sizes = SIZES | {"num_attention_heads": 32, "hidden_size": 128, "rms_norm_eps": 1e-6}
    kept = {key: value for key, value in sizes.items() if key not in LEFT_OUT}
    hf = saved(family, {}, tmp_path, sizes=kept)
    (tmp_path / "config.json").write_text(json.dumps(kept | {"model_type": hf.config.model_type}))
    tokens = torch.randint(99, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(load_reference(tmp_path)(tokens), hf(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_rotary_buffers_are_ignored(family: str, tmp_path: Path) -> None:
    hf = saved(family, {"head_dim": 16}, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = [f"model.layers.{layer}.self_attn." for layer in range(3)] + ["model."]
    for table in ("inv_freq", "cos_cached", "sin_cached"):
        tensors |= {f"{name}rotary_emb.{table}": torch.full((8,), 3.0) for name in names}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    tokens = torch.randint(99, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(load_reference(tmp_path)(tokens), hf(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_is_not_the_embedding_is_used_although_the_config_ties_them(family: str, tmp_path: Path) -> None:
    saved(family, {}, tmp_path)  # untied
    edit(tmp_path, tie_word_embeddings=True)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(99, (2, 40))
    ours = load_reference(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), hf(tokens).logits, rtol=1e-4, atol=1e-4)
    assert not ours.config.tie_embeddings
    again = load_reference(convert(tmp_path, tmp_path / "ckpt"))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_head_that_is_the_embedding_stays_tied(dtype: torch.dtype, tmp_path: Path) -> None:
    saved("Llama", {"tie_word_embeddings": True}, tmp_path)
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].to(dtype, copy=True)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert load_reference(tmp_path).config.tie_embeddings
