"""Engines against each other over links of growing delay: what a sync costs on a real socket."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtllm_pt.bench import round_trip
from trtllm_pt.bench.batch import Case
from trtllm_pt.bench.contenders import Contender
from trtllm_pt.bench.links import Link, Links
from trtllm_pt.bench.predicted import predicted_tpot
from trtllm_pt.bench.progress import bar
from trtllm_pt.bench.report import machine
from trtllm_pt.errors import RunError

_SIZES = "64,1048576,4"  # bytes, of the all-reduces that the planner reads
_PATIENCE = 10.0  # seconds for mpirun to end after it was told to


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured on every link."""

    contenders: Sequence[Contender]  # the first is the baseline
    case: Case
    rounds: int
    threads: int  # of a rank
    seed: int

    @property
    def ranks(self) -> int:
        return self.contenders[0].facts.manifest.ranks


def sweep(plan: Plan, links: Sequence[Link]) -> Iterator[dict[str, Any]]:
    """The report so far, after every link."""
    found: list[dict[str, Any]] = []
    described: dict[str, Any] | None = None  # the machine, for the planner: measured once
    with bar(len(links), "links", "link") as progress, tempfile.TemporaryDirectory(prefix="trtllm_pt-") as scratch:
        for link in links:
            with Links(plan.ranks, link) as lab:
                entry = {**asdict(link), "kind": lab.kind, "round_trip_s": _round_trip(lab)}
                meetings = _all_reduces(lab, plan, Path(scratch), describe=described is None)
                described = described or meetings.pop("described")
                compared = _compared(lab, plan, Path(scratch))
            found.append(entry | {"all_reduce": meetings["all_reduce"], "rows": compared["rows"]})
            progress.update()
            yield _report(plan, found, described)


def _report(plan: Plan, links: list[dict[str, Any]], described: dict[str, Any] | None) -> dict[str, Any]:
    assert described is not None
    predicted = predicted_tpot(plan.contenders, plan.case, links, described)
    for entry, tpot in zip(links, predicted, strict=True):
        entry["predicted_tpot_ms"] = {name: 1e3 * seconds for name, seconds in tpot.items()}
        baseline = tpot[plan.contenders[0].name]
        entry["predicted_tpot_ratio"] = {name: seconds / baseline for name, seconds in tpot.items()}
    return {
        "machine": machine(),
        "baseline": plan.contenders[0].name,
        "world_size": plan.ranks,
        "batch_size": plan.case.batch_size,
        "input_length": plan.case.input_length,
        "output_length": plan.case.output_length,
        "described": described,
        "links": links,
    }


def _all_reduces(lab: Links, plan: Plan, scratch: Path, *, describe: bool) -> dict[str, Any]:
    report, described = scratch / "all_reduce.json", scratch / "machine.json"
    options = ["--collectives", "mpi", "--range", _SIZES, "--rounds", str(plan.rounds), "--report_json", str(report)]
    if describe:
        options += ["--machine_json", str(described)]
    _bench(lab, "all-reduce", *options, "--threads", str(plan.threads))
    found = json.loads(report.read_text())
    if describe:
        found["described"] = json.loads(described.read_text())
    return found  # type: ignore[no-any-return]


def _compared(lab: Links, plan: Plan, scratch: Path) -> dict[str, Any]:
    report, case = scratch / "compare.json", plan.case
    engines = [f"{each.name}={each.facts.folder.resolve()}" for each in plan.contenders]
    sizes = ["--batch_size", str(case.batch_size), "--input_output_len", f"{case.input_length},{case.output_length}"]
    effort = ["--rounds", str(plan.rounds), "--threads", str(plan.threads), "--seed", str(plan.seed)]
    _bench(lab, "compare", *engines, *sizes, *effort, "--report_json", str(report))
    return json.loads(report.read_text())  # type: ignore[no-any-return]


def _bench(lab: Links, *arguments: str) -> None:
    """A measurement on all ranks of the lab. Raises RunError with its first error."""
    command = lab.mpirun("-m", "trtllm_pt", "bench", *arguments)
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as job:
        try:
            _, said = job.communicate()
        except BaseException:
            _end(job)
            raise
    if job.returncode:
        lines = said.strip().splitlines() or [f"mpirun ended with status {job.returncode}"]
        errors = [line.partition(": ")[2] for line in lines if re.match(r"Error( on rank \d+)?: ", line)]
        raise RunError(f"over a link of {lab.link.delay_us:g} microseconds: {(errors or lines[-1:])[0]}")


def _end(job: subprocess.Popen[str]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(job.pid, sign)
        try:
            job.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            continue
        return


def _round_trip(lab: Links) -> float:
    """Seconds, of a TCP message between the first two ranks."""
    script, address = [sys.executable, str(Path(round_trip.__file__))], lab.address(1)
    with subprocess.Popen(lab.in_rank(1, *script, "serve", address), stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            asked = subprocess.run(lab.in_rank(0, *script, "ask", address), capture_output=True, text=True, check=False)
            if asked.returncode:
                raise RunError(f"no TCP connection over the link: {asked.stderr.strip().splitlines()[-1]}")
            return float(asked.stdout)
        finally:
            server.terminate()
