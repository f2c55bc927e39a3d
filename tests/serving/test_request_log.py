"""What `serve` and `run` log of requests, over both ports: ids, counts and times, and never text."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.serving.client import END, post
from tests.serving.conftest import needs_triton
from tests.serving.test_processes import serve

WORD = "zanzibar"  # of the prompts: no line may have it
KEY = "sk-timbuktu"
ENGINE, PORT, SERVER = "serving.triton.models.engine", "serving.openai.app", "serving.triton.server"
RANK = "backends.embedded.session"


@needs_triton
def test_serve_logs_a_line_for_each_request(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And shows the key that clients must send neither there nor in a process list."""
    monkeypatch.setenv("TRTLLM_PT_API_KEY", KEY)
    with serve(engines, options=("--log-level", "info", "--log-json")) as (process, served, printed):
        body = {"id": "mine", "text_input": f"def {WORD}(", "max_tokens": 8, "end_id": END}
        assert post(served, "tensorrt_llm_bls", body)[0] == 200
        tokens = {"id": "twelve", "input_ids": [5, 6], "input_lengths": 2, "request_output_len": 0}
        assert post(served, "tensorrt_llm", tokens)[0] == 400
        [url] = re.findall("http.*/v1", "\n".join(printed))
        with pytest.raises(urllib.error.HTTPError, match="Unauthorized"):
            urllib.request.urlopen(f"{url}/models", timeout=60)
        processes = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
        assert str(engines) in processes and KEY not in processes
        whole = ask_openai(url, {"prompt": f"def {WORD}(", "max_tokens": 8, "ignore_eos": True})
        refused = ask_openai(url, {"prompt": f"def {WORD}(", "top_k": -1})
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert WORD not in err and KEY not in err and KEY not in "\n".join(printed)
    lines = err.splitlines()
    assert f"loading {engines} …" in lines  # a message to the user, not of the log
    records = [json.loads(line) for line in lines if not line.startswith("loading")]

    def of(module: str) -> list[dict[str, Any]]:
        return [record for record in records if record["logger"] == f"trtllm_pt.{module}"]

    assert [record["message"] for record in of(SERVER)] == ["tritonserver started", "tritonserver exited"]
    assert {record["rank"] for record in of(RANK)} == {0, 1}
    text, invalid, openai = of(ENGINE)
    assert text["request_id"].startswith("mine-")
    assert (text["output_tokens"], text["finish_reason"]) == (8, "length")
    assert (invalid["request_id"], invalid["finish_reason"]) == ("twelve", "invalid")
    usage = whole["body"]["usage"]
    assert (openai["prompt_tokens"], openai["output_tokens"]) == (usage["prompt_tokens"], 8)
    assert openai["ttft_ms"] > 0 and openai["tpot_ms"] > 0
    assert openai["request_id"] == whole["body"]["id"]
    unknown, answered, wrong = of(PORT)
    assert unknown["status"] == 401
    assert (answered["request_id"], answered["status"]) == (whole["body"]["id"], 200)
    assert (wrong["request_id"], wrong["status"]) == (refused["id"], 400)
    assert answered["path"] == "/v1/completions"


def ask_openai(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The id in the header, and the body, of an answer."""
    headers = {"Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return {"id": answer.headers["X-Request-Id"], "body": json.loads(answer.read())}
    except urllib.error.HTTPError as error:
        return {"id": error.headers["X-Request-Id"], "body": json.loads(error.read())}


def test_run_logs_a_line_for_each_request(engines: Path) -> None:
    prompts = [f"def {WORD}(", f"class {WORD}:"]
    command = [sys.executable, "-m", "trtllm_pt", "--log-level", "info", "run", str(engines), *prompts]
    done = subprocess.run([*command, "--max-tokens", "8"], capture_output=True, text=True, timeout=120, check=True)
    assert WORD in done.stdout and WORD not in done.stderr
    line = r"INFO trtllm_pt.runtime.llm\[\d+\]: request request_id=\d prompt_tokens=\d+ output_tokens=8 ttft_ms="
    assert len(re.findall(line, done.stderr)) == 2
    assert len(re.findall(r"INFO trtllm_pt.backends.embedded.session\[\d+\]: engine loaded", done.stderr)) == 2


def test_by_default_nothing_is_logged(engines: Path) -> None:
    command = [sys.executable, "-m", "trtllm_pt", "run", str(engines), "def f(", "--max-tokens", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "trtllm_pt." not in done.stderr
