"""Constrained output: a guide becomes a grammar, and the grammar says which tokens may come next. llguidance does both.

Its limits bound the work of each call. They count operations and not time, so every machine accepts the same guides.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from trtllm_pt.batching.guide import described, one_line, translated
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.messages import GuideType, SamplingParams
from trtllm_pt.text.tokenizer import end_ids

Bools = npt.NDArray[np.bool_]
# A schema of a few hundred properties is within these bounds. The last one bounds the time of a step: an ambiguous
# grammar has more and more ways to read an output.
_LIMITS = LLParserLimits(initial_lexer_fuel=50_000, max_grammar_size=50_000, max_items_in_row=500, verbose_errors=False)


class Vocabulary:
    """The tokens of a model, as llguidance needs them.

    folder: of the tokenizer. size: of the model's vocabulary. Raises UsageError without a tokenizer, and for one that
    llguidance cannot read.
    """

    def __init__(self, folder: Path, size: int) -> None:
        path = folder / "tokenizer.json"
        if not path.exists():
            raise UsageError("guide_type needs a tokenizer, and this engine has none")
        first, others = end_ids(folder)
        self.ends = [token for token in (first, *others) if token >= 0]
        try:
            self._tokens = LLTokenizer(str(path), eos_token=self.ends or None)
        except ValueError as error:
            raise UsageError(f"guide_type is not supported with this model's tokenizer: {error}") from None
        self._size = size

    def compile(self, guide_type: GuideType, guide: str) -> Grammar:
        """Raises UsageError, with the place in the guide, for a guide that is wrong, not supported or too complex."""
        matcher = LLMatcher(self._tokens, translated(guide_type, guide), log_level=0, limits=_LIMITS)
        matcher.compute_bitmask()  # the first mask takes longest, and is computed here for all outputs
        if matcher.is_error():
            raise UsageError(described(guide_type, guide, matcher.get_error(), self._error))
        return Grammar(matcher, self)

    def _error(self, translated: str) -> str:
        return LLMatcher.validate_grammar(translated, self._tokens, limits=_LIMITS)

    def forbidden(self, mask: bytes) -> Bools:
        """Return which tokens a mask of llguidance forbids [V], and all end tokens."""
        allowed = np.unpackbits(np.frombuffer(mask, np.uint8), count=self._tokens.vocab_size, bitorder="little")
        forbidden = np.ones(self._size, np.bool_)
        known = min(self._size, len(allowed))
        np.equal(allowed[:known], 0, out=forbidden[:known])
        forbidden[self._tokens.eos_tokens] = True
        return forbidden


@dataclass(frozen=True, slots=True)
class Grammar:
    """A compiled guide, for any number of outputs."""

    matcher: LLMatcher  # before the first token
    vocabulary: Vocabulary

    def constraint(self, sampling: SamplingParams) -> Constraint:
        """Return the constraint of a new output. The request's end tokens may come only where the grammar can end."""
        words = {word[0] for word in sampling.stop_words if len(word) == 1}
        ends = {-1 if sampling.end_id is None else sampling.end_id, *sampling.stop_token_ids}
        ends |= words.intersection(self.vocabulary.ends)
        return Constraint(self.matcher.deep_copy(), self.vocabulary, ends - {-1})


class Constraint:
    """What the rest of one output may be."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, ends: Collection[int]) -> None:
        self._matcher, self._vocabulary, self._ends = matcher, vocabulary, list(ends)
        self._forbidden: Bools | None = None  # None: not computed since the last token

    def forbidden(self) -> Bools:
        """Return which tokens must not come next [V]."""
        if self._forbidden is None:
            self._forbidden = self._vocabulary.forbidden(self._matcher.compute_bitmask())
            if self._matcher.is_error():
                self._forbidden[:] = True
            else:  # an end token can also be one that the grammar takes for text
                self._forbidden[self._ends] = not self._matcher.is_accepting()
        return self._forbidden

    def take(self, token: int) -> bool:
        """Add a token to the output. Returns whether another one may follow."""
        self._forbidden = None
        self._matcher.consume_token(token)
        return self._matcher.is_error() or not self._matcher.is_stopped()

    @property
    def error(self) -> str | None:
        """Why no token can follow, if this output made the grammar too complex."""
        return f"guide: {one_line(self._matcher.get_error())}" if self._matcher.is_error() else None
