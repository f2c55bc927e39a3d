"""What `LLM`, `client` and the log say of times: a rate counts the tokens that came within the time it divides by."""

from __future__ import annotations

import logging

import pytest

from trtllm_pt.cli.client import closing_line
from trtllm_pt.requests.messages import Tokens
from trtllm_pt.requests.request_log import RequestLog
from trtllm_pt.runtime.llm import _Output

# When messages came in seconds after the request, and with how many tokens; TTFT, and tokens per second.
CASES: dict[str, tuple[list[tuple[float, int]], float, float]] = {
    "one by one": ([(2.0, 1), (3.0, 1), (4.0, 1)], 2.0, 1.0),
    "several at first": ([(2.0, 5), (4.0, 4)], 2.0, 2.0),
    "all at once": ([(2.0, 8), (2.001, 0)], 2.0, 4.0),
    "an end without tokens": ([(2.0, 1), (3.0, 1), (9.0, 0)], 2.0, 1.0),
}


def log() -> RequestLog:
    return RequestLog(request_id="1", prompt_tokens=1, submitted=100.0)


@pytest.mark.parametrize("case", CASES)
def test_rates(case: str) -> None:
    came, ttft, rate = CASES[case]
    output = _Output(1, None, 100.0, log())
    for number, (after, tokens) in enumerate(came):
        last = number == len(came) - 1
        output.take(Tokens(id=1, token_ids=(5,) * tokens, finish_reason="length" if last else None), 100.0 + after)
    found = output.result(None)
    assert (found.ttft_s, found.tokens_per_s) == (ttft, pytest.approx(rate))


def test_the_client_says_no_rate_of_tokens_that_came_at_once() -> None:
    assert closing_line(100.0, [(102.0, 8)]) == "8 tokens · TTFT 2.0 s"
    assert closing_line(100.0, [(102.0, 5), (104.0, 4)]) == "9 tokens · TTFT 2.0 s · 2.0 tokens/s"


def test_the_log_has_no_tpot_of_tokens_that_came_at_once(caplog: pytest.LogCaptureFixture) -> None:
    for times, tpot in (((102.0,), None), ((102.0, 102.5), 500.0 / 7)):
        one = log()
        for now in times:
            one.tokens_came(now)
        one.output_ended(8, "length")
        with caplog.at_level(logging.INFO):
            one.write(logging.getLogger("tests"))  # what other tests do to the package's own logger stays there
        found = caplog.records[-1].__dict__
        assert found["fields"]["tpot_ms"] == (None if tpot is None else pytest.approx(tpot, abs=1e-3))
