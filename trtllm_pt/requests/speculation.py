"""How users ask for speculative decoding: `ngram` or `ngram:K`, with drafts of at most K tokens."""

from __future__ import annotations

from trtllm_pt.errors import UsageError

METHOD = "ngram"
DEFAULT, MOST = 8, 64  # tokens of a draft


def draft_tokens(speculative: str | None) -> int:
    """Return the most tokens of a draft; 0 for None. Raises UsageError for anything but `ngram` and `ngram:K`."""
    if speculative is None:
        return 0
    method, colon, number = speculative.partition(":")
    count = int(number) if number.isdecimal() else 0
    if method != METHOD or (colon and not 1 <= count <= MOST):
        raise UsageError(
            f"speculative ({speculative!r}) must be {METHOD} or {METHOD}:K; K (1 to {MOST}) is a draft's most tokens"
        )
    return count if colon else DEFAULT
