"""Compare engines over links of growing delay, which shows what an all-reduce costs over real sockets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from trtllm_pt.bench.compare import rows
from trtllm_pt.bench.contenders import Contender
from trtllm_pt.bench.facts import machine_facts
from trtllm_pt.bench.netlab import round_trip
from trtllm_pt.bench.netlab.links import Link, Links
from trtllm_pt.bench.netlab.predicted import predicted_tpot
from trtllm_pt.bench.results import bar, ratios
from trtllm_pt.bench.static_batch import Batch, Case
from trtllm_pt.errors import RunError
from trtllm_pt.job.process import end, last_line

VISIT = "visit"  # the hidden command that ranks run
_PATIENCE = 10.0  # seconds that mpirun has to exit after a signal


@dataclass(frozen=True, slots=True)
class Plan:
    """What every visit to a link measures."""

    contenders: Sequence[Contender]  # the first is the baseline
    case: Case
    rounds: int
    threads: int  # threads of a rank
    seed: int

    @property
    def ranks(self) -> int:
        """The number of ranks of every contender."""
        return self.contenders[0].facts.manifest.ranks


def sweep(plan: Plan, links: Sequence[Link], visits: int, known: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Visit all links, `visits` times each. Yield the report so far after every visit.

    All links are visited once, then all again, so that noise of the machine affects all alike. `known` is `links` of
    an earlier report with the same plan, whose visits are kept.
    """
    found = {_key(each): each for each in known}
    with bar(visits * len(links), "links", "visit") as progress, tempfile.TemporaryDirectory() as scratch:
        for _ in range(visits):
            for link in links:
                entry = found.setdefault(_key(asdict(link)), asdict(link) | {"visits": []})
                seed = plan.seed + len(entry["visits"])
                entry["visits"].append(_visit(replace(plan, seed=seed), link, Path(scratch)))
                progress.update()
                yield _report(plan, [found[key] for key in sorted(found)])


def _key(link: Mapping[str, Any]) -> tuple[float, float]:
    return link["delay_us"], link["rate_mbit"]


def identity(plan: Plan) -> dict[str, Any]:
    """Return the fields that two reports must share so that their visits can be combined."""
    return {
        "contenders": {each.name: each.facts.folder.name for each in plan.contenders},
        "world_size": plan.ranks,
        "batch_size": plan.case.batch_size,
        "input_length": plan.case.input_length,
        "output_length": plan.case.output_length,
        "threads": plan.threads,
    }


def _report(plan: Plan, links: list[dict[str, Any]]) -> dict[str, Any]:
    predicted = predicted_tpot(plan.contenders, plan.case, links)
    summed_up = [_summed_up(plan, *pair) for pair in zip(links, predicted, strict=True)]
    return {"machine": machine_facts(), "baseline": plan.contenders[0].name} | identity(plan) | {"links": summed_up}


def _summed_up(plan: Plan, link: dict[str, Any], predicted: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Add the rows of all visits to the link, the medians of the predictions, and the errors of the predictions.

    An error compares a round's prediction with the same round's measurement. Medians of both could come from different
    rounds, between which the speed of the machine changes.
    """
    taken = [
        [Batch(**visit["batches"][each.name][number]) for each in plan.contenders]
        for visit in link["visits"]
        for number in range(len(visit["batches"][plan.contenders[0].name]))
    ]
    baseline = plan.contenders[0].name
    expected = {each.name: [tpot[each.name] / tpot[baseline] for tpot in predicted] for each in plan.contenders}
    measured = {each.name: [b[i].tpot / b[0].tpot for b in taken] for i, each in enumerate(plan.contenders)}
    return link | {
        "round_trip_s": median(visit["round_trip_s"] for visit in link["visits"]),
        "rows": rows(plan.contenders, {plan.case: taken}),
        "predicted_tpot_ms": {
            each.name: 1e3 * median(tpot[each.name] for tpot in predicted) for each in plan.contenders
        },
        "predicted_tpot_ratio": {name: median(ratio) for name, ratio in expected.items()},
        "prediction_over_measurement": {name: dict(ratios(expected[name], measured[name])) for name in expected},
    }


def _visit(plan: Plan, link: Link, scratch: Path) -> dict[str, Any]:
    request, answer = scratch / "request.json", scratch / "answer.json"
    asked = {
        "engines": {each.name: str(each.facts.folder.resolve()) for each in plan.contenders},
        "case": asdict(plan.case),
        "rounds": plan.rounds,
        "threads": plan.threads,
        "seed": plan.seed,
        "answer": str(answer),
    }
    request.write_text(json.dumps(asked))
    with Links(plan.ranks, link) as lab:
        trip = {"kind": lab.kind, "round_trip_s": _round_trip(lab)}
        _run(lab, "-m", "trtllm_pt", "bench", VISIT, str(request))
        found: dict[str, Any] = json.loads(answer.read_text())
    return trip | found


def _run(lab: Links, *arguments: str) -> None:
    """Run Python on all ranks. Raises RunError with the first error that a rank printed."""
    command, environment = lab.mpirun(*arguments)
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,  # Ctrl-C goes to this process alone, which then ends the job
    ) as job:
        try:
            _, said = job.communicate()
        except BaseException:
            end(job, _PATIENCE)
            raise
    if job.returncode:
        errors = re.findall(r"^Error(?: on rank \d+)?: (.*)$", said, re.MULTILINE)
        why = errors[0] if errors else last_line(said) or f"mpirun exited with status {job.returncode}"
        raise RunError(f"over a link of {lab.link.delay_us:g} microseconds: {why}")


def _round_trip(lab: Links) -> float:
    """Return the seconds of a TCP round trip between the first two ranks."""
    script, address = [sys.executable, str(Path(round_trip.__file__))], lab.address(1)
    with subprocess.Popen(lab.in_rank(1, *script, "serve", address), stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            asked = subprocess.run(lab.in_rank(0, *script, "ask", address), capture_output=True, text=True, check=False)
            if asked.returncode:
                raise RunError(f"the TCP connection over the link failed: {last_line(asked.stderr)}")
            return float(asked.stdout)
        finally:
            server.terminate()
