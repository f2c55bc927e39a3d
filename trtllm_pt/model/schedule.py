"""The sync schedule: a program that says where a forward pass has its all-reduces.

A schedule is an immutable tuple of three kinds of step. Network definitions run it (network/walk.py), `inspect` prints
it and benchmarks count its steps; none of them depends on the schedule's name. A new schedule is one function here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig

Place = Literal["attention", "ffn"]
Reads = Literal["local", "shared"]
Payload = Literal["partial", "stream", "partial+mean"]
ReduceOp = Literal["sum", "mean"]


@dataclass(frozen=True, slots=True)
class Run:
    """Run a sub-layer of each track.

    It reads the shared stream plus the track's own outputs that it does not contain yet (reads "local"), or the shared
    stream alone (reads "shared").
    """

    layer: int
    place: Place
    reads: Reads = "local"


@dataclass(frozen=True, slots=True)
class Start:
    """Start an all-reduce after the sub-layer `key`.

    payload "partial": the tracks' outputs that are not shared yet; the result is added to the shared stream.
    payload "stream": the tracks' whole streams; the result replaces the shared stream.
    payload "partial+mean": each track's last output plus 1/n of its stream before that output, for n tracks; the result
    replaces the shared stream.
    """

    key: tuple[int, Place]
    payload: Payload
    op: ReduceOp


@dataclass(frozen=True, slots=True)
class Finish:
    """Wait for the all-reduce that started after sub-layer `key`, and apply its result to the shared stream."""

    key: tuple[int, Place]


Step = Run | Start | Finish
Schedule = tuple[Step, ...]


def schedule_of(config: ModelConfig) -> Schedule:
    """Return the sync schedule of a model."""
    steps = tuple(_SCHEDULES[config.schedule](config))
    check(steps)
    return steps


def sync_points(schedule: Schedule) -> int:
    """Return the number of all-reduces per forward pass."""
    return sum(isinstance(step, Start) for step in schedule)


def unordered(schedule: Schedule) -> tuple[bool, ...]:
    """Return for each all-reduce, in order, whether its input can be computed without the result of the one before."""
    found: list[bool] = []
    flying: dict[tuple[int, Place], frozenset[int]] = {}  # the all-reduces that a result depends on, itself included
    shared: frozenset[int] = frozenset()  # those that the shared stream depends on
    outputs: frozenset[int] = frozenset()  # those that the outputs which are not shared yet depend on
    for step in schedule:
        match step:
            case Run():
                outputs |= shared
            case Start(key, payload):
                inputs = outputs if payload == "partial" else outputs | shared
                found.append(bool(found) and len(found) - 1 not in inputs)
                flying[key] = inputs | {len(found) - 1}
                outputs = frozenset()
            case Finish(key):
                shared |= flying.pop(key)
    return tuple(found)


def tensor_parallel_sync_points(config: ModelConfig) -> int:
    """Return the all-reduces per forward pass of a dense model under tensor parallelism (Megatron-LM): one after each
    attention and one after each FFN."""
    return 2 * config.num_layers


def _sub_layers(config: ModelConfig) -> list[tuple[int, Place]]:
    places: tuple[Place, Place] = ("attention", "ffn")
    return [(layer, place) for layer in range(config.num_layers) for place in places]


def _sync(key: tuple[int, Place], payload: Payload = "partial", op: ReduceOp = "sum") -> tuple[Start, Finish]:
    return Start(key, payload, op), Finish(key)


def tp(config: ModelConfig) -> Iterable[Step]:
    """Yield dense tensor parallelism (arXiv:1909.08053): an all-reduce after each sub-layer, 2L for L layers."""
    for key in _sub_layers(config):
        yield Run(*key)
        yield from _sync(key)


def spd(config: ModelConfig) -> Iterable[Step]:
    """Yield Sync-Point Drop (arXiv:2502.20727): each of `dropped_layers` saves its all-reduce after attention."""
    for layer, place in _sub_layers(config):
        yield Run(layer, place)
        if place == "ffn" or layer not in config.dropped_layers:
            yield from _sync((layer, place))


def parallel(config: ModelConfig) -> Iterable[Step]:
    """Yield parallel attention and FFN (GPT-J, PaLM): one all-reduce per layer."""
    for layer in range(config.num_layers):
        yield Run(layer, "attention", "shared")
        yield Run(layer, "ffn", "shared")
        yield from _sync((layer, "ffn"))


def desync(config: ModelConfig) -> Iterable[Step]:
    """Yield desync residual (arXiv:2501.06589's code): an all-reduce after every `sync_every` layers and the last one;
    the tracks' streams differ in between."""
    for layer in range(config.num_layers):
        yield Run(layer, "attention")
        yield Run(layer, "ffn")
        if config.ends_block(layer):
            yield from _sync((layer, "ffn"), "partial+mean")


def ladder(config: ModelConfig) -> Iterable[Step]:
    """Yield ladder residual (arXiv:2501.06589): 2L all-reduces, each overlapping with the next sub-layer."""
    flying = None
    for key in _sub_layers(config):
        yield Run(*key, "shared")
        if flying is not None:
            yield Finish(flying)
        yield Start(key, "partial", "sum")
        flying = key
    if flying is not None:
        yield Finish(flying)


def dtp(config: ModelConfig) -> Iterable[Step]:
    """Yield delayed tensor parallelism (arXiv:2609.13846): 2L all-reduces, each with the time of `delay` sub-layers.

    Each track reads its own outputs at once, and those of the other tracks when they arrive.
    """
    assert config.delay is not None
    flying: deque[tuple[int, Place]] = deque()
    for key in _sub_layers(config):
        yield Run(*key)
        yield Start(key, "partial", "sum")
        flying.append(key)
        if len(flying) > config.delay:
            yield Finish(flying.popleft())
    yield from map(Finish, flying)


def pt(config: ModelConfig) -> Iterable[Step]:
    """Yield Parallel Track (arXiv:2602.07306, Algorithm 1): one all-reduce of the tracks' streams at the end of each
    block of `block_depth` layers."""
    for layer in range(config.num_layers):
        yield Run(layer, "attention")
        yield Run(layer, "ffn")
        if config.ends_block(layer):
            yield from _sync((layer, "ffn"), "stream", "mean" if config.combine == "mean" else "sum")


_SCHEDULES: dict[str, Callable[[ModelConfig], Iterable[Step]]] = {
    "tp": tp,
    "pt": pt,
    "spd": spd,
    "desync": desync,
    "parallel": parallel,
    "ladder": ladder,
    "dtp": dtp,
}


def check(schedule: Sequence[Step]) -> None:
    """Check that every output is shared and every all-reduce that starts is finished, in that order.

    Raises UsageError otherwise, naming the step.
    """
    unshared: Run | None = None
    flying: list[tuple[int, Place]] = []
    for step in schedule:
        match step:
            case Run():
                unshared = step
            case Start(key=key):
                if unshared is None:
                    raise UsageError(f"sync schedule: {step} has nothing to share")
                unshared = None
                flying.append(key)
            case Finish(key=key):
                if key not in flying:
                    raise UsageError(f"sync schedule: {step} was never started")
                flying.remove(key)
    if unshared is not None:
        raise UsageError(f"sync schedule: the output of {unshared} is never shared")
    if flying:
        raise UsageError(f"sync schedule: the all-reduce of {flying[0]} is never finished")


_KINDS: dict[str, Callable[..., Step]] = {"run": Run, "start": Start, "finish": Finish}


def to_json(schedule: Schedule) -> list[dict[str, Any]]:
    """Return the steps as JSON objects, for checkpoints and `inspect`."""
    return [{"step": type(step).__name__.lower(), **asdict(step)} for step in schedule]


def from_json(steps: Sequence[dict[str, Any]]) -> Schedule:
    """Return the schedule that `to_json` wrote. Raises UsageError for an invalid step or an invalid schedule."""
    schedule = []
    for data in steps:
        try:
            fields = {k: tuple(v) if k == "key" else v for k, v in data.items() if k != "step"}
            schedule.append(_KINDS[data["step"]](**fields))
        except (AttributeError, KeyError, TypeError):
            raise UsageError(f"sync schedule: {data} is not a step") from None
    check(schedule)
    return tuple(schedule)
