"""One rank's surroundings: what the C++ runtime holds, and the other ranks, one thread each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from tests.backends.tensorrt_llm.standin.trt import DataType

_TIMEOUT = 60  # seconds; a rank that waits longer than that waits for ever
R = TypeVar("R")


class Mismatch(RuntimeError):
    """The ranks do not do the same collectives."""


@dataclass(frozen=True, slots=True)
class Collective:
    kind: str
    group: tuple[int, ...]
    dtype: DataType
    shape: tuple[int, ...]
    strategy: str | None = None


class World:
    """Where the ranks' threads meet. Between two meetings one of them runs at a time: threads that run side by side
    would spend their time handing over the interpreter."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._turn = threading.Lock()
        self._barrier = threading.Barrier(ranks, timeout=_TIMEOUT)
        self._brought: list[Any] = [None] * ranks

    def exchange(self, rank: int, what: object, data: Any) -> list[Any]:
        """What every rank brought, in their order. Raises Mismatch where not all came for `what`."""
        self._brought[rank] = (what, data)
        self._meet()
        brought = list(self._brought)
        self._meet()
        if any(other != what for other, _ in brought):
            places = "; ".join(f"rank {number}: {other}" for number, (other, _) in enumerate(brought))
            raise Mismatch(f"the ranks meet for different things: {places}")
        return [data for _, data in brought]

    def _meet(self) -> None:
        self._turn.release()
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError:
            raise Mismatch("another rank failed") from None
        finally:
            self._turn.acquire()

    def run(self, program: Callable[[int], R]) -> list[R]:
        """program(rank) on all ranks. Raises the first rank's own error, not those that it caused elsewhere."""
        results: list[Any] = [None] * self.ranks
        errors: list[BaseException | None] = [None] * self.ranks

        def thread(rank: int) -> None:
            try:
                with self._turn, torch.no_grad():
                    results[rank] = program(rank)
                    self.exchange(rank, "the end", None)
            except BaseException as error:  # raised again below
                errors[rank] = error
                self._barrier.abort()

        self._barrier.reset()
        threads = [threading.Thread(target=thread, args=(rank,), daemon=True) for rank in range(self.ranks)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        found = [error for error in errors if error is not None]
        for error in sorted(found, key=lambda error: "another rank failed" in str(error)):
            raise error
        return results


@dataclass
class RankState:
    """What surrounds the network of one rank while it runs."""

    rank: int
    world: World
    plugin_config: Any
    tokens: int = 0  # in this call; shapes that follow from it are unknown when an engine is built
    pools: dict[int, torch.Tensor] = field(default_factory=dict)  # address -> KV cache pool
    outputs: dict[str, Any] = field(default_factory=dict)
    collectives: list[Collective] = field(default_factory=list)


_current = threading.local()


def enter(state: RankState) -> None:
    """Makes `state` that of this thread."""
    _current.state = state


def state() -> RankState:
    found: RankState = _current.state
    return found


def is_dynamic(size: int) -> bool:
    """Whether a size follows from the number of tokens in the call. Only told where that number is a large prime."""
    tokens = getattr(getattr(_current, "state", None), "tokens", 0)
    return tokens > 50 and size % tokens == 0
