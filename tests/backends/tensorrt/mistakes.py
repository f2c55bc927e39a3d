"""Deliberate mistakes, as patches of the network definition or of what runs it: each must be noticed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from trtllm_pt.backends.tensorrt import network
from trtllm_pt.backends.tensorrt.graph import Graph
from trtllm_pt.backends.tensorrt.interpreter import networks
from trtllm_pt.backends.tensorrt.interpreter.steps import Steps
from trtllm_pt.backends.tensorrt.weights import RankWeights

Made = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Mistake:
    """It gives other logits; `case` and `ranks` say where."""

    made: Made
    case: str = "pt"
    ranks: int = 4
    only_in_decode: bool = False  # prefill is right with it


def _all_reduce_dropped() -> AbstractContextManager[Any]:
    """The first of a forward, on all ranks."""
    right = network.TrackOps.all_reduce

    def all_reduce(self: Any, x: Any, op: Any) -> Any:
        if self.previous is not None:
            return right(self, x, op)
        with patch.object(self.graph, "all_reduce", lambda x, *_: x):
            return right(self, x, op)

    return patch.object(network.TrackOps, "all_reduce", all_reduce)


def _sum_for_mean() -> AbstractContextManager[Any]:
    right = Graph.all_reduce
    return patch.object(Graph, "all_reduce", lambda self, x, op, *others: right(self, x, "sum", *others))


def _track_left_out() -> AbstractContextManager[Any]:
    """The last of every rank."""
    right = Graph.reduce

    def reduce(self: Graph, x: Any, op: Any, axis: int, keep: bool = True) -> Any:
        if axis == 0:
            tokens = self.slice(self.sizes(x), (1,), (1,))
            x = self.slice(x, (0, 0, 0), self.shape(x.shape[0] - 1, tokens, x.shape[2]))
        return right(self, x, op, axis, keep)

    return patch.object(Graph, "reduce", reduce)


def _cache_of_the_layer_before() -> AbstractContextManager[Any]:
    """The second layer's caches lie in the same memory as the first one's."""
    right = Steps.__init__

    def init(self: Any, *args: Any) -> None:
        right(self, *args)
        for caches in self._caches:
            caches["keys_1"], caches["values_1"] = caches["keys_0"], caches["values_0"]

    return patch.object(Steps, "__init__", init)


def _step_input(name: str, change: Callable[[Any], Any], only_in_decode: bool = False) -> Made:
    """A step gets another value for an input than it should."""

    def made() -> AbstractContextManager[Any]:
        right = Steps._run

        def wrong(self: Any, step: Any, first: int, slots: int) -> Any:
            decodes = len(step["tokens"][0]) == 1 and step["starts"] != [0]
            changed = {name: change(step[name])} if decodes or not only_in_decode else {}
            return right(self, {**step, **changed}, first, slots)

        return patch.object(Steps, "_run", wrong)

    return made


def _plus_one(value: Any) -> Any:
    return [_plus_one(each) for each in value] if isinstance(value, list) else value + 1


def _weights_of_another_rank() -> AbstractContextManager[Any]:
    return patch.object(
        networks, "RankWeights", lambda folder, manifest, rank: RankWeights(folder, manifest, rank and 2)
    )


def _renamed(**names: str) -> Made:
    return lambda: patch.multiple(network, **names)


def _window_forgotten() -> AbstractContextManager[Any]:
    right = network._mask
    return patch.object(network, "_mask", lambda graph, own, window, most: right(graph, own, None, most))


def _sees_the_next_token() -> AbstractContextManager[Any]:
    """In prefill; in decode steps there is none in the cache."""
    right = network._mask

    def mask(graph: Graph, own: Any, *others: Any) -> Any:
        one = graph.constant(network.torch.ones(1, 1, 1, 1, dtype=network.torch.int32), "one")
        return right(graph, graph.add(own, one), *others)

    return patch.object(network, "_mask", mask)


MISTAKES = {
    "an all-reduce dropped": Mistake(_all_reduce_dropped),
    "a sum for a mean": Mistake(_sum_for_mean),
    "a track left out": Mistake(_track_left_out, ranks=2),
    "1/n forgotten": Mistake(lambda: patch.object(network.TrackOps, "scale_mean", lambda self, x: x), "desync", 2),
    "gate and up exchanged": Mistake(_renamed(GATE=network.UP, UP=network.GATE)),
    "one cache for two layers": Mistake(_cache_of_the_layer_before),
    "positions off by one in decode": Mistake(_step_input("positions", _plus_one, True), only_in_decode=True),
    "positions off by one, with a window": Mistake(_step_input("positions", _plus_one), "pt window"),
    "a key too few": Mistake(_step_input("lengths", lambda lengths: [length - 1 for length in lengths]), "tp moe", 2),
    "another row of logits": Mistake(_step_input("last", lambda last: [0] * len(last))),
    "a rank with another rank's weights": Mistake(_weights_of_another_rank),
    "no window": Mistake(_window_forgotten, "pt window"),
    "a token more than the past": Mistake(_sees_the_next_token),
    "norm before RoPE": Mistake(
        lambda: patch.object(network, "_normed_and_rotated", _norm_first), "pt qk norm after rope", 2
    ),
    "the router's cap forgotten": Mistake(lambda: patch.object(Graph, "tanh", lambda self, x: x), "pt moe", 2),
}


def _norm_first(part: Any, step: Any, layer: int, which: str, x: Any) -> Any:
    x = network.head_norm(part, f"transformer.layers.{layer}.attention.{which}_layernorm", x)
    return part.graph.rotate(x, *step.rotary, step.positions) if part.model.has_rope(layer) else x
