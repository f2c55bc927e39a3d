"""A checkpoint or a model directory as a model directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.checkpoint.models import CONFIGS, PT, save_tokenizer, saved
from tests.checkpoint.test_transformers import assert_close, ids, load
from trtllm_pt.backends.export import export
from trtllm_pt.backends.manifest import BuildOptions
from trtllm_pt.backends.registry import backends
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.files.safetensors import SafetensorsWriter


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_comes_back(name: str, ranks: int, dtype: str, tmp_path: Path) -> None:
    _, folder = saved(CONFIGS[name], tmp_path / "model", dtype)
    save_tokenizer(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 7}')
    checkpoint = convert(folder, tmp_path / "checkpoint", ranks)
    exported = export(checkpoint, tmp_path / "exported")
    assert contents(exported) == contents(folder)
    assert contents(convert(exported, tmp_path / "again", ranks)) == contents(checkpoint)
    assert contents(export(folder, tmp_path / "copy")) == contents(folder)


@torch.no_grad()
def test_what_is_exported_runs_in_transformers(tmp_path: Path) -> None:
    reference, folder = saved(CONFIGS["pt, experts"], tmp_path / "model")
    exported = export(convert(folder, tmp_path / "checkpoint", 4), tmp_path / "exported")
    tokens = ids(reference.config, 1, 12)
    assert_close(load(exported)(tokens).logits, reference(tokens))


@torch.no_grad()
def test_a_model_of_the_llama_family(tmp_path: Path) -> None:
    """It becomes a model in our own format, with the same logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=101, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "llama")
    exported = export(tmp_path / "llama", tmp_path / "exported")
    tokens = torch.arange(12)[None]
    assert_close(load(exported)(tokens).logits, model(tokens).logits)
    assert_close(load_reference(exported)(tokens), model(tokens).logits)


def test_refusals(tmp_path: Path) -> None:
    _, folder = saved(PT.replace(hidden_size=64, num_layers=2), tmp_path / "model", "bfloat16")
    quantised = convert(folder, tmp_path / "quantised", 2, quantize="W8A16")
    fp8_cache = convert(folder, tmp_path / "fp8_cache", 2, kv_cache="FP8")
    damaged = tmp_path / "damaged"
    shutil.copytree(quantised, damaged)
    (damaged / "rank1.safetensors").unlink()
    for source, message in (
        (quantised, "quantised is W8A16, from which the weights before quantisation cannot be computed"),
        (fp8_cache, "fp8_cache is FP8 KV cache"),
        (damaged, "damaged is incomplete: it lacks rank1.safetensors"),
        (tmp_path / "nowhere", "there is no model directory"),
    ):
        with pytest.raises(UsageError, match=message):
            export(source, tmp_path / "exported")
    with pytest.raises(UsageError, match="model already exists"):
        export(folder, folder)
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_llm"])
def test_engines_that_do_not_keep_their_weights(name: str, tmp_path: Path) -> None:
    backend, checkpoint = backends()[name], CheckpointManifest(model=PT, ranks=1, dtype="bfloat16")
    engine = backend.manifest(checkpoint, BuildOptions().resolved(PT))
    with pytest.raises(UsageError, match=r"the weights of \S+ cannot be read back from .*; use the checkpoint from"):
        backend.weights(tmp_path, engine)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = saved(PT, tmp_path / "model")
    before = sorted(tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SafetensorsWriter, "append", full)
    with pytest.raises(RunError, match="No space left on device; nothing was kept"):
        export(folder, tmp_path / "exported")
    assert sorted(tmp_path.iterdir()) == before
