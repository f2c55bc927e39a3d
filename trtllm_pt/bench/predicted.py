"""What the planner says of a measured sweep, from the all-reduces alone and the baseline's own times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trtllm_pt.bench.batch import Case
from trtllm_pt.bench.contenders import Contender
from trtllm_pt.engine.inspect import STEP_PLAN_BYTES
from trtllm_pt.planner.calibrate import fit
from trtllm_pt.planner.collective import all_reduce_seconds
from trtllm_pt.planner.engines import Engine, load_engine
from trtllm_pt.planner.forward import Model
from trtllm_pt.planner.machine import Machine, machine_from_json
from trtllm_pt.planner.serving import Workload, decode


def predicted_tpot(
    contenders: Sequence[Contender], case: Case, links: Sequence[dict[str, Any]], described: dict[str, Any]
) -> list[dict[str, float]]:
    """For every link, seconds of a token by contender.

    links: with `all_reduce` and `rows` as measured. described: the machine's JSON. The host's seconds of a step are
    fitted on the first contender's times over all links; nothing is taken from the others'.
    """
    plain = machine_from_json(described, "this machine")
    machines = [
        replace(plain, all_reduce=machine_from_json(described | {"all_reduce": link["all_reduce"]}, "link").all_reduce)
        for link in links
    ]
    baseline = contenders[0]
    wanted = [row["tpot(ms)"] / 1e3 for link in links for row in link["rows"] if row["name"] == baseline.name]
    engine = fit(
        load_engine("embedded"),
        ("step_seconds",),
        lambda tried: [_tpot(baseline, case, machine, tried) for machine in machines],
        wanted,
    )
    return [{each.name: _tpot(each, case, machine, engine) for each in contenders} for machine in machines]


def _tpot(contender: Contender, case: Case, machine: Machine, engine: Engine) -> float:
    """A decode step of the batch, and the hop before it that tells the other ranks what it is."""
    facts = contender.facts
    model = Model(facts.model, facts.manifest.ranks, facts.manifest.checkpoint.dtype, machine, engine)
    workload = Workload(case.input_length, case.output_length, case.batch_size)
    step = decode(model, workload, case.batch_size).seconds
    size = STEP_PLAN_BYTES * case.batch_size
    return step + all_reduce_seconds(machine.all_reduce, engine.collectives, facts.manifest.ranks, size)
