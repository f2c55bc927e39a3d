"""Hold the collectives of a network, and then those of the compiled plan, to the model's schedule."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from trtllm_pt.backends.tensorrt.log import Collective
from trtllm_pt.backends.tensorrt.profiles import Profile
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import RunError
from trtllm_pt.model.schedule import Start

GATHER = "lm_head.all_gather"
_COMPILED = {"all_reduce": "comm_allreduce", "all_gather": "comm_allgather"}  # our words, the compiler's


def all_reduce_name(layer: int, place: str) -> str:
    """Return the name of the all-reduce after a sub-layer."""
    return f"transformer.layers.{layer}.{place}.all_reduce"


def wanted(manifest: CheckpointManifest) -> list[tuple[str, str]]:
    """Return the name and the operation of each collective of a forward pass in order: the schedule's all-reduces, and
    one gather of the logits. With one rank there are none."""
    if manifest.ranks == 1:
        return []
    ops = {"sum": "SUM", "mean": "AVG"}
    reduces = [(all_reduce_name(*step.key), ops[step.op]) for step in manifest.schedule if isinstance(step, Start)]
    return [*reduces, (GATHER, "NONE")]


def check_defined(network: Any, manifest: CheckpointManifest, rank: int) -> None:
    """Raise RunError if a network that was defined has other collectives than its schedule."""
    layers = (network.get_layer(number) for number in range(network.num_layers))
    found = [
        (_own(layer.name), json.loads(layer.metadata)["op"]) for layer in layers if layer.type.name == "DIST_COLLECTIVE"
    ]
    _compare(f"the network of rank {rank}", found, wanted(manifest))


def check_compiled(
    found: Sequence[Collective], manifest: CheckpointManifest, rank: int, profiles: Sequence[Profile]
) -> None:
    """Raise RunError if the compiler's log has other collectives in a profile than the schedule, or another order."""
    names = [(name, _COMPILED[name.rpartition(".")[2]]) for name, _ in wanted(manifest)]
    for number, profile in enumerate(profiles):
        compiled = [(_own(each.name), each.kind) for each in found if each.profile == number]
        _compare(f"the {profile.name} profile of rank {rank}'s plan", compiled, names)


def kinds(found: Sequence[Collective], profiles: Sequence[Profile]) -> dict[str, dict[str, int]]:
    """Return how often each kind of collective is in each profile."""
    return {
        profile.name: dict(Counter(each.kind for each in found if each.profile == number))
        for number, profile in enumerate(profiles)
    }


def _own(name: str) -> str:
    """Return a layer's name without its number."""
    return name.rpartition(".")[0]


def _compare(where: str, found: list[tuple[str, str]], wanted: list[tuple[str, str]]) -> None:
    if found == wanted:
        return
    if sorted(found) == sorted(wanted):
        raise RunError(f"{where} has the collectives of its schedule in another order; nothing was kept")
    lacking, extra = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
    problems = [f"lacks {_listed(lacking)} of its schedule"] if lacking else []
    problems += [f"also has {_listed(extra)}"] if extra else []
    raise RunError(f"{where} {' and '.join(problems)}; nothing was kept")


def _listed(collectives: Counter[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in collectives.elements())
