"""NVIDIA's perf_analyzer as a client: it comes in tritonclient's wheel. Its larger tools: `make serving-peers`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.serving.conftest import Served, needs_triton
from tests.serving.peers import perf_analyzer
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.runtime.llm import LLM

pytestmark = needs_triton

PROMPTS = ["def binary_search(", "import os\n", "class Queue:\n    def "]
TOKENS, REQUESTS = 24, 30


def test_perf_analyzer_streams_what_the_engine_writes(served: Served, engines: Path, tmp_path: Path) -> None:
    with LLM(engines) as llm:
        wanted = {result.text for result in llm.generate(PROMPTS, SamplingParams(max_tokens=TOKENS))}
    data = [{"text_input": [prompt], "max_tokens": [TOKENS], "stream": [True]} for prompt in PROMPTS]
    (tmp_path / "in.json").write_text(json.dumps({"data": data}))
    command = ["perf_analyzer", "-m", "tensorrt_llm_bls", "-i", "grpc", "--streaming"]
    command += ["-u", f"127.0.0.1:{served.grpc}", "--input-data", str(tmp_path / "in.json")]
    command += ["--concurrency-range", "4", "--request-count", str(REQUESTS)]
    command += ["--profile-export-file", str(tmp_path / "out.json")]
    done = subprocess.run(
        command, env=perf_analyzer(tmp_path), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [experiment] = json.loads((tmp_path / "out.json").read_text())["experiments"]
    assert len(experiment["requests"]) >= REQUESTS
    assert {text_of(request) for request in experiment["requests"]} == wanted


def text_of(request: dict[str, Any]) -> str:
    return "".join(answer.get("text_output", "") for answer in request["response_outputs"])
