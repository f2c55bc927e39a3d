"""Other engines beside ours: the driver with transformers on a tiny model, and the arithmetic of its table."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.peers import all_cases, markdown, prefill_flops, step_bytes, summary
from benchmarks.common.side import Generated, Side
from tests.bench.conftest import ROOT, Done
from trtllm_pt.errors import RunError
from trtllm_pt.model.presets import preset

pytestmark = pytest.mark.peers

Bench = Callable[..., Done]
Call = Callable[..., tuple[int, str, str]]
TINY = ("--models", "dense-tiny", "--threads", "1", "--steps", "3", "--json", "found.json")
PAIR = ("--peers", "transformers", "--cases", "decode-1", "decode-4")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The script in this process and an empty folder: its status, what it prints and what it says."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # as `python benchmarks/peers.py` has it
    script: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "peers.py"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["peers.py", *arguments])
        return (script["main"](), *capsys.readouterr())

    return run


def samples(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "found.json").read_text())["samples"]
    return found


def test_pairs_are_taken_and_kept(bench: Bench, tmp_path: Path) -> None:
    done = bench("peers.py", *TINY, *PAIR, "--rounds", "2")
    assert done.returncode == 0, done.stderr
    first = samples(tmp_path)
    assert [(each["case"], each["sample"]) for each in first] == [
        ("decode-1", 1),
        ("decode-4", 1),
        ("decode-1", 2),
        ("decode-4", 2),
    ]
    assert [each["order"][0] for each in first] == ["ours", "ours", "peer", "peer"]
    assert all(each["ours_s"] > 0 < each["peer_s"] and len(each["read"]) == 3 for each in first)
    # The same weights on both sides: other ones would agree on one token in 512.
    assert sum(each["alike"] for each in first) >= 0.7 * sum(each["sequences"] for each in first)
    assert [line.split(" | ")[1:3] for line in done.stdout.splitlines()[2:]] == [
        ["transformers", "decode-1"],
        ["transformers", "decode-4"],
    ]

    again = bench("peers.py", *TINY, *PAIR, "--rounds", "3")
    assert again.returncode == 0, again.stderr
    assert samples(tmp_path)[:4] == first and [each["sample"] for each in samples(tmp_path)[4:]] == [3, 3]

    table = bench("peers.py", *TINY, *PAIR, "--table-only")
    assert table.stdout == again.stdout and table.returncode == 0
    other = bench("peers.py", *TINY, *PAIR, "--table-only", "--steps", "4")
    assert "found.json: 6 samples of other sources or settings are left out" in other.stderr
    assert len(other.stdout.splitlines()) == 2  # the head alone


def test_an_interruption_keeps_the_samples(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "peers.py"), *TINY, *PAIR, "--rounds", "500"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 240
        while not (tmp_path / "found.json").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        table, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; found.json has what was measured" in said and "Traceback" not in said
    assert 1 <= len(samples(tmp_path)) < 1000 and "| transformers | decode-1 |" in table
    assert not sides_in(tmp_path)


def sides_in(folder: Path) -> list[str]:
    """Processes that work in a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(path / "cwd")) == folder:
                found.append((path / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--peers", "vllm", "--pythons", "nowhere"),
            "--peers ('vllm'): no Python has vllm",
        ),
        (("--peers", "vlm"), "--peers ('vlm') must be one of transformers"),
        (("--peers", "tamm"), "--peers ('tamm')"),
        (("--peers", "openvino-int4"), "--peers ('openvino-int4') has weights in 4 bits: add --bits 4"),
        (("--bits", "8", "--peers", "transformers"), "--peers ('transformers') has weights in 16 bits: add --bits 16"),
        (("--gemm", "int8"), "--gemm needs weights in 8 or 4 bits: add --bits 8 or --bits 4"),
        (("--cases", "decode-2"), "--cases ('decode-2') must be one of prefill, decode-1"),
        (("--cases", "prefill"), "--cases ('prefill') needs 513 positions"),
        (("--models", "dense-tinyy"), "unknown preset 'dense-tinyy'"),
    ],
)
def test_mistakes(call: Call, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    status, out, err = call(*TINY, *arguments)
    assert status == 2 and out == ""
    assert words in err.splitlines()[-1] and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_peer_that_is_not_there_is_left_out(call: Call) -> None:
    status, _, err = call(*TINY, "--cases", "decode-1", "--pythons", "nowhere", "--table-only")
    assert status == 0 and "vllm is left out" in err


def test_a_side_that_ends_is_named(tmp_path: Path) -> None:
    dying = [sys.executable, "-c", "import sys; print('no memory', file=sys.stderr); sys.exit(3)"]
    with pytest.raises(RunError, match=r"llama\.cpp .*status 3: no memory \(.*log\)$"):
        Side("llama.cpp", dying, tmp_path / "log", 1)
    failing = """print('{"version": "1"}', flush=True); input(); print('{"error": "too\\\\nlong"}', flush=True)"""
    with (
        Side("it", [sys.executable, "-c", failing], tmp_path / "log", 1) as side,
        pytest.raises(RunError, match="it: too long"),
    ):
        side.generate([[1]], 1)


def test_a_case_takes_the_first_token_or_the_median_step() -> None:
    generated = Generated([0.5, 0.6, 0.8, 0.9], [[1, 2, 3, 4]])
    cases = all_cases(3)
    assert cases["prefill"].seconds(generated) == 0.5
    assert cases["decode-1"].seconds(generated) == pytest.approx(0.1)
    prompts = cases["decode-4"].prompts(100, 1)
    assert [len(prompt) for prompt in prompts] == [128] * 4 and prompts != cases["decode-4"].prompts(100, 2)


def test_work_of_a_model() -> None:
    block = 1024 * (16 + 2 * 4) * 64 + 1024 * 1024 + 3 * 1024 * 2816
    head, norms = 16384 * 1024, (2 * 12 + 1) * 1024
    config = preset("dense-150m")
    assert step_bytes(config) == 2 * (12 * block + head + norms)
    assert prefill_flops(config, 512) == 2 * (512 * 12 * block + head)
    tied = config.replace(tie_embeddings=True)
    assert step_bytes(tied) == step_bytes(config) and prefill_flops(tied, 512) == prefill_flops(config, 512)


def test_work_of_quantised_weights() -> None:
    """The head has 8 bits; norms are counted as the layers are."""
    head, config = 16384 * 1024, preset("dense-150m")
    layers = step_bytes(config) / 2 - head
    assert step_bytes(config, 8) == layers + head
    assert step_bytes(config, 4) == layers / 2 + head


def test_summary() -> None:
    """The third pair saw the memory change its speed, so it does not count."""
    config, case = preset("dense-150m"), all_cases(32)["decode-1"]
    rate = step_bytes(config) / 0.004  # of a machine that reads the weights in 4 ms
    common = {"multiply": [], "alike": 1, "sequences": 1}
    taken = [
        {"order": ["ours", "peer"], "ours_s": 0.005, "peer_s": 0.010, "read": [rate, rate, 1.2 * rate], **common},
        {"order": ["peer", "ours"], "ours_s": 0.005, "peer_s": 0.006, "read": [1.2 * rate, rate, rate], **common},
        {"order": ["ours", "peer"], "ours_s": 0.005, "peer_s": 0.050, "read": [rate, rate, 2 * rate], **common},
    ]
    found = summary(config, case, taken)
    assert (found["samples"], found["steady"], found["alike"]) == (3, 2, 1.0)
    assert (found["ratio_min"], found["ratio_max"]) == (pytest.approx(1.2), pytest.approx(2.0))
    assert found["ratio"] == pytest.approx(1.6) and found["of_limit"] == pytest.approx(0.8)
    assert "| m | p | decode-1 | 5.00 | 8.00 | 1.60 (1.20 to 2.00) | 2 of 3 |" in markdown(
        [("m", "p", case.name, found)]
    )

    prefill = all_cases(32)["prefill"]
    product = prefill_flops(config, 512) / 0.1
    pair = {"order": ["peer", "ours"], "ours_s": 0.2, "peer_s": 0.1, "read": [rate] * 3, "alike": 0, "sequences": 1}
    assert summary(config, prefill, [{**pair, "multiply": [9 * product, product, product]}])[
        "of_limit"
    ] == pytest.approx(0.5)
