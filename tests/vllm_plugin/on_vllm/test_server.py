"""vLLM's OpenAI server on 2 ranks, asked by the package `openai`."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from tests.configs import PRETRAINED
from trtllm_pt.checkpoint.load import load_reference

pytest.importorskip("vllm", reason="make test-vllm")
PROMPT, TOKENS = "def binary_search(", 24


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from openai import OpenAI

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(PRETRAINED)]
    options = "--served-model-name pt --host 127.0.0.1 --dtype float32 --tensor-parallel-size 2 --max-model-len 256"
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0|1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as printed:
        server = subprocess.Popen(
            [*command, *options.split(), "--port", port], env=environment, stdout=printed, stderr=printed
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120)
    finally:
        server.terminate()
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(500):
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="module")
def expected() -> tuple[str, list[float]]:
    """The reference's greedy text, and the log-probability of each token."""
    tokenizer, model = Tokenizer.from_file(str(PRETRAINED / "tokenizer.json")), load_reference(PRETRAINED)
    prompt = tokenizer.encode(PROMPT).ids
    tokens, logprobs = list(prompt), []
    with torch.no_grad():
        for _ in range(TOKENS):
            best = model(torch.tensor([tokens]))[0, -1].log_softmax(-1).max(-1)
            tokens.append(int(best.indices))
            logprobs.append(float(best.values))
    return tokenizer.decode(tokens)[len(tokenizer.decode(prompt)) :], logprobs


def asked(client: Any, **options: Any) -> Any:
    return client.completions.create(model="pt", prompt=PROMPT, temperature=0, max_tokens=TOKENS, **options)


@pytest.mark.timeout(600)
def test_streamed_with_logprobs(client: Any, expected: tuple[str, list[float]]) -> None:
    parts = list(asked(client, stream=True, logprobs=1, extra_body={"ignore_eos": True}))
    choices = [part.choices[0] for part in parts if part.choices]
    assert "".join(choice.text for choice in choices) == expected[0]
    assert sum(bool(choice.text) for choice in choices) > TOKENS // 2  # not one piece
    logprobs = [value for choice in choices if choice.logprobs for value in choice.logprobs.token_logprobs]
    assert logprobs == pytest.approx(expected[1], abs=1e-3)


def test_prompt_logprobs(client: Any) -> None:
    """What lm-evaluation-harness asks for: the log-probabilities of the prompt itself."""
    choice = asked(client, echo=True, logprobs=1).choices[0]
    assert choice.text.startswith(PROMPT) and choice.logprobs.token_logprobs[0] is None
    tokens = Tokenizer.from_file(str(PRETRAINED / "tokenizer.json")).encode(PROMPT).ids
    with torch.no_grad():
        logits = load_reference(PRETRAINED)(torch.tensor([tokens]))[0].log_softmax(-1)
    wanted = [float(logits[place, token]) for place, token in enumerate(tokens[1:])]
    assert choice.logprobs.token_logprobs[1 : len(tokens)] == pytest.approx(wanted, abs=1e-3)


def test_structured_output(client: Any) -> None:
    answer = asked(client, extra_body={"structured_outputs": {"regex": "[0-9]{3}-[a-f]{2}"}}).choices[0].text
    assert re.fullmatch("[0-9]{3}-[a-f]{2}", answer)


def test_benchmark_of_vllm(client: Any) -> None:
    """`vllm bench serve`, whose command line is not installed with vllm-cpu."""
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    options = f"--model pt --tokenizer {PRETRAINED} --base-url {str(client.base_url).removesuffix('/v1/')} --ignore-eos"
    options += " --dataset-name random --random-input-len 16 --random-output-len 8 --num-prompts 4"
    found = serve.main(parser.parse_args(options.split()))
    assert (found["completed"], found["total_output_tokens"]) == (4, 4 * 8)
