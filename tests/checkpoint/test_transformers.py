"""Model directories in Hugging Face's transformers: the copied modeling file against the reference network."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoint.models import CONFIGS, MOE, random_model, saved
from tests.configs import EVERYTHING, LLAMA, OTHER_SCHEDULES, PRETRAINED, SMALL, TINY
from trtllm_pt.checkpoint.load import load_reference, save_model
from trtllm_pt.checkpoint.model_dir import MODELING
from trtllm_pt.checkpoint.source import ModelDir
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.network.reference import ReferenceModel

MODELS = {
    "small": SMALL,
    "everything": EVERYTHING,
    "llama": LLAMA,
    "tiny": TINY,
    **OTHER_SCHEDULES,
    **CONFIGS,
    "dynamic, QK norm before RoPE": LLAMA.replace(rope_scaling={"rope_type": "dynamic", "factor": 2.0}, qk_norm=True),
    "yarn, defaults": SMALL.replace(
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    ),
    "sliding without positions": SMALL.replace(attention_pattern=("sliding_nope", "global"), window=5),
    "a window of one token": SMALL.replace(attention_pattern=("sliding", "global"), window=1),
}
ATTENTION = ("sdpa", "eager")


def load(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options)


def ids(config: ModelConfig, *shape: int) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0))


def assert_close(got: Tensor, want: Tensor) -> None:
    """Both add up in float32, in another order."""
    assert got.shape == want.shape and (got - want).abs().max() <= 1e-5 * want.abs().max()


def greedy(model: ReferenceModel, tokens: Tensor, count: int) -> Tensor:
    with torch.no_grad():
        for _ in range(count):
            tokens = torch.cat((tokens, model(tokens)[:, -1:].argmax(-1)), 1)
    return tokens


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The models are so small that threads cost more time than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits(name: str, tmp_path: Path) -> None:
    reference, folder = saved(MODELS[name], tmp_path / "model")
    tokens = ids(reference.config, 2, 30)
    want = reference(tokens)
    for attention in ATTENTION:
        assert_close(load(folder, attn_implementation=attention)(tokens).logits, want)


@pytest.mark.parametrize("name", ["everything", "ladder", "a window of one token"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@torch.no_grad()
def test_greedy_tokens(name: str, cache: str, tmp_path: Path) -> None:
    reference, folder = saved(MODELS[name], tmp_path / "model")
    tokens = ids(reference.config, 2, 12)
    generated = load(folder).generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=5,
        do_sample=False,
        cache_implementation=cache,
        pad_token_id=0,
    )
    assert torch.equal(generated, greedy(reference, tokens, 5))


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_padding(attention: str, tmp_path: Path) -> None:
    """A sequence that is padded on the left has the logits and tokens that it has alone."""
    reference, folder = saved(EVERYTHING, tmp_path / "model")
    model = load(folder, attn_implementation=attention)
    tokens, mask = ids(EVERYTHING, 2, 14), torch.ones(2, 14, dtype=torch.long)
    mask[1, :7] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    assert_close(model(tokens, attention_mask=mask, position_ids=positions).logits[1, 7:], reference(tokens[1:, 7:])[0])
    generated = model.generate(tokens, attention_mask=mask, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(generated[:1], greedy(reference, tokens[:1], 5))
    assert torch.equal(generated[1:, 7:], greedy(reference, tokens[1:, 7:], 5))


@torch.no_grad()
def test_equal_router_logits(tmp_path: Path) -> None:
    """The lower experts are chosen."""
    reference = random_model(SMALL.replace(**MOE))
    for layer in (1, 3):
        reference.transformer.layers[layer].mlp.router.weight.zero_()
    folder = save_model(reference, tmp_path / "model")
    tokens = ids(SMALL, 1, 9)
    assert_close(load(folder)(tokens).logits, reference(tokens))


@torch.no_grad()
def test_the_trained_model() -> None:
    reference, model = load_reference(PRETRAINED), load(PRETRAINED, dtype=torch.float32)
    tokens = ids(reference.config, 1, 12)
    assert_close(model(tokens).logits, reference(tokens))
    assert torch.equal(model.generate(tokens, max_new_tokens=12, do_sample=False), greedy(reference, tokens, 12))


@pytest.mark.parametrize("name", ["everything", "pt, experts", "tp, few KV heads, biases"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_again(name: str, dtype: str, tmp_path: Path) -> None:
    """The weights are the same bit for bit, and the directory is still one for both."""
    _, folder = saved(MODELS[name], tmp_path / "model", dtype)
    model = load(folder)
    assert str(model.dtype) == f"torch.{dtype}"
    model.save_pretrained(tmp_path / "again")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    for key, tensor in before.items():  # routers are float32 in both
        assert tensor.dtype == after[key].dtype and torch.equal(tensor, after[key]), key
    assert ModelDir(tmp_path / "again").config == MODELS[name]
    assert load(tmp_path / "again").config.tracks == MODELS[name].tracks


def test_a_head_beside_a_tied_embedding(tmp_path: Path) -> None:
    """transformers uses it where it differs, as `convert` does."""
    _, folder = saved(SMALL.replace(tie_embeddings=True), tmp_path / "model")
    model = load(folder)
    assert model.lm_head.weight is model.transformer.vocab_embedding.weight
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.vocab_embedding.weight"] + 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokens = ids(SMALL, 1, 9)
    with torch.no_grad():
        assert_close(load(folder)(tokens).logits, load_reference(folder)(tokens))


@pytest.mark.parametrize("name", ["everything", "ladder"])
def test_loss_and_gradients(name: str, tmp_path: Path) -> None:
    """With and without gradient checkpointing, and in a model that has a cache otherwise."""
    reference, folder = saved(MODELS[name], tmp_path / "model")
    tokens = ids(reference.config, 2, 12)
    labels = tokens.clone()
    labels[0, :4] = -100
    want = F.cross_entropy(reference(tokens)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    want.backward()
    for checkpointing in (False, True):
        model = load(folder).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = model(tokens, labels=labels).loss
        loss.backward()
        torch.testing.assert_close(loss, want)
        got = dict(model.named_parameters())
        for key, parameter in reference.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(got[key].grad, parameter.grad, rtol=1e-3, atol=1e-5, msg=key)


def test_new_weights(tmp_path: Path) -> None:
    """Weights that no file has are initialised: norms one, biases zero, the others of about the same variance."""
    from transformers import AutoConfig, AutoModelForCausalLM

    _, folder = saved(SMALL.replace(qkv_bias=True), tmp_path / "model")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_f" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            std = 0.02 if "embedding" in name else parameter.shape[-1] ** -0.5
            assert parameter.std().item() == pytest.approx(std, rel=0.1), name


def test_the_file_stands_alone() -> None:
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(MODELING.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert names - sys.stdlib_module_names == {"torch", "transformers"}


def test_the_trained_model_has_the_current_file() -> None:
    """If not, copy it there."""
    assert (PRETRAINED / MODELING.name).read_bytes() == MODELING.read_bytes()
