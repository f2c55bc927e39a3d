"""Run a sync schedule on the operations of a backend's network. Tracing the network unrolls the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import chain, pairwise
from typing import Any, Generic, Protocol, TypeVar

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.schedule import Finish, Place, ReduceOp, Run, Schedule, Start

V = TypeVar("V")  # a backend's tensor that holds one value per track


class Ops(Protocol[V]):
    """The operations that a backend's network supplies."""

    def sublayer(self, run: Run, x: V) -> V:
        """Return the output of an attention or FFN with its norms, without the residual add."""
        ...

    def dispatch(self, layer: int, shared: V) -> V:
        """Return the tracks' streams at the start of the block that begins with `layer`."""
        ...

    def combine(self, layer: int, stream: V) -> V:
        """Return the tracks' streams in the form that the block boundary after `layer` reduces."""
        ...

    def all_reduce(self, x: V, op: ReduceOp) -> V:
        """Return the sum or mean over the tracks of all ranks. For a model of one track, the sum is over the ranks."""
        ...

    def start_all_reduce(self, x: V, op: ReduceOp) -> V:
        """Start an all-reduce that other steps run beside. Return what `finish_all_reduce` takes."""
        ...

    def finish_all_reduce(self, started: V) -> V:
        """Return the result of an all-reduce that was started."""
        ...

    def add(self, a: V, b: V) -> V:
        """Return a + b, where the shared stream is broadcast to the tracks if the other is per track."""
        ...

    def scale_mean(self, x: V) -> V:
        """Return x times 1/n, for n tracks."""
        ...

    def shared_bias(self, run: Run) -> V | None:
        """Return what the sub-layer adds to the shared stream itself, which all ranks hold alike."""
        ...


class TrackOps(Generic[V]):
    """The operations that are the same in every backend: the norms at a block's start and end, the bias of the shared
    stream, and the addition.

    `layers` are the backend's own modules. If the model has dispatch or combine norms, the first or last layer of each
    block has a `dispatch_layernorm` or `combine_layernorm`. If the model has shared biases, each layer has a
    `shared_bias`.
    """

    def __init__(self, model: ModelConfig, layers: Sequence[Any]) -> None:
        self.model, self.layers = model, layers

    def all_reduce(self, x: V, op: ReduceOp) -> V:
        raise NotImplementedError

    def start_all_reduce(self, x: V, op: ReduceOp) -> V:
        """Backends whose streams and compilers see what may overlap need no operations of their own for it."""
        return self.all_reduce(x, op)

    def finish_all_reduce(self, started: V) -> V:
        return started

    def dispatch(self, layer: int, shared: V) -> V:
        stream: V = self.layers[layer].dispatch_layernorm(shared) if self.model.dispatch_norm else shared
        return stream

    def combine(self, layer: int, stream: V) -> V:
        combined: V = self.layers[layer].combine_layernorm(stream) if self.model.combine_norm else stream
        return combined

    def shared_bias(self, run: Run) -> V | None:
        has_bias = run.place == "attention" and self.model.has_shared_bias
        return self.layers[run.layer].shared_bias() if has_bias else None

    def add(self, a: V, b: V) -> V:
        return a + b  # type: ignore[operator, no-any-return]  # every backend's tensors can be added; V cannot say so


def walk(schedule: Schedule, ops: Ops[V], shared: V) -> V:
    """Return the shared stream after the last step. `shared` is the shared stream at the start: the embedding."""
    streams = _Streams(ops, shared)
    in_flight: dict[tuple[int, str], _InFlight[V]] = {}

    pairs = pairwise(schedule)
    at_once = {step.key for step, after in pairs if isinstance(step, Start) and after == Finish(step.key)}

    def start(key: tuple[int, Place], x: V, op: ReduceOp, is_partial: bool) -> None:
        begin = ops.all_reduce if key in at_once else ops.start_all_reduce
        in_flight[key] = _InFlight(begin(x, op), is_partial)

    for step in schedule:
        match step:
            case Run(reads=reads):
                streams.append(ops.sublayer(step, streams.local(step.layer) if reads == "local" else streams.shared))
                if (bias := ops.shared_bias(step)) is not None:
                    streams.share(ops.add(streams.shared, bias))
            case Start(key, "partial", op):
                start(key, reduce(ops.add, streams.start(key)), op, True)
            case Start(key, "stream", op):
                stream = ops.combine(key[0], streams.local(key[0]))
                streams.take()
                start(key, stream, op, False)
            case Start(key, "partial+mean", op):
                # Taking the stream from before the last sub-layer avoids subtracting that sub-layer's output again,
                # which would lose precision.
                last = streams.pop()
                kept = streams.local(key[0])
                streams.take()
                start(key, ops.add(last, ops.scale_mean(kept)), op, False)
            case Finish(key):
                reduced = in_flight.pop(key)
                result = reduced.value if key in at_once else ops.finish_all_reduce(reduced.value)
                streams.started.pop(key, None)
                streams.share(ops.add(streams.shared, result) if reduced.is_partial else result)
    return streams.shared


@dataclass(frozen=True, slots=True)
class _InFlight(Generic[V]):
    """An all-reduce that has started."""

    value: V
    is_partial: bool  # whether the result is added to the shared stream, or replaces it


class _Streams(Generic[V]):
    """The shared stream, and the tracks' outputs that it does not contain yet."""

    def __init__(self, ops: Ops[V], shared: V) -> None:
        self.ops = ops
        self.shared = shared
        self.started: dict[tuple[int, str], list[V]] = {}  # the outputs in each all-reduce that is not finished
        self.outputs: list[V] = []  # since the last Start
        self.stream: V | None = (
            None  # each track's: the dispatched shared stream plus the first `folded` of all outputs
        )
        self.folded = 0

    def append(self, output: V) -> None:
        self.outputs.append(output)

    def pop(self) -> V:
        assert self.folded < len(self._all()), "the last output is already part of the stream"
        return self.outputs.pop()

    def start(self, key: tuple[int, str]) -> list[V]:
        """Return the outputs since the last Start. Each track keeps its own until the all-reduce is finished."""
        self.started[key], self.outputs = self.outputs, []
        return self.started[key]

    def take(self) -> list[V]:
        taken, self.outputs, self.stream, self.folded = self.outputs, [], None, 0
        return taken

    def share(self, shared: V) -> None:
        self.shared, self.stream, self.folded = shared, None, 0

    def local(self, layer: int) -> V:
        if self.stream is None:
            self.stream = self.ops.dispatch(layer, self.shared)
        outputs = self._all()
        for output in outputs[self.folded :]:
            self.stream = self.ops.add(self.stream, output)
        self.folded = len(outputs)
        return self.stream

    def _all(self) -> list[V]:
        return [*chain.from_iterable(self.started.values()), *self.outputs]
