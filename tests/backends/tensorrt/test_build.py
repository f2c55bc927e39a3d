"""Plans are compiled by the real compiler and described without a GPU; what cannot be compiled is refused in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import configs
from trtllm_pt.backends import build, inspect, read_engine
from trtllm_pt.checkpoint.init import init
from trtllm_pt.errors import UsageError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 tracks on 2 ranks, 5 layers in blocks of 2: three boundaries."""
    folder = init(configs.SMALL, tmp_path_factory.mktemp("tensorrt") / "checkpoint", ranks=2, dtype="bfloat16")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "generation_config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def engines(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensorrt") / "engines"
    build(checkpoint, folder, "tensorrt")
    return folder


def test_the_directory(engines: Path) -> None:
    assert {path.name for path in engines.iterdir()} == {"config.json", "rank0.plan", "rank1.plan", "tokenizer"}
    config = json.loads((engines / "config.json").read_text())
    assert config["engine"]["backend"] == "tensorrt" and set(config["engine"]["versions"]) == {"tensorrt_rtx"}
    assert config["build_config"]["kv_cache_type"] == "continuous"
    sizes = [(engines / f"rank{rank}.plan").stat().st_size for rank in range(2)]
    assert [plan["bytes"] for plan in config["compiled"]["plans"]] == sizes


def test_inspect(engines: Path) -> None:
    found = inspect(engines)
    assert (found["kind"], found["ranks"], found["sync_points"]) == ("tensorrt", 2, 3)
    sends = {"comm_allreduce": 3, "comm_allgather": 1}
    assert found["compiled"]["collectives"] == {"decode": sends, "prefill": sends}
    decode, prefill = found["compiled"]["profiles"]
    assert (decode["slots"], decode["each"]) == ([1, 16, 16], [1, 1, 1])
    assert (prefill["slots"], prefill["each"]) == ([1, 1, 1], [1, 128, 128])  # a prompt has at most 128 tokens


def test_it_cannot_be_run_yet(engines: Path) -> None:
    manifest = read_engine(engines)
    with pytest.raises(UsageError, match=r"this version of trtllm-pt cannot run: `trtllm-pt inspect .*` shows them"):
        manifest.backend.open_rank(engines, manifest, threads=None, kv_tokens=None)
