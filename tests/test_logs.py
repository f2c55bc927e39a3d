"""Log records as lines: of text, and of JSON."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from trtllm_pt import logs
from trtllm_pt.requests.request_log import RequestLog

RECORD = {"request_id": "a b\nforged", "prompt_tokens": 3, "ttft_ms": None}


def record(**values: object) -> logging.LogRecord:
    made = logging.LogRecord("trtllm_pt.x", logging.INFO, __file__, 1, "request", (), None)
    made.__dict__.update(logs.fields(**values))
    return made


def test_a_record_is_one_line_of_text_whatever_its_values_are() -> None:
    line = logs.TextFormatter().format(record(**RECORD))
    assert line.endswith(r'request request_id="a b\nforged" prompt_tokens=3')
    assert " INFO trtllm_pt.x[" in line and "\n" not in line


def test_a_record_is_an_object_of_json() -> None:
    line = logs.JsonFormatter().format(record(**RECORD))
    found = json.loads(line)
    assert "\n" not in line
    assert {**found, **RECORD} == found
    assert (found["level"], found["logger"], found["message"]) == ("info", "trtllm_pt.x", "request")


@pytest.mark.parametrize("formatter", [logs.TextFormatter(), logs.JsonFormatter()])
def test_a_traceback_is_logged(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("cause")
    except ValueError:
        made = record()
        made.exc_info = sys.exc_info()
    assert "ValueError: cause" in formatter.format(made)


def test_a_process_of_a_job_logs_to_the_file_and_from_the_level_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = logging.getLogger("trtllm_pt")
    before = package.handlers, package.level
    monkeypatch.setenv(logs.LEVEL, "INFO")
    monkeypatch.setenv(logs.JSON, "1")
    monkeypatch.setenv(logs.FILE, str(tmp_path / "log"))
    try:
        logs.set_up_from_environment()
        logging.getLogger("trtllm_pt.a").info("heard", extra=logs.fields(rank=1))
        logging.getLogger("trtllm_pt.a").debug("not heard")
    finally:
        package.handlers, level = before
        package.setLevel(level)
    [line] = (tmp_path / "log").read_text().splitlines()
    assert json.loads(line)["message"] == "heard" and json.loads(line)["rank"] == 1


def test_a_requests_line_has_its_counts_and_times(caplog: pytest.LogCaptureFixture) -> None:
    request = RequestLog(request_id="r", prompt_tokens=7, submitted=1.0)
    for now in (1.5, 2.0, 2.5):
        request.tokens_came(now)
    request.output_ended(5, "length")
    request.output_ended(1, "end_id")
    with caplog.at_level(logging.INFO, "trtllm_pt"):
        request.write(logging.getLogger("trtllm_pt.a"))
    [line] = caplog.records
    assert line.fields == {  # type: ignore[attr-defined]
        "request_id": "r",
        "prompt_tokens": 7,
        "output_tokens": 6,
        "ttft_ms": 500.0,
        "tpot_ms": 250.0,
        "finish_reason": "end_id,length",
    }


def test_a_request_without_tokens_has_no_times(caplog: pytest.LogCaptureFixture) -> None:
    request = RequestLog(request_id="r", prompt_tokens=7, submitted=1.0)
    request.output_ended(0, "cancelled")
    with caplog.at_level(logging.INFO, "trtllm_pt"):
        request.write(logging.getLogger("trtllm_pt.a"))
    [line] = caplog.records
    assert (line.fields["ttft_ms"], line.fields["tpot_ms"]) == (None, None)  # type: ignore[attr-defined]
