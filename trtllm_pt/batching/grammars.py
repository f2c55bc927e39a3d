"""The grammars of an engine's requests: compiled in a thread, so that steps go on, and kept for further requests."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtllm_pt.errors import INSTALL_EMBEDDED, UsageError
from trtllm_pt.requests.messages import GuideType, Request

if TYPE_CHECKING:
    from trtllm_pt.batching.grammar import Constraint, Grammar, Vocabulary

_KEPT = 64  # grammars; the one that was not asked for the longest goes first
_SECONDS = 10.0  # the longest that a request waits for its grammar


@dataclass(frozen=True, slots=True)
class _Held:
    request: Request
    grammar: Future[Grammar]
    deadline: float  # on time.monotonic's clock


class Grammars:
    """Holds requests until their guides are compiled. Bad guides are kept, too.

    tokenizer: the folder of the tokenizer. vocab_size: of the model.
    """

    def __init__(self, tokenizer: Path, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._vocabulary: Vocabulary | None = None  # the thread reads it with the first guide
        self._thread = ThreadPoolExecutor(1)
        self._kept: OrderedDict[tuple[GuideType, str], Future[Grammar]] = OrderedDict()
        self._held: dict[int, _Held] = {}  # by the request's id

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._held

    def __len__(self) -> int:
        """Return the number of requests that are held."""
        return len(self._held)

    def hold(self, request: Request, guide_type: GuideType) -> None:
        """Hold a request until its grammar is compiled."""
        grammar = self._grammar(guide_type, request.sampling.guide)
        self._held[request.id] = _Held(request, grammar, time.monotonic() + _SECONDS)

    def drop(self, request_id: int) -> None:
        """Forget a request that is held."""
        del self._held[request_id]

    def wait(self, seconds: float) -> None:
        """Wait until a grammar is compiled, but at most so many seconds."""
        wait([held.grammar for held in self._held.values()], seconds, "FIRST_COMPLETED")

    def ready(self) -> Iterator[tuple[Request, Constraint | BaseException]]:
        """Yield the requests that are held no longer, with their constraint or with the error of their guide."""
        for held in [*self._held.values()]:
            if held.grammar.done() or time.monotonic() > held.deadline:
                del self._held[held.request.id]
                yield held.request, _result(held)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _grammar(self, guide_type: GuideType, guide: str) -> Future[Grammar]:
        key = guide_type, guide
        if key not in self._kept:
            self._kept[key] = self._thread.submit(self._compile, guide_type, guide)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _compile(self, guide_type: GuideType, guide: str) -> Grammar:
        if self._vocabulary is None:
            try:
                from trtllm_pt.batching.grammar import Vocabulary
            except ModuleNotFoundError as error:
                raise UsageError(f"guide_type needs {error.name}: `{INSTALL_EMBEDDED}`") from None
            self._vocabulary = Vocabulary(self._tokenizer, self._vocab_size)
        return self._vocabulary.compile(guide_type, guide)


def _result(held: _Held) -> Constraint | BaseException:
    if not held.grammar.done():
        return UsageError(f"guide was not compiled within {_SECONDS:.0f} s: use a smaller one")
    error = held.grammar.exception()
    return held.grammar.result().constraint(held.request.sampling) if error is None else error
