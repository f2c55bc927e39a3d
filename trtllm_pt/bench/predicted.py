"""What the planner says of a measured link, from the machine, its all-reduces and the baseline's own time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trtllm_pt.bench.batch import Case
from trtllm_pt.bench.contenders import Contender
from trtllm_pt.planner.calibrate import fit
from trtllm_pt.planner.engines import Engine, load_engine
from trtllm_pt.planner.forward import Model
from trtllm_pt.planner.machine import Machine, machine_from_json
from trtllm_pt.planner.serving import Workload, decode

_FITTED = ("memory_efficiency",)


def predicted_tpot(contenders: Sequence[Contender], case: Case, visit: Mapping[str, Any]) -> list[dict[str, float]]:
    """Seconds of a token by contender, for every round of a visit to a link (visit.py).

    How much of the memory's bandwidth an engine reaches is fitted on the first contender's TPOT of the round, for
    whatever disturbs the machine disturbs that, too. Nothing is taken from the others' times.
    """
    baseline = contenders[0]
    found = []
    for described, batch in zip(visit["machines"], visit["batches"][baseline.name], strict=True):
        machine = machine_from_json(described, "this machine")
        engine = fit(load_engine("embedded"), _FITTED, _figure(baseline, case, machine), [batch["tpot"]])
        found.append({each.name: _tpot(each, case, machine, engine) for each in contenders})
    return found


def _figure(contender: Contender, case: Case, machine: Machine) -> Callable[[Engine], list[float]]:
    return lambda engine: [_tpot(contender, case, machine, engine)]


def _tpot(contender: Contender, case: Case, machine: Machine, engine: Engine) -> float:
    manifest = contender.facts.manifest
    model = Model(contender.facts.model, manifest.ranks, manifest.checkpoint.dtype, machine, engine)
    return decode(model, Workload(case.input_length, case.output_length), case.batch_size).seconds
