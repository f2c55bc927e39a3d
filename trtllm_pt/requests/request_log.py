"""Logs one line per request, with counts, times and the finish reason. The line never contains text."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from trtllm_pt.logs import fields


@dataclass(slots=True, kw_only=True)
class RequestLog:
    """Counts and times of one request, which may have several outputs. All times are in seconds of the same clock."""

    request_id: str
    prompt_tokens: int
    submitted: float
    output_tokens: int = 0  # tokens of all finished outputs
    longest: int = 0  # tokens of the longest finished output
    first: float | None = None  # time of the first token
    last: float = 0.0  # time of the latest token
    reasons: set[str] = field(default_factory=set)  # finish reasons of its outputs

    def tokens_came(self, now: float) -> None:
        """Record the time `now` at which tokens of any output arrived."""
        if self.first is None:
            self.first = now
        self.last = now

    def output_ended(self, tokens: int, reason: str) -> None:
        """Count a finished output. tokens: its number of tokens. reason: its finish reason."""
        self.output_tokens += tokens
        self.longest = max(self.longest, tokens)
        self.reasons.add(reason)

    def write(self, logger: logging.Logger) -> None:
        """Log the request at level INFO.

        TTFT runs from submission to the first token. TPOT is the time from the first to the last token, divided by the
        number of tokens after the first one in the longest output. Tokens that came at once have no TPOT.
        """
        ttft = None if self.first is None else self.first - self.submitted
        between = 0.0 if self.first is None else self.last - self.first
        tpot = between / (self.longest - 1) if between and self.longest > 1 else None
        values = fields(
            request_id=self.request_id,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            ttft_ms=None if ttft is None else round(ttft * 1e3, 2),
            tpot_ms=None if tpot is None else round(tpot * 1e3, 3),
            finish_reason=",".join(sorted(self.reasons)),
        )
        logger.info("request", extra=values)
