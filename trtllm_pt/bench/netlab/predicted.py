"""Predict the measured times by the planner, from the machine, its all-reduces and the baseline's times alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trtllm_pt.bench.contenders import Contender
from trtllm_pt.bench.results import median
from trtllm_pt.bench.static_batch import Case
from trtllm_pt.planner.engines import Engine, load_engine
from trtllm_pt.planner.forward import Model
from trtllm_pt.planner.machine import Machine, machine_from_json
from trtllm_pt.planner.serving import Workload, decode
from trtllm_pt.planner.validation.calibrate import fit

_FITTED = ("memory_efficiency",)


def predicted_tpot(
    contenders: Sequence[Contender], case: Case, links: Sequence[Mapping[str, Any]]
) -> list[list[dict[str, float]]]:
    """Predict the TPOT of every contender in seconds, for every link and every round of its visits.

    One number is fitted: the share of the memory bandwidth that an engine reaches. It is fitted on the first
    contender's TPOT in all rounds on all links together, because over a slow link a step is mostly waiting and says
    little about the memory. The other contenders' times are not used.
    """
    baseline = contenders[0]
    machines = [_machines(link["visits"]) for link in links]
    wanted = [batch["tpot"] for link in links for visit in link["visits"] for batch in visit["batches"][baseline.name]]
    plain = load_engine(baseline.facts.manifest.backend.planner_engine)
    models = [_model(baseline, machine, plain) for on_link in machines for machine in on_link]
    engine = fit(plain, _FITTED, lambda tried: [_seconds(model.with_engine(tried), case) for model in models], wanted)
    return [
        [{each.name: _seconds(_model(each, machine, engine), case) for each in contenders} for machine in on_link]
        for on_link in machines
    ]


def _machines(visits: Sequence[Mapping[str, Any]]) -> list[Machine]:
    """Return a machine per round. All have the same all-reduces, the medians of all rounds, as the link is the same."""
    rounds = [machine for visit in visits for machine in visit["machines"]]
    same = [
        {**curves[0], "points": [[size, median(seconds)] for size, seconds in _by_size(curves)]}
        for curves in zip(*(each["all_reduce"] for each in rounds), strict=True)
    ]
    return [machine_from_json({**each, "all_reduce": same}, "this machine") for each in rounds]


def _by_size(curves: Sequence[Mapping[str, Any]]) -> list[tuple[float, list[float]]]:
    """Return each message size with the seconds of all rounds."""
    return [(points[0][0], [p[1] for p in points]) for points in zip(*(each["points"] for each in curves), strict=True)]


def _model(contender: Contender, machine: Machine, engine: Engine) -> Model:
    manifest = contender.facts.manifest
    return Model(contender.facts.model, manifest.ranks, manifest.checkpoint.dtype, machine, engine)


def _seconds(model: Model, case: Case) -> float:
    return decode(model, Workload(case.input_length, case.output_length), case.batch_size).seconds
