"""Mistakes end vLLM's start in one line, before it starts a rank or reads a weight."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.vllm_plugin.on_vllm.models import PRETRAINED, RANDOM, folder_of
from trtllm_pt.errors import UsageError
from trtllm_pt.vllm_plugin.config import ParallelTrackConfig

pytest.importorskip("vllm", reason="make test-vllm")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")


def configure(folder: Path, **options: Any) -> Any:
    """What vLLM does in its first process before anything else."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    return EngineArgs(model=str(folder), **options).create_engine_config()


def edited(tmp_path: Path, name: str, **changes: Any) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(folder_of(name, tmp_path), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


OPTIONS: list[tuple[str, dict[str, Any], str]] = [
    ("pretrained", {"tensor_parallel_size": 3}, r"tensor_parallel_size \(3\).*must divide tracks \(8\)"),
    ("pretrained", {"tensor_parallel_size": 16}, r"tensor_parallel_size \(16\).*must divide tracks \(8\)"),
    ("llama", {"tensor_parallel_size": 3}, r"tensor_parallel_size \(3\).*must divide num_heads \(4\)"),
    ("pretrained", {"pipeline_parallel_size": 2}, r"pipeline_parallel_size \(2\) must be 1"),
    ("pretrained", {"enable_lora": True}, r"enable_lora \(True\) must be False"),
    ("everything", {"enable_expert_parallel": True}, r"enable_expert_parallel \(True\) must be False"),
    (
        "pretrained",
        {"quantization": "fp8_per_tensor"},
        r"quantization \('\w+'\) needs a model that is stored quantised",
    ),
    ("everything", {"quantization": "fp8_per_tensor"}, r"quantization \('\w+'\) does not apply to models with experts"),
]


@pytest.mark.parametrize(("name", "options", "message"), OPTIONS, ids=[str(row[1]) for row in OPTIONS])
def test_options(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configure(folder_of(name, tmp_path), skip_tokenizer_init=name != "pretrained", **options)


CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    ("pt", {"schedule": "tp", "block_depth": None}, r"tracks \(4\) must be 1 for schedule 'tp'"),
    ("pt", {"head_size": 48}, r"head_size \(48\) must be one of 32, 64"),
    ("pt", {"vocab_size": 90}, r"other shapes than its config: transformer.vocab_embedding.weight \[101, 64\]"),
    ("pt", {"format_version": 9}, "unknown key 'format_version'"),
    ("everything", {"hidden_size": 48}, r"hidden_size \(48\) must be a multiple of 32 for experts"),
    ("pretrained", {"vocab_size": 0}, r"vocab_size \(0\) must be at least 1"),
]


@pytest.mark.parametrize(("name", "changes", "message"), CONFIGS, ids=[str(row[1]) for row in CONFIGS])
def test_configs(tmp_path: Path, name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configure(edited(tmp_path, name, **changes), skip_tokenizer_init=True)


def test_missing_tensor(tmp_path: Path) -> None:
    folder = edited(tmp_path, "pt")
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.layers.2.mlp.proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"lacks the tensors transformer\.layers\.2\.mlp\.proj\.weight"):
        configure(folder, skip_tokenizer_init=True)


def test_end_token_outside_the_vocabulary(tmp_path: Path) -> None:
    folder = edited(tmp_path, "pretrained")
    (folder / "generation_config.json").write_text('{"eos_token_id": 4096}')
    with pytest.raises(UsageError, match=r"eos_token_id \(4096\) must be a token id between 0 and 4095"):
        configure(folder)


def test_longer_than_the_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    with pytest.raises(UsageError, match=r"max_model_len \(2048\) must not exceed max_position_embeddings \(1024\)"):
        configure(PRETRAINED, max_model_len=2048)


def test_another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm

    from trtllm_pt import vllm_plugin

    monkeypatch.setattr(vllm, "__version__", "0.31.2")
    vllm_plugin.register()
    try:
        with pytest.raises(UsageError, match=r"vLLM 0\.31\.2 is not supported.*tested releases: 0\.32, 0\.33"):
            configure(PRETRAINED)
    finally:
        monkeypatch.undo()
        vllm_plugin.register()


@pytest.mark.parametrize("trusted", [False, True])
def test_remote_code_of_transformers_is_not_ours(trusted: bool) -> None:
    """config.json names code for transformers (`auto_map`), which vLLM runs for models that it does not know."""
    config = configure(PRETRAINED, trust_remote_code=trusted)
    assert "auto_map" in json.loads((PRETRAINED / "config.json").read_text())
    assert type(config.model_config.hf_config) is ParallelTrackConfig
    assert config.model_config.architecture == "ParallelTrackForCausalLM"  # "Transformers…" if vLLM did not know it


@pytest.mark.parametrize("name", RANDOM)
def test_geometry_of_the_cache(tmp_path: Path, name: str) -> None:
    """vLLM counts a rank's KV heads as those of all its tracks, or as its part of a dense model's."""
    for ranks, heads in ((1, 8), (2, 4), (4, 2)) if RANDOM[name].tracks > 1 else ((1, 2), (2, 1), (4, 1)):
        config = configure(folder_of(name, tmp_path), skip_tokenizer_init=True, tensor_parallel_size=ranks)
        wanted = 1 if name == "tp, experts" else heads
        assert config.model_config.get_num_kv_heads(config.parallel_config) == wanted
        assert config.model_config.max_model_len == RANDOM[name].max_position_embeddings
