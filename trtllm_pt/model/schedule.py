"""The sync schedule: where ranks meet, as a program.

A schedule is an immutable tuple of three kinds of step. Network definitions run it (network/walk.py), `inspect` prints
it, benchmarks count it; none of them asks for its name. A new schedule is one function here.
"""

from __future__ import annotations

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
    """A sub-layer. It reads the shared stream plus the track's own unshared outputs ("local"), or the first alone."""

    layer: int
    place: Place
    reads: Reads = "local"


@dataclass(frozen=True, slots=True)
class Start:
    """An all-reduce begins, after the sub-layer named by `key`.

    payload "partial": the outputs not yet shared; their sum is added to the shared stream.
    payload "stream": the tracks' whole streams; the result replaces the shared stream.
    payload "partial+mean": the last output plus 1/n of the stream before it; the sum replaces the shared stream.
    """

    key: tuple[int, Place]
    payload: Payload
    op: ReduceOp


@dataclass(frozen=True, slots=True)
class Finish:
    """The result of the all-reduce `key` enters the shared stream."""

    key: tuple[int, Place]


Step = Run | Start | Finish
Schedule = tuple[Step, ...]


def schedule_of(config: ModelConfig) -> Schedule:
    """The config's sync schedule."""
    steps = tuple(_SCHEDULES[config.schedule](config))
    check(steps)
    return steps


def sync_points(schedule: Schedule) -> int:
    """All-reduces per forward."""
    return sum(isinstance(step, Start) for step in schedule)


def tensor_parallel_sync_points(config: ModelConfig) -> int:
    """What dense tensor parallelism needs: one after every attention and one after every FFN (Megatron-LM)."""
    return 2 * config.num_layers


def _sub_layers(config: ModelConfig) -> list[tuple[int, Place]]:
    places: tuple[Place, Place] = ("attention", "ffn")
    return [(layer, place) for layer in range(config.num_layers) for place in places]


def _sync(key: tuple[int, Place], payload: Payload = "partial", op: ReduceOp = "sum") -> tuple[Start, Finish]:
    return Start(key, payload, op), Finish(key)


def tp(config: ModelConfig) -> Iterable[Step]:
    """Dense tensor parallelism (arXiv:1909.08053): a sync after every sub-layer, 2L."""
    for key in _sub_layers(config):
        yield Run(*key)
        yield from _sync(key)


def spd(config: ModelConfig) -> Iterable[Step]:
    """Sync-Point Drop (arXiv:2502.20727): some layers go without the sync after attention, 2L - dropped."""
    for layer, place in _sub_layers(config):
        yield Run(layer, place)
        if place == "ffn" or layer not in config.dropped_layers:
            yield from _sync((layer, place))


def parallel(config: ModelConfig) -> Iterable[Step]:
    """Attention and FFN side by side (GPT-J, PaLM): one sync a layer, L."""
    for layer in range(config.num_layers):
        yield Run(layer, "attention", "shared")
        yield Run(layer, "ffn", "shared")
        yield from _sync((layer, "ffn"))


def desync(config: ModelConfig) -> Iterable[Step]:
    """Desync residual (arXiv:2501.06589's code): streams drift apart for `sync_every` layers, ceil(L/every)."""
    for layer in range(config.num_layers):
        yield Run(layer, "attention")
        yield Run(layer, "ffn")
        if config.ends_block(layer):
            yield from _sync((layer, "ffn"), "partial+mean")


def ladder(config: ModelConfig) -> Iterable[Step]:
    """Ladder residual (arXiv:2501.06589): 2L all-reduces, each overlapped with the next sub-layer."""
    flying = None
    for key in _sub_layers(config):
        yield Run(*key, "shared")
        if flying is not None:
            yield Finish(flying)
        yield Start(key, "partial", "sum")
        flying = key
    if flying is not None:
        yield Finish(flying)


def pt(config: ModelConfig) -> Iterable[Step]:
    """Parallel Track (arXiv:2602.07306, Algorithm 1): whole streams merge every `block_depth` layers, ceil(L/D)."""
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
}


def check(schedule: Sequence[Step]) -> None:
    """A program is valid if it ends with nothing unshared and nothing in flight.

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
    """The steps as plain JSON objects, for checkpoints and `inspect`."""
    return [{"step": type(step).__name__.lower(), **asdict(step)} for step in schedule]


def from_json(steps: Sequence[dict[str, Any]]) -> Schedule:
    """The inverse of `to_json`. Raises UsageError for a step that is not one, or a program that is not valid."""
    schedule = []
    for data in steps:
        try:
            fields = {k: tuple(v) if k == "key" else v for k, v in data.items() if k != "step"}
            schedule.append(_KINDS[data["step"]](**fields))
        except (AttributeError, KeyError, TypeError):
            raise UsageError(f"sync schedule: {data} is not a step") from None
    check(schedule)
    return tuple(schedule)
