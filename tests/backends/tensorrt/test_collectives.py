"""The collectives of the network, and of what the compiler made of it, are those of the schedule, in its order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backends.tensorrt.run import MAX_SEQ_LEN, is_supported
from tests.backends.tensorrt_llm.cases import CASES, REPRESENTATIVES, Case
from tests.backends.tensorrt_llm.conftest import Checkpoints
from trtllm_pt.backends.manifest import Capacity
from trtllm_pt.backends.tensorrt.api import RTX
from trtllm_pt.backends.tensorrt.collectives import check_compiled
from trtllm_pt.backends.tensorrt.compile_rank import BuiltRank, Job, compile_rank, plan_file
from trtllm_pt.backends.tensorrt.graph import Graph
from trtllm_pt.backends.tensorrt.interpreter.networks import networks
from trtllm_pt.backends.tensorrt.log import Collective, Log
from trtllm_pt.backends.tensorrt.profiles import profiles_of
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import RunError
from trtllm_pt.model.schedule import schedule_of, sync_points

CAPACITY = Capacity(max_batch_size=3, max_input_len=40, max_seq_len=MAX_SEQ_LEN, max_num_tokens=16)


def compiled(checkpoint: Path, rank: int, folder: Path) -> BuiltRank:
    job = Job(checkpoint=checkpoint, folder=folder, rank=rank, capacity=CAPACITY, builder=RTX, targets=("sm89",))
    return compile_rank(job, lambda share: None)


FAST = {("pt", 4), ("ladder", 2), ("desync", 2), ("pt moe", 2), ("pt W8A16", 4), ("pt W4A16", 2), ("pt FP8", 4)}
SLOW_AND_FAST = [
    pytest.param(case, ranks, id=f"{case.name}, {ranks}", marks=() if (case.name, ranks) in FAST else pytest.mark.slow)
    for case in CASES.values()
    for ranks in case.ranks
    if is_supported(case, ranks)
]


@pytest.mark.parametrize(("case", "ranks"), SLOW_AND_FAST)
def test_the_compiled_plan(checkpoints: Checkpoints, tmp_path: Path, case: Case, ranks: int) -> None:
    """The compiler's log, which compile_rank holds to the schedule in names and order."""
    built = compiled(checkpoints(case, ranks), ranks - 1, tmp_path)
    reduces = sync_points(schedule_of(case.config))
    wanted = {"comm_allreduce": reduces, "comm_allgather": 1} if ranks > 1 else {}
    assert built.collectives == {"decode": wanted, "prefill": wanted}
    assert plan_file(tmp_path, ranks - 1).stat().st_size == built.bytes > 0


@pytest.mark.parametrize(
    "name", [name for name, ranks in REPRESENTATIVES.items() if not CASES[name].is_quantised and ranks > 1]
)
def test_each_collective_reads_the_one_before(checkpoints: Checkpoints, name: str) -> None:
    """Otherwise the compiler could order them differently on different ranks, which then wait forever."""
    case, ranks = CASES[name], REPRESENTATIVES[name]
    (program, *_) = networks(checkpoints(case, ranks), MAX_SEQ_LEN)
    before: dict[str, frozenset[str]] = {}  # of each tensor, the collectives that it depends on
    previous = None
    for layer in program.layers:
        needs = frozenset().union(*(before.get(value, frozenset()) for value in layer.inputs if value))
        if layer.kind == "DIST_COLLECTIVE":
            assert previous is None or previous in needs, layer.name
            previous = layer.name
            needs |= {layer.name}
        before |= {value.name: needs for value in layer.outputs}
    assert previous is not None and previous.startswith("lm_head.all_gather")


def test_a_dropped_all_reduce_ends_the_build(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["pt"]
    monkeypatch.setattr(Graph, "all_reduce", lambda self, x, *_: x)
    with pytest.raises(RunError) as error:
        compiled(checkpoints(case, 4), 0, tmp_path)
    assert str(error.value) == (
        "the network of rank 0 lacks transformer.layers.1.ffn.all_reduce (AVG), transformer.layers.3.ffn.all_reduce "
        "(AVG) of its schedule; nothing was kept"
    )
    assert not list(tmp_path.iterdir())


def _logged(*names: str) -> list[Collective]:
    log = Log()
    for profile, mark in enumerate(("", " [profile 1]")):
        for number, name in enumerate(names):
            kind = "comm_allgather" if "gather" in name else "comm_allreduce"
            log.take(
                "VERBOSE", f"Layers:\nName: {name}.{100 + number}{mark}_myl{profile}_7, LayerType: {kind}, Inputs: []"
            )
    return log.collectives


FIRST, SECOND, GATHER = (
    "transformer.layers.1.ffn.all_reduce",
    "transformer.layers.3.ffn.all_reduce",
    "lm_head.all_gather",
)
WRONG = {
    "one less": ((FIRST, GATHER), r"lacks transformer\.layers\.3\.ffn\.all_reduce \(comm_allreduce\) of its schedule"),
    "one more": (
        (FIRST, SECOND, SECOND, GATHER),
        r"also has transformer\.layers\.3\.ffn\.all_reduce \(comm_allreduce\)",
    ),
    "another order": ((SECOND, FIRST, GATHER), r"has the collectives of its schedule in another order"),
    "none": ((), r"lacks .*lm_head\.all_gather \(comm_allgather\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_log_with_other_collectives(checkpoints: Checkpoints, name: str) -> None:
    manifest, profiles = CheckpointManifest.from_dir(checkpoints(CASES["pt"], 4)), profiles_of(CAPACITY)
    check_compiled(_logged(FIRST, SECOND, GATHER), manifest, 0, profiles)
    names, message = WRONG[name]
    with pytest.raises(RunError, match=rf"^the decode profile of rank 0's plan {message}.*; nothing was kept$"):
        check_compiled(_logged(*names), manifest, 0, profiles)
