"""How users ask for speculative decoding."""

from __future__ import annotations

import re

import pytest

from trtllm_pt.errors import UsageError
from trtllm_pt.requests.speculation import draft_tokens


@pytest.mark.parametrize(("asked", "tokens"), [(None, 0), ("ngram", 8), ("ngram:1", 1), ("ngram:64", 64)])
def test_draft_tokens(asked: str | None, tokens: int) -> None:
    assert draft_tokens(asked) == tokens


@pytest.mark.parametrize("asked", ["", "medusa", "ngram:", "ngram:0", "ngram:65", "ngram:-1", "ngram:4:2", "NGRAM"])
def test_refused(asked: str) -> None:
    message = f"speculative ({asked!r}) must be ngram or ngram:K; K (1 to 64) is a draft's most tokens"
    with pytest.raises(UsageError, match=re.escape(message)):
        draft_tokens(asked)
