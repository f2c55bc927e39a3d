"""The script that compares schedules inside vLLM: its mistakes and the arithmetic of its table, without vLLM."""

from __future__ import annotations

import runpy
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.bench.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "vllm_compare.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return runpy.run_path(str(SCRIPT))


def test_table(script: dict[str, Any]) -> None:
    """Ratios are those of samples of the same round, and a round that one contender lacks does not count."""
    times = {
        "tp": [(10.0, 2.0, 0.5), (20.0, 4.0, 0.25), (30.0, 1.0, 1.0)],
        "pt-d2": [(20.0, 1.0, 0.25), (10.0, 4.0, 0.5)],
    }
    samples = [
        {"name": name, "case": [1, 8, 4], "round": number, "throughput": rate, "ttft": first, "tpot": step}
        for name, taken in times.items()
        for number, (rate, first, step) in enumerate(taken, start=1)
    ]
    *_, tp, pt = script["table"]({"tp": 4, "pt-d2": 1}, samples).splitlines()
    assert tp == "| 1, 8/4 | tp | 4 | 15 | 1.00 (1.00–1.00) | 3000 | 1.00 (1.00–1.00) | 375 | 1.00 (1.00–1.00) |"
    assert pt == "| 1, 8/4 | pt-d2 | 1 | 15 | 1.25 (0.50–2.00) | 2500 | 0.75 (0.50–1.00) | 375 | 1.25 (0.50–2.00) |"


def test_llama_is_the_baseline_of_the_same_sizes(script: dict[str, Any]) -> None:
    args = SimpleNamespace(model="dense-tiny", ranks=2, schedules=["llama", "pt-d1"], without_all_reduces=False)
    models = script["contenders"](args)
    assert list(models) == ["llama", "tp", "pt-d1"]
    config = script["config_json"]("llama", models["llama"])
    assert (config["architectures"], config["hidden_size"], config["num_hidden_layers"]) == (
        ["LlamaForCausalLM"],
        128,
        4,
    )
    assert {name: script["all_reduces"](name, model, args) for name, model in models.items()} == {
        "llama": 9,
        "tp": 8,
        "pt-d1": 4,
    }
    args.without_all_reduces = True
    assert {script["all_reduces"](name, model, args) for name, model in models.items()} == {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "pt-moe-tiny", "--schedules", "llama", "pt-d1"], "--schedules ('llama'): the model has something"),
        (["--processor-time"], "--processor-time needs --ranks 1 (not 2)"),
        (["--lengths", "128"], "--lengths ('128') must be IN/OUT, such as 1024/128, with at least 2 tokens out"),
        (["--schedules", "pt-d3"], "--schedules ('pt-d3')"),
        (["--model", "pt-0b"], "pt-0b"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("Error: ") and message in done.stderr
