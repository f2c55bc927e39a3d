"""benchmarks/gpu_check.py, but for the GPUs: what it chooses, how it compares, its table, and a rehearsal of it all."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.backends.tensorrt.standin.plans import Command, build
from tests.backends.tensorrt_llm.executor.folders import WINDOWED, engine_folder
from tests.backends.tensorrt_llm.executor.site import install
from trtllm_pt.backends import read_engine
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.init import init
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.errors import UsageError
from trtllm_pt.model.presets import PRESETS, preset
from trtllm_pt.network.reference import ReferenceModel

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # its dataclasses look there for their annotations
    spec.loader.exec_module(module)
    return module


gpu_check = _loaded()
HOPPER, BLACKWELL, AMPERE = (gpu_check.Machine(8, "a GPU", 80 << 30, capability) for capability in (90, 100, 80))


def titles(machine: Any, ranks: int, engine: str = "tensorrt_llm") -> list[str]:
    return [s.title for s in gpu_check.subjects(machine, engine, ranks, "pt-6b", "dense-6b")]


def test_subjects_are_what_the_machine_can_build() -> None:
    timed = ["PT, NCCL", "PT, AUTO", "TP, NCCL", "TP, AUTO", "LlamaForCausalLM, AUTO, reduce fusion"]
    trained = ["stdlib-pt", "windowed", "stdlib-pt, AUTO"]
    whole = [*trained, "stdlib-pt, W8A16", "stdlib-pt, W4A16", "stdlib-pt, FP8", *timed]
    assert titles(HOPPER, 8) == whole
    assert titles(BLACKWELL, 8) == [*trained, "stdlib-pt, FP8", *timed]
    assert titles(AMPERE, 8) == [*trained, "stdlib-pt, W8A16", "stdlib-pt, W4A16", *timed]
    alone = titles(HOPPER, 1)
    assert not any("AUTO" in title for title in alone) and "LlamaForCausalLM, one rank" in alone


def test_native_tensorrt_quantises_what_it_can() -> None:
    """The model has 8 tracks, and int8 and FP8 need one track per rank."""
    plain = ["stdlib-pt", "windowed", "stdlib-pt, W4A16"]
    for ranks in (1, 2, 4):
        assert titles(HOPPER, ranks, "tensorrt") == [*plain, "PT", "TP"]
    assert titles(HOPPER, 8, "tensorrt") == [*plain, "stdlib-pt, W8A16", "stdlib-pt, FP8", "PT", "TP"]
    assert titles(AMPERE, 8, "tensorrt") == [*plain, "stdlib-pt, W8A16", "PT", "TP"]


@pytest.mark.parametrize("engine", ["tensorrt_llm", "tensorrt"])
def test_every_subject_has_a_folder_of_its_own(engine: str) -> None:
    found = gpu_check.subjects(HOPPER, engine, 8, "pt-6b", "dense-6b")
    assert len({subject.folder(engine) for subject in found}) == len(found)


@pytest.mark.parametrize(
    ("words", "gpus", "expected"),
    [
        ([], 8, [8]),
        ([], 6, [4]),
        (["--engine", "tensorrt"], 8, [1, 2, 4, 8]),
        (["--engine", "tensorrt"], 3, [1, 2]),
        (["--engine", "tensorrt", "--ranks", "2", "4"], 8, [2, 4]),
        (["--ranks", "2"], 8, [2]),
    ],
)
def test_on_how_many_gpus(words: list[str], gpus: int, expected: list[int]) -> None:
    assert gpu_check.ranks_of(gpu_check.parse(words), gpu_check.Machine(gpus, "a GPU", 1, 90)) == expected


def test_more_ranks_than_gpus() -> None:
    with pytest.raises(UsageError, match=r"--ranks \(8\) must not exceed the 4 GPUs here"):
        gpu_check.ranks_of(gpu_check.parse(["--ranks", "2", "8"]), gpu_check.Machine(4, "a GPU", 1, 90))


def test_models_by_memory_and_their_twins() -> None:
    assert gpu_check.default_model(HOPPER, 8) == "pt-6b"
    assert gpu_check.default_model(gpu_check.Machine(1, "a GPU", 16 << 30, 89), 1) == "pt-150m"
    for name in PRESETS:
        if name.startswith("pt-") and "moe" not in name:
            assert gpu_check.twin_of(name) in PRESETS


def test_cases() -> None:
    assert [asdict(case) for case in gpu_check.cases_of("1,512,128;32,64,2")] == [
        {"batch_size": 1, "input_length": 512, "output_length": 128},
        {"batch_size": 32, "input_length": 64, "output_length": 2},
    ]
    for wrong in ("", "1,2", "1,2,3,4", "a,b,c", "1,1,1", "0,8,8"):
        with pytest.raises(UsageError, match="--cases"):
            gpu_check.cases_of(wrong)


def test_the_stock_checkpoint_is_the_same_files_under_another_name(tmp_path: Path) -> None:
    checkpoint = init(preset("dense-tiny"), tmp_path / "dense", ranks=2)
    stock = gpu_check.stock_checkpoint(checkpoint, tmp_path / "stock")
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (checkpoint, stock))
    assert {key for key in ours if ours[key] != theirs[key]} == {"architecture"} and set(ours) == set(theirs)
    assert theirs["architecture"] == "LlamaForCausalLM"
    for rank in range(2):
        name = f"rank{rank}.safetensors"
        assert (stock / name).read_bytes() == (checkpoint / name).read_bytes()
    with pytest.raises(UsageError, match="dense model"):
        gpu_check.stock_checkpoint(init(preset("pt-tiny"), tmp_path / "pt"), tmp_path / "other")


# --- comparing


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu_check") / "checkpoint"
    return convert(gpu_check.PRETRAINED, folder, ranks=2, quantize="W8A16")


def outputs(model: ReferenceModel, count: int = 6) -> list[dict[str, Any]]:
    """What `texts` gives of an engine with these weights."""
    found = []
    for prompt in ([5, 6, 7], list(range(40, 110))):
        tokens, log_probs = list(prompt), []
        with torch.no_grad():
            for _ in range(count):
                last = model(torch.tensor([tokens]))[0, -1].log_softmax(-1)
                tokens.append(int(last.argmax()))
                log_probs.append(float(last.max()))
        found.append({"prompt": prompt, "output": tokens[len(prompt) :], "log_probs": log_probs})
    return found


def test_an_engine_of_the_same_weights_agrees(quantised: Path) -> None:
    found = gpu_check.agreement(quantised, outputs(load_reference(quantised)))
    assert found.largest < 1e-3 and found.missed < 1e-3 and found.holds("W8A16")


def test_rounding_to_bfloat16_agrees(quantised: Path) -> None:
    rounded = outputs(load_reference(quantised, torch.bfloat16))
    found = gpu_check.agreement(quantised, rounded)
    assert found.largest > 1e-3 and found.holds("W8A16"), found


@pytest.mark.parametrize("mistake", ["columns by twos", "another track's"])
def test_a_wrong_order_of_weights_does_not(quantised: Path, mistake: str) -> None:
    """What a wrong layout of the quantised kernels does: the same values in other places."""
    model = load_reference(quantised)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attention.qkv.weight"):
                wrong = (
                    parameter.roll(1, 0) if mistake == "another track's" else parameter.unflatten(-1, (-1, 2)).flip(-1)
                )
                parameter.copy_(wrong.reshape(parameter.shape))
    found = gpu_check.agreement(quantised, outputs(model))
    assert not found.holds("W8A16"), found


@pytest.mark.parametrize("window", [39, 40, 41])
def test_a_window_one_token_off_is_seen(tmp_path: Path, window: int) -> None:
    right = gpu_check.windowed_model(tmp_path / "right")
    wrong = load_reference(gpu_check.windowed_model(tmp_path / "wrong", window), torch.bfloat16)
    found = gpu_check.agreement(right, outputs(wrong, 24))
    assert found.holds(None) == (window == 40), found


def test_tokens_that_are_not_the_best_are_missed(quantised: Path) -> None:
    (first, _) = outputs(load_reference(quantised))
    first["output"][3] = (first["output"][3] + 1) % 4096
    assert gpu_check.agreement(quantised, [first]).missed > 1


def test_the_last_prompt_begins_as_one_that_the_engine_knows(tmp_path: Path) -> None:
    folder = engine_folder(tmp_path / "engines", model=WINDOWED)
    found = json.loads(script("--do", "texts", folder, environment=install(tmp_path / "site")).stdout.splitlines()[-1])
    *_, known, last = (text["prompt"] for text in found)
    common = len(known) - len(known) // 10
    assert known[:common] == last[:common] and known[common:] != last[common:] and len(known) == len(last)
    assert [text["prompt"] for text in found].count(last) == 1
    for text in found:
        assert len(text["output"]) == gpu_check.TOKENS


def test_the_known_beginning_is_longer_than_a_window_and_three_pages() -> None:
    *_, longest = gpu_check.prompts(preset("pt-tiny").vocab_size, has_tokenizer=False)
    last, page, window = gpu_check.another_end(longest), 32, 40
    common = next(number for number, (a, b) in enumerate(zip(longest, last, strict=True)) if a != b)
    assert common > max(window, 3 * page)


# --- the table


def measured(
    title: str, schedule: str, tpot: float | None, error: float | None = None, ranks: int = 8
) -> dict[str, Any]:
    agreement = None if error is None else {"largest": error, "mean": error, "missed": 0.0}
    runs = None if tpot is None else [[{"ttft": 0.01, "tpot": t, "latency": 1.0} for t in (tpot, 2 * tpot, tpot)]]
    known = {"title": title, "schedule": schedule, "ranks": ranks, "sync_points": 8, "quantize": None}
    return known | {"timings": runs, "agreement": agreement}


def test_the_table_sets_every_engine_against_the_best_without_tracks() -> None:
    cases = gpu_check.cases_of("4,16,32")
    found = gpu_check.rows(
        [
            measured("trained", "pt", None, 0.02),
            measured("PT", "pt", 0.002),
            measured("TP", "tp", 0.005),
            measured("Llama", "tp", 0.004),
            measured("TP on two", "tp", 0.003, ranks=2),
        ],
        cases,
    )
    assert found == [
        ["trained", 8, 8, "0.020", "-", "-", "-", "-"],
        ["PT", 8, 8, "-", "10.00", "2.000", "128", "2.00"],
        ["TP", 8, 8, "-", "10.00", "5.000", "128", "0.80"],
        ["Llama", 8, 8, "-", "10.00", "4.000", "128", "1.00"],
        ["TP on two", 2, 8, "-", "10.00", "3.000", "128", "1.00"],
    ]
    assert all(len(row) == len(gpu_check.header(cases)) for row in found)


def script(*arguments: object, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command, env = [sys.executable, str(SCRIPT), *map(str, arguments)], os.environ | dict(environment or {})
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = script("--folder", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: gpu_check needs NVIDIA GPUs") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # it compiles three graphs that no other test has
def test_a_rehearsal_on_this_machine(tmp_path: Path) -> None:
    how = ("--engine", "embedded", "--ranks", 1, "--model", "pt-tiny", "--cases", "1,8,4;2,8,4", "--rounds", 1)
    done = script(*how, "--folder", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1].endswith("All checks hold.")
    assert [line.split()[0] for line in lines[-5:-1]] == ["stdlib-pt", "windowed", "PT", "TP"]
    result = json.loads((tmp_path / "result.json").read_text())
    assert [len(runs) for one in result["measured"] if one["timings"] for runs in one["timings"]] == [5] * 4
    assert all(read_engine(folder).ranks == 1 for folder in tmp_path.glob("*.engines"))


@pytest.mark.slow
def test_a_rehearsal_of_native_tensorrt(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Everything but the builder: engines of the stand-in lie where it would put its own."""
    pytest.importorskip("tensorrt_rtx")
    command = Command(tmp_path / "environment")
    machine = gpu_check.Machine(2, "Stand-in GPU", 8 << 30, 89)
    folder = tmp_path / "out"
    folder.mkdir()
    words = ["--engine", "tensorrt", "--model", "pt-tiny", "--cases", "1,8,4;2,8,4", "--rounds", "1", "--ranks", "2"]
    for subject in gpu_check.subjects(machine, "tensorrt", 2, "pt-tiny", "dense-tiny"):
        checkpoint = gpu_check.make_checkpoint(subject, "tensorrt", 2, folder)
        engines = folder / f"{subject.folder('tensorrt')}-2-8-12-{gpu_check.sources()}.engines"
        length = min(512, gpu_check.positions_of(checkpoint))
        build(checkpoint, engines, max_batch_size=8, max_seq_len=length, max_num_tokens=8192)
    monkeypatch.setattr(gpu_check, "here", lambda engine: machine)
    monkeypatch.setattr(sys, "executable", str(command.python))
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    assert gpu_check.main([*words, "--folder", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("All checks hold.")
    assert [line.split()[0] for line in lines[-6:-1]] == ["stdlib-pt", "windowed", "stdlib-pt,", "PT", "TP"]
