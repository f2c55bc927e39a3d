"""Every script as users call it, on two ranks of tiny engines."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.conftest import ROOT, Done, Engines
from tests.configs import TINY
from trtllm_pt.cli.app import cli
from trtllm_pt.errors import MPI_OF_EMBEDDED, UsageError
from trtllm_pt.job.mpirun import find_mpirun
from trtllm_pt.planner.machine import load_machine

Bench = Callable[..., Done]
FITTING = ("--input_output_len", "8,8")
QUICK = ("--num_runs", "2", "--duration", "0", "--warm_up", "1")


def test_latency(bench: Bench, engines: Engines, tmp_path: Path) -> None:
    cases = ("--batch_size", "1;3", "--input_output_len", "20,4;8,1")
    done = bench("latency.py", "--engine_dir", engines.pt, *cases, *QUICK, "--csv", "--output_csv", "a.csv", ranks=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "a.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(r["batch_size"], r["input_length"], r["output_length"]) for r in rows] == [
        ("1", "20", "4"),
        ("3", "20", "4"),
        ("1", "8", "1"),
        ("3", "8", "1"),
    ]
    for r in rows:
        assert (r["world_size"], r["n_tracks"], r["track_depth"], r["syncs_per_token"]) == ("2", "2", "2", "1")
        assert float(r["hops_per_step"]) == 2.0 and r["num_runs"] == "2"
        assert 0 < float(r["all_reduce_share"]) < 1 and float(r["peak_mem(gb)"]) > 0.01
        assert 0 < float(r["ttft(ms)"]) <= float(r["latency(ms)"]) <= float(r["percentile99(ms)"]) * 1.001


def test_throughput(bench: Bench, engines: Engines, tmp_path: Path) -> None:
    samples = [{"input_ids": list(range(1, 3 + n)), "output_len": 1 + n} for n in range(6)]
    (tmp_path / "data.json").write_text(json.dumps({"samples": samples}))
    load = ("--dataset", "data.json", "--concurrency", "3", "--streaming")
    done = bench("throughput.py", "--engine_dir", engines.pt, *load, "--json", "--report_json", "r.json", ranks=2)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "r.json").read_text())
    assert list(found)[:6] == ["engine", "machine", "world_info", "request_info", "performance", "streaming_metrics"]
    assert found["request_info"]["num_requests"] == 6
    assert found["request_info"]["avg_output_length"] == 3.5 and found["request_info"]["avg_input_length"] == 4.5
    assert found["request_info"]["avg_num_concurrent_requests"] <= 3
    assert found["parallel_track"]["syncs_per_forward"] == 1
    assert found["parallel_track"]["tensor_parallel_syncs_per_forward"] == 4
    tokens = sum(3 + 2 * n for n in range(6)) - 6  # all but each request's last are computed
    assert found["parallel_track"]["all_reduce_bytes"] == tokens * 32 * 4


def test_throughput_starts_the_ranks_by_itself(bench: Bench, engines: Engines) -> None:
    drawn = ("--num_requests", "5", "--input_mean", "9", "--input_stdev", "3", "--output_mean", "4")
    load = ("--request_rate", "50", "--enable_exp_delays")
    done = bench("bench", "throughput", engines.pt, *drawn, *load)
    assert done.returncode == 0, done.stderr
    assert "5 requests in" in done.stdout and "1 syncs per forward" in done.stdout
    assert "TTFT" not in done.stdout


def test_all_reduce(bench: Bench, engines: Engines, tmp_path: Path) -> None:
    sizes = ("--range", "512,8192,16", "--model", engines.pt, "--tokens", "1;64", "--rounds", "2")
    which = ("--collectives", "mpi;mpi4py;gloo")
    done = bench("all_reduce.py", *sizes, *which, "--json", "--machine-json", "this.json", ranks=2)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    wanted = sorted({128, 512, 8192, 64 * 128})
    assert [curve["algorithm"] for curve in found["all_reduce"]] == ["mpi", "mpi4py", "gloo"]
    for curve in found["all_reduce"]:
        assert [size for size, _ in curve["points"]] == wanted and all(seconds > 0 for _, seconds in curve["points"])
    assert len(found["rows"]) == 3 * len(wanted) and found["world_size"] == 2
    machine = load_machine(str(tmp_path / "this.json"))
    assert machine.devices == 2 and machine.memory_bandwidth > 1e8 and machine.rate("bfloat16") > 1e8
    assert [each.algorithm for each in machine.all_reduce] == ["mpi", "mpi4py", "gloo"]


def test_compare(bench: Bench, engines: Engines, tmp_path: Path) -> None:
    """A model is built under its schedules, with the graphs of `engines`. test_netlab.py compares built engines."""
    (tmp_path / "mine.json").write_text(json.dumps(TINY.to_json()))
    model = ("--model", "mine.json", "--schedules", "pt-d2", "--dtype", "float32", "--engines_dir", "made")
    sizes = ("--ranks", "2", "--batch_size", "1;2", "--input_output_len", "8,4", "--rounds", "2")
    files = ("--output_csv", "c.csv", "--report_json", "c.json", "--plot", "c.png", "--plot", "c.svg")
    done = bench("bench", "compare", *model, *sizes, *files)
    assert done.returncode == 0, done.stderr
    made = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert len(made) == 2 and not any("checkpoint" in name for name in made)
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert [(r["name"], r["batch_size"], r["syncs_per_token"]) for r in rows] == [
        ("tp", "1", "4"),
        ("pt-d2", "1", "1"),
        ("tp", "2", "4"),
        ("pt-d2", "2", "1"),
    ]
    found = json.loads((tmp_path / "c.json").read_text())
    assert len(found["samples"]) == 4 and all(len(each["tpot_s"]) == 2 for each in found["samples"])
    first, second = (next(s for s in found["samples"] if s["name"] == name) for name in ("tp", "pt-d2"))
    ratios = [b / a for a, b in zip(first["tpot_s"], second["tpot_s"], strict=True)]
    assert float(rows[1]["tpot_ratio"]) == pytest.approx(sum(ratios) / 2)  # the median of two
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (tmp_path / "c.svg").read_text()
    assert "batch 2, 8 tokens in, 4 out, 2 rounds" in done.stdout


def test_an_interruption_keeps_the_rows(engines: Engines, tmp_path: Path) -> None:
    launcher = [find_mpirun(MPI_OF_EMBEDDED), "-n", "2"]
    script = [sys.executable, str(ROOT / "benchmarks" / "latency.py"), str(engines.pt)]
    options = ["--input_output_len", "8,2;8,3", "--num_runs", "2", "--duration", "200", "--output_csv", "kept.csv"]
    with subprocess.Popen(
        [*launcher, *script, *options], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "kept.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; kept kept.csv" in said and "Traceback" not in said
    (row,) = csv.DictReader(io.StringIO((tmp_path / "kept.csv").read_text()))
    assert row["output_length"] == "2" and int(row["num_runs"]) >= 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("latency", "{pt}", "--batch_size", "1;x"), "--batch_size ('1;x')"),
        (("latency", "{pt}", "--input_output_len", "8"), "--input_output_len ('8') must be pairs such as 128,20"),
        (("latency", "{pt}", "--batch-size", "9"), "batch_size (9) must not exceed the engine's max_batch_size (4)"),
        (("latency",), "give one engine directory: ENGINES, or --engine_dir ENGINES"),
        (("latency", "nowhere"), "there is no engine directory at nowhere"),
        (
            ("latency", "{pt}", *FITTING, "--output_csv", "no/where.csv"),
            "--output_csv (no/where.csv)",
        ),
        (("throughput", "{pt}", "--concurrency", "2", "--request_rate", "1"), "--request_rate and --concurrency"),
        (("throughput", "{pt}", "--enable_exp_delays"), "--enable_exp_delays needs --request_rate"),
        (("throughput", "{pt}", "--input_mean", "400"), "samples[0]: the prompt has 400 tokens"),
        (("throughput", "{pt}", "--dataset", "none.json"), "there is no none.json"),
        (("all-reduce", "--range", "8,4,2"), "--range ('8,4,2') must be MIN,MAX,FACTOR with MIN <= MAX"),
        (
            ("all-reduce", "--collectives", "mpi;smoke"),
            "--collectives ('smoke') must be one of mpi, mpi4py",
        ),
        (("all-reduce", "--model", "pt-tinyy"), "unknown preset 'pt-tinyy'; did you mean 'pt-tiny'?"),
        (("compare",), "or --model"),
        (("compare", "{pt}", "--schedules", "tp"), "--schedules needs --model"),
        (("compare", "a={pt}", "a={tp}"), "the name 'a'"),
        (("compare", "{pt}", "--ranks", "4"), "--ranks (4): these engines have 2"),
        (("compare", "{pt}", "--plot", "x.pdf"), "--plot (x.pdf) must end in .png or .svg"),
        (("compare", "--model", "pt-tiny", "--ranks", "3"), "ranks (3) cannot divide"),
        (("compare", "--model", "pt-tiny", "--input_output_len", "300,9"), "309 tokens together exceed"),
    ],
)
def test_mistakes(engines: Engines, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(UsageError) as error:
        cli.main(["bench", *(word.format(pt=engines.pt, tp=engines.tp) for word in arguments)], standalone_mode=False)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_mistake_is_one_line(bench: Bench, engines: Engines) -> None:
    done = bench("bench", "latency", engines.pt, "--batch_sizes", "1")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: No such option '--batch-sizes'") and done.stderr.count("\n") == 1


SCRIPTS = ("latency.py", "throughput.py", "all_reduce.py", "compare.py", "netlab.py")


@pytest.mark.parametrize("script", [SCRIPTS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in SCRIPTS[1:])])
@pytest.mark.parametrize(
    ("arguments", "ranks", "words"),
    [
        (("--nonsense",), 2, "No such option '--nonsense'"),
        (("{nowhere}",), 2, "there is no engine directory at"),
        (("{pt}",), 4, "4 were started: use `mpirun -n 2`"),
    ],
    ids=["wrong option", "missing engine", "wrong world"],
)
def test_a_mistake_of_all_ranks_is_said_once(
    bench: Bench, engines: Engines, script: str, arguments: tuple[str, ...], ranks: int, words: str
) -> None:
    if script == "all_reduce.py" and arguments[0] != "--nonsense":
        arguments, ranks, words = (), 1, "all-reduce needs at least 2 ranks"  # it knows no engines
    if script == "netlab.py" and arguments[0] != "--nonsense":
        ranks = 0 if arguments[0] == "{nowhere}" else ranks
        words = words if ranks == 0 else "netlab starts mpirun itself"
    fitting = {"latency.py": FITTING, "throughput.py": ("--input_mean", "8", "--output_mean", "8")}
    arguments += fitting.get(script, ())
    done = bench(script, *(word.format(pt=engines.pt, nowhere="nowhere") for word in arguments), ranks=ranks)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and words in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_rank_that_dies_ends_the_run(bench: Bench, engines: Engines, tmp_path: Path) -> None:
    """The owner outlives it and says which; what was measured before stays."""
    script = [sys.executable, "-m", "trtllm_pt", "bench", "latency", str(engines.pt), "--output_csv", "kept.csv"]
    with subprocess.Popen([*script, "--input_output_len", "8,2"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as p:
        deadline = time.monotonic() + 120
        while not (tmp_path / "kept.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        victim = _ranks_of(p.pid)[-1]
        os.kill(victim, signal.SIGKILL)
        _, said = p.communicate(timeout=60)
    assert p.returncode == 1
    assert re.search(rf"\(process {victim}\) (was killed by signal 9|has exited)", said) and said.count("\n") == 1
    assert len((tmp_path / "kept.csv").read_text().splitlines()) == 2


def _ranks_of(owner: int) -> list[int]:
    """The engine's processes below `owner`."""
    found, below = [], {owner}
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    for _ in range(5):
        below |= {pid for pid, parent in parents.items() if parent in below}
    for pid in sorted(below):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"trtllm_pt.runtime.worker" in words and b"mpirun" not in words and b"hydra" not in words:
            found.append(pid)
    return found
