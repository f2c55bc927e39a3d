"""The scripts in benchmarks/ that look at one engine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trtllm_pt.model.quantization import WEIGHT_ONLY

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_step_ops(engine: Callable[[str], Path]) -> None:
    folder = engine("pretrained-1")
    done = run("step_ops.py", folder, "--batches", "2", "--context", "20", "--prompt", "40", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["microseconds"]
    assert list(found) == ["decode 2", "prefill 40"]
    for case in found.values():
        assert {"attention", "rms_norm", "all_reduce", "rest"} < set(case)
        assert sum("linear_swiglu" in op for op in case) == 1 and all(spent > 0 for spent in case.values())
        assert sum(case.values()) == pytest.approx(2 * case["whole"])


@pytest.mark.parametrize("script", ["overhead.py", "speculation.py", "start.py", "step_ops.py"])
def test_a_missing_engine_is_one_line(script: str) -> None:
    done = run(script, "nowhere")
    assert (done.returncode, done.stderr) == (2, "Error: there is no engine directory at nowhere\n")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--batches", "0", "2"), "--batches ([0, 2]) must be between 1 and 16"),
        (("--rounds", "0"), "--rounds and --draft-tokens must be at least 1"),
    ],
)
def test_wrong_options_of_speculation(option: tuple[str, ...], message: str) -> None:
    done = run("speculation.py", "nowhere", *option)
    assert (done.returncode, done.stderr) == (2, f"Error: {message}\n")


def test_products_of_every_form() -> None:
    done = run("products.py", "--outputs", "64", "--inputs", "128", "--rows", "2", "--threads", "1", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    _, _, *rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[1] for row in rows] == ["bfloat16", *WEIGHT_ONLY]
    assert all(float(row[2]) < 0.01 for row in rows)  # bfloat16 rounds a result by 2^-9


def test_attention_over_both_kinds_of_cache() -> None:
    sizes = ("--heads", "4", "--kv-heads", "2", "--head-size", "32", "--threads", "1", "--rounds", "1")
    done = run("attention.py", "--contexts", "40", "--batches", "3", *sizes)
    assert done.returncode == 0, done.stderr
    _, _, *rows = [line.split() for line in done.stdout.splitlines()]
    assert [(row[0], row[-7]) for row in rows] == [
        (step, cache) for step in ("decode", "prefill") for cache in ("bfloat16", "INT8")
    ]
    assert all(float(row[-6]) < 0.03 for row in rows)


def test_scheduling() -> None:
    done = run("scheduling.py", "--batches", "2", "16", "--steps", "5", "--vocab", "50", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["microseconds"]
    expected = [(batch, engine) for batch in (2, 16) for engine in ("embedded", "tensorrt")]
    assert [(row["batch"], row["engine"]) for row in rows] == expected
    for row in rows:
        assert all(row[part] > 0 for part in ("schedule", "write", "sample", "take", "sum"))


def test_backlog() -> None:
    done = run("backlog.py", "--queued", "40", "--trace", "1000", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["microseconds"]) == ["submit", "step", "cancel", "trace"]
    assert all(len(tenths) == 10 and min(tenths) > 0 for tenths in found["microseconds"].values())
    assert found["calls"]["submit"] == found["calls"]["cancel"] == 40


def test_a_backlog_that_is_too_short_is_one_line() -> None:
    done = run("backlog.py", "--queued", "3")
    assert (done.returncode, done.stderr) == (2, "Error: --queued must be at least 20 and --trace at least 1000\n")


@pytest.mark.slow
def test_experts_on_an_instruction_path() -> None:
    sizes = ("--width", "64", "--hidden", "32", "--experts", "4", "--threads", "1", "--rounds", "1")
    done = run("experts.py", "--tokens", "3", "--paths", "portable", *sizes)
    assert done.returncode == 0, done.stderr
    _, _, *rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[:2] for row in rows] == [["3", "naive"], ["3", "portable"]]
    assert all(0 < float(row[2]) < 0.03 for row in rows)


@pytest.mark.slow
def test_experts_on_no_path() -> None:
    done = run("experts.py", "--tokens", "1", "--paths", "mmx", "--width", "64", "--hidden", "32", "--rounds", "1")
    assert done.returncode == 1 and "TRTLLM_PT_ISA=mmx is not an instruction path of this machine" in done.stderr


@pytest.mark.slow
def test_growth() -> None:
    done = run("growth.py", "--axes", "batch", "experts", "--most", "4", "--steps", "2", "--rounds", "1", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["axis"], row["value"]) for row in rows] == [("batch", 1), ("batch", 2), ("batch", 4), ("experts", 4)]
    assert all(row["ms"] > 0 and row["memory (MB)"] > 0 for row in rows)
    assert [row["power"] is None for row in rows] == [True, False, False, True]
