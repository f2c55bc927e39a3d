"""Plans are compiled by the real compiler and described without a GPU; what cannot be compiled is refused in a line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests import configs
from trtllm_pt.backends import BuildOptions, build, inspect, read_engine
from trtllm_pt.backends.tensorrt import api
from trtllm_pt.backends.tensorrt.limits import check, with_fields
from trtllm_pt.checkpoint.init import init
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.model.quantization import PER_CHANNEL, WEIGHT_ONLY

ROOT = Path(__file__).parents[3]


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
    assert found["compiled"]["targets"] == ["sm80", "sm86", "sm89", "sm120", "sm121"]
    sends = {"comm_allreduce": 3, "comm_allgather": 1}
    assert found["compiled"]["collectives"] == {"decode": sends, "prefill": sends}
    decode, prefill = found["compiled"]["profiles"]
    assert (decode["slots"], decode["each"]) == ([1, 16, 16], [1, 1, 1])
    assert (prefill["slots"], prefill["each"]) == ([1, 1, 1], [1, 128, 128])  # a prompt has at most 128 tokens


def test_it_runs_with_the_version_that_built_it(engines: Path) -> None:
    manifest = read_engine(engines)
    manifest.backend.check_versions(engines, manifest)
    older = replace(manifest, versions={"tensorrt_rtx": "1.6.0"})
    with pytest.raises(UsageError, match=r"was built with TensorRT-RTX 1\.6\.0, but .* is installed"):
        manifest.backend.check_versions(engines, older)


def test_a_network_on_one_rank_sends_nothing(tmp_path: Path) -> None:
    checkpoint = init(configs.TINY, tmp_path / "checkpoint", dtype="float16")
    build(checkpoint, tmp_path / "engines", "tensorrt", BuildOptions(extra={"gpu": "SM75, sm89"}))
    found = inspect(tmp_path / "engines")["compiled"]
    assert found["collectives"] == {"decode": {}, "prefill": {}} and found["targets"] == ["sm75", "sm89"]


# --- what cannot be built

REFUSED = {
    "Hopper": (
        {"gpu": "sm89,sm90"},
        r"^gpu \(sm90\): TensorRT-RTX does not compile for Hopper, only for sm75, .*sm121",
    ),
    "an unknown target": (
        {"gpu": "ada"},
        r"^gpu \(ada\) must be one of sm75, sm80, sm86, sm89, sm120, sm121, or several",
    ),
    "no target": ({"gpu": ""}, r"^gpu \(\) must be one of sm75"),
    "Turing in bfloat16": ({"gpu": "sm75"}, r"^dtype \('bfloat16'\) must be 'float16' for gpu sm75"),
    "no such builder": ({"builder": "tensorrt"}, r"^builder \('tensorrt'\) is not installed: `pip install .*rtx\]'`"),
    "no workers": ({"workers": 0}, r"^--workers \(0\) must be at least 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_are_refused(checkpoint: Path, tmp_path: Path, name: str) -> None:
    values, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        build(checkpoint, tmp_path / "out", "tensorrt", BuildOptions(extra=values))
    assert not list(tmp_path.iterdir())


def test_no_builder_is_installed(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BUILDERS", ())
    with pytest.raises(UsageError, match=r"^neither TensorRT nor TensorRT-RTX is installed: `pip install 'trtllm_pt\["):
        build(checkpoint, tmp_path / "out", "tensorrt")
    assert not list(tmp_path.iterdir())


def test_tensorrt_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BUILDERS", ("json",))  # a package that is installed
    monkeypatch.setattr(api, "PROPER", "json")
    with pytest.raises(UsageError, match=r"^TensorRT compiles for the GPU of the machine, and none is visible here"):
        api.builder_name()


EXPERTS = {"ffn_pattern": ("moe",), "num_experts": 2, "experts_per_token": 1, "moe_intermediate_size": 64}
MODELS = {
    "a head size without kernels": (
        {"head_size": 36},
        {},
        r"^head_size \(36\) must be a multiple of 8 in bfloat16: .*; float32 takes any",
    ),
    "FP8 and several tracks": ({}, {"quant_algo": "FP8"}, r"^quant_algo \('FP8'\) needs one track per rank"),
    "an FP8 cache": ({}, {"kv_cache_quant_algo": "FP8"}, r"^kv_cache_quant_algo \('FP8'\) is not supported"),
    "an int8 embedding": (
        {"hidden_size": 64},
        {"embedding_quant_algo": "W8A16"},
        r"^embedding_quant_algo \('W8A16'\) is not supported by native TensorRT plans; convert without --embedding, or",
    ),
    "an int8 cache": ({}, {"kv_cache_quant_algo": "INT8"}, r"^kv_cache_quant_algo \('INT8'\) is not supported"),
    "int8 and several tracks": (
        {"hidden_size": 64, "intermediate_size": 64},
        {"quant_algo": "W8A16"},
        r"^quant_algo \('W8A16'\) needs one track per rank .*, and ranks \(2\) gives 2: .* --ranks 4, or with",
    ),
    **{
        f"{algo}, whose groups have scales": (
            {"hidden_size": 128, "head_size": 128, "intermediate_size": 512},
            {"quant_algo": algo},
            rf"^quant_algo \('{algo}'\) is not supported by native TensorRT plans, which have one scale per output; .* "
            "--engine embedded$",
        )
        for algo in WEIGHT_ONLY
        if algo not in PER_CHANNEL
    },
    "int4 experts": (
        {"hidden_size": 64, **EXPERTS},
        {"quant_algo": "W4A16"},
        r"^quant_algo \('W4A16'\) is not supported .* for ffn_pattern with 'moe'",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused(name: str) -> None:
    changes, stored, message = MODELS[name]
    manifest = CheckpointManifest(model=configs.SMALL.replace(**changes), ranks=2, dtype="bfloat16", **stored)
    with pytest.raises(UsageError, match=message):
        check(manifest, ())


def test_fp8_on_a_gpu_without_it() -> None:
    manifest = CheckpointManifest(model=configs.SMALL, ranks=4, dtype="bfloat16", quant_algo="FP8")
    assert api.targets("tensorrt_rtx", None, "FP8") == ("sm89", "sm120", "sm121")
    with pytest.raises(UsageError, match=r"^gpu \(sm86\) does not multiply FP8 .*; sm89, sm120, sm121 do$"):
        check(manifest, ("sm89", "sm86"))


def test_a_plan_that_the_compiler_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message is one of our lines, and what the compiler prints besides does not appear."""
    model = configs.SMALL.replace(head_size=10, num_layers=1, block_depth=1)
    checkpoint = init(model, tmp_path / "checkpoint", ranks=2, dtype="bfloat16")
    monkeypatch.setattr("trtllm_pt.backends.tensorrt.build.check", lambda *_: None)
    with pytest.raises(RunError) as error:
        build(checkpoint, tmp_path / "out", "tensorrt", BuildOptions(extra={"workers": 1}))
    assert str(error.value).startswith("TensorRT-RTX cannot compile rank 0: Myelin (MyelinCheckException: CHECK(")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_the_fields_of_a_layer() -> None:
    model = configs.SMALL
    reason = "Cannot compile operation 'transformer.layers.0.attention.qkv.product.18'"
    assert with_fields(reason, model) == f"{reason} (head_size 16, num_heads 4, num_kv_heads 2, hidden_size 48)"
    assert with_fields("lm_head.product", model) == "lm_head.product (vocab_size 101, hidden_size 48)"
    assert with_fields("it gives no reason", model) == "it gives no reason"


def run(folder: Path, *arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """A command of trtllm-pt, after another one in the same shell."""
    command = " ".join(map(str, (sys.executable, "-m", "trtllm_pt", *arguments)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(folder.parent / "site"), str(ROOT)))}
    shell = ["bash", "-c", f"{before} exec {command}"]
    return subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_a_disk_that_is_full_in_the_middle_of_a_plan(checkpoint: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "build", checkpoint, "-o", "out", "--engine", "tensorrt", before="ulimit -f 1000;")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"Error: writing rank[01]\.plan failed: File too large; nothing was kept\n", done.stderr)
    assert not list(tmp_path.iterdir())


KILLED = """
import os
import sys
if "trtllm_pt.backends.tensorrt.compile_rank" in sys.orig_argv:
    print("out of memory", file=sys.stderr, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_process_that_is_killed(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLED)
    (tmp_path / "work").mkdir()
    done = run(tmp_path / "work", "build", checkpoint, "-o", "out", "--engine", "tensorrt")
    assert done.returncode == 1
    how = r"was killed by signal 9 after saying 'out of memory'; nothing was kept"
    assert re.fullmatch(rf"Error: the process that compiled rank [01] {how}\n", done.stderr)
    assert not list((tmp_path / "work").iterdir())
