"""What the planner says of a measured link, from the machine, its all-reduces and the baseline's own time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from trtllm_pt.bench.batch import Case
from trtllm_pt.bench.contenders import Contender
from trtllm_pt.planner.calibrate import fit
from trtllm_pt.planner.engines import Engine, load_engine
from trtllm_pt.planner.forward import Model
from trtllm_pt.planner.machine import Machine, machine_from_json
from trtllm_pt.planner.serving import Workload, decode


def predicted_tpot(contenders: Sequence[Contender], case: Case, visit: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a token by contender, for one visit to a link (visit.py): midway between its two machines.

    How much of the memory's bandwidth an engine reaches is fitted on the first contender's TPOT of this visit, for
    whatever disturbs the machine disturbs that, too. Nothing is taken from the others' times.
    """
    found = [
        _by_machine(contenders, case, visit, machine_from_json(each, "this machine")) for each in visit["machines"]
    ]
    return {each.name: fmean(tpot[each.name] for tpot in found) for each in contenders}


def _by_machine(
    contenders: Sequence[Contender], case: Case, visit: Mapping[str, Any], machine: Machine
) -> dict[str, float]:
    baseline = contenders[0]
    wanted = [median(batch["tpot"] for batch in visit["batches"][baseline.name])]
    engine = fit(
        load_engine("embedded"), ("memory_efficiency",), lambda tried: [_tpot(baseline, case, machine, tried)], wanted
    )
    return {each.name: _tpot(each, case, machine, engine) for each in contenders}


def _tpot(contender: Contender, case: Case, machine: Machine, engine: Engine) -> float:
    manifest = contender.facts.manifest
    model = Model(contender.facts.model, manifest.ranks, manifest.checkpoint.dtype, machine, engine)
    return decode(model, Workload(case.input_length, case.output_length), case.batch_size).seconds
