"""Links between namespaces, and a sweep over them: where this machine lets us make such."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bench.conftest import ROOT, Done, Engines
from trtllm_pt.bench.contenders import Contender
from trtllm_pt.bench.facts import Facts
from trtllm_pt.bench.netlab.links import Link, Links
from trtllm_pt.bench.netlab.predicted import predicted_tpot
from trtllm_pt.bench.static_batch import Case
from trtllm_pt.cli.app import cli
from trtllm_pt.errors import UsageError

HERE = os.geteuid() == 0 and shutil.which("ip") is not None and Path("/dev/net/tun").exists()
needs_namespaces = pytest.mark.skipif(not HERE, reason="needs root, `ip` and /dev/net/tun")


def namespaces(owner: int | None = None) -> list[str]:
    """The network namespaces of all links, or of those that the process `owner` holds."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    prefix = "trtllm-pt-" if owner is None else f"trtllm-pt-{owner}-"
    return [line.split()[0] for line in listed.splitlines() if line.startswith(prefix)]


@needs_namespaces
def test_a_rate_and_a_delay_are_kept() -> None:
    """A megabyte at 80 Mbit/s needs a tenth of a second at least, however slow the machine."""
    code = """
import socket, sys, time
if sys.argv[1] == "serve":
    listener = socket.create_server((sys.argv[2], 5998)); print("ready", flush=True)
    stream = listener.accept()[0]; left = 1_000_000
    while left: left -= len(stream.recv(left))
    stream.sendall(b"!")
else:
    stream = socket.create_connection((sys.argv[2], 5998)); began = time.monotonic()
    stream.sendall(bytes(1_000_000)); stream.recv(1); print(time.monotonic() - began)
"""
    with Links(2, Link(delay_us=5000, rate_mbit=80)) as lab:
        assert lab.kind in ("netem", "tun") and len(namespaces(os.getpid())) == 2
        command = [sys.executable, "-c", code]
        server = subprocess.Popen(lab.in_rank(1, *command, "serve", lab.address(1)), stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        asked = subprocess.run(lab.in_rank(0, *command, "ask", lab.address(1)), capture_output=True, text=True)
        server.communicate(timeout=60)
        assert 0.1 + 2 * 0.005 <= float(asked.stdout) < 5
    assert namespaces(os.getpid()) == []


@needs_namespaces
def test_namespaces_of_a_killed_owner_are_removed() -> None:
    imports = "import os; from trtllm_pt.bench.netlab.links import *"
    code = f"{imports}; Links(2, Link(0)).__enter__(); os.kill(os.getpid(), 9)"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, cwd=ROOT)
    assert dead.returncode == -signal.SIGKILL and len(namespaces()) >= 2
    with Links(2, Link(0)):
        assert len(namespaces()) == 2
    assert namespaces() == []


@needs_namespaces
def test_a_sweep(engines: Engines, tmp_path: Path, bench: Callable[..., Done]) -> None:
    """One link is measured; interrupted in the next, it keeps that, leaves nothing behind, and can go on."""
    script = [sys.executable, str(ROOT / "benchmarks" / "netlab.py"), f"tp={engines.tp}", f"pt={engines.pt}"]
    effort = ["--delays", "3000;50", "--rounds", "2", "--visits", "1", "--input_output_len", "8,4"]
    effort += ["--report_json", "r.json"]
    with subprocess.Popen([*script, *effort], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        found: dict[str, Any] = {"links": []}
        deadline = time.monotonic() + 200
        while not found["links"] and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.2)
            if (tmp_path / "r.json").exists():
                found = json.loads((tmp_path / "r.json").read_text())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; kept r.json" in said and namespaces() == []
    links: list[dict[str, Any]] = json.loads((tmp_path / "r.json").read_text())["links"]
    (slow,) = links
    tp, pt = slow["rows"]
    assert slow["delay_us"] == 3000 and slow["round_trip_s"] >= 2 * 0.003
    assert (tp["syncs_per_token"], pt["syncs_per_token"]) == (4, 1)
    assert tp["tpot(ms)"] > 4 * 3 and pt["tpot(ms)"] > 3  # each sync takes a trip at the least
    assert slow["predicted_tpot_ratio"]["tp"] == 1.0 and 0 < slow["predicted_tpot_ratio"]["pt"] < 1
    assert slow["prediction_over_measurement"]["tp"]["median"] == 1.0
    assert [len(visit["batches"]["pt"]) for visit in slow["visits"]] == [2]
    again = bench("netlab.py", *script[2:], *effort[2:], "--delays", "3000", "--resume")
    assert again.returncode == 0, again.stderr
    (slow,) = json.loads((tmp_path / "r.json").read_text())["links"]
    assert [len(visit["batches"]["pt"]) for visit in slow["visits"]] == [2, 2] and slow["rows"][0]["rounds"] == 4
    other = bench("netlab.py", *script[2:], *effort[2:], "--threads", "2", "--resume")
    assert other.returncode == 2 and "--resume: r.json has threads 1, but this run has 2" in other.stderr


def test_a_prediction_reads_the_baseline_alone(engines: Engines) -> None:
    contenders = [Contender("tp", Facts.of(engines.tp)), Contender("pt", Facts.of(engines.pt))]

    def link(trip: float, pt: float) -> dict[str, Any]:
        machine = {
            "name": "made up",
            "devices": 2,
            "memory_bytes": 1e10,
            "memory_bandwidth": 2e8,
            "matrix_rate": {"float32": 1e12},
            "launch_overhead": 0,
            "all_reduce": [{"algorithm": "mpi", "ranks": 2, "points": [[64, trip], [1048576, trip]]}],
        }
        tp = 0.5e-3 + 6 * trip  # 4 syncs, the step plan and the logits
        return {"visits": [{"machines": [machine], "batches": {"tp": [{"tpot": tp}], "pt": [{"tpot": pt}]}}]}

    trips = (1e-4, 5e-3)
    predicted = predicted_tpot(contenders, Case(1, 8, 4), [link(trip, 1.0) for trip in trips])
    assert predicted == predicted_tpot(contenders, Case(1, 8, 4), [link(trip, 99.0) for trip in trips])
    for trip, (found,) in zip(trips, predicted, strict=True):
        assert found["tp"] == pytest.approx(0.5e-3 + 6 * trip, rel=1e-3)
        # One sync and the step plan: ranks that are apart by a trip let the logits arrive in time.
        assert found["pt"] - 2 * trip == pytest.approx(0.5e-3, rel=0.2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--delays", "50;x"), "--delays ('50;x') must be microseconds from 0 to 1000000"),
        (("--input_output_len", "8,4;9,4"), "--input_output_len (8,4;9,4): netlab takes one pair"),
        (
            ("--input_output_len", "8,1"),
            "--input_output_len (8,1): netlab takes one pair",
        ),
        (("--ranks", "17"), "--ranks (17) must be between 2 and 16"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as error:
        cli.main(["bench", "netlab", "--model", "pt-tiny", *arguments], standalone_mode=False)
    assert words in str(error.value)


def test_under_mpirun_it_is_refused(bench: Callable[..., Done]) -> None:
    done = bench("netlab.py", "--model", "pt-tiny", ranks=1)
    assert done.returncode == 2 and "netlab starts mpirun itself" in done.stderr
