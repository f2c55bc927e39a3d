"""Engines of two ranks on the stand-in, each rank a process: the commands, the server, and ranks that die."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.backends.tensorrt.conftest import Engines
from tests.backends.tensorrt.on_ranks import outputs
from tests.backends.tensorrt.requests import PROMPT
from tests.backends.tensorrt.running import running
from tests.backends.tensorrt.standin.plans import Command
from tests.serving.client import END, Stream, ask, ended_early, events, ids_of, post, tokens
from tests.serving.conftest import Served, needs_triton
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.serving.triton.server import free_ports

pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_two_ranks_do_what_one_does_until_one_dies(engines: Engines, command: Command, victim: int) -> None:
    """The steps of all ranks meet in the plans' collectives; one message of rank 0 announces each."""
    done = command(engines("pretrained", 2), str(victim), module="tests.backends.tensorrt.on_ranks")
    found: dict[str, Any] = json.loads(done.stdout)
    with running(engines("pretrained", 1)) as llm:
        expected = json.loads(json.dumps(outputs(llm)))
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, abs=2e-3) if name == "scores" else value), name
    assert expected["alone"] and expected["streamed"] and len(expected["scores"]) > 60
    assert found["hops"] == 1
    assert re.search(rf"rank {victim} \(process \d+\) (was killed by signal 9|has exited)", found["error"])


def test_run(engines: Engines, command: Command) -> None:
    done = command("run", engines("pretrained", 2), PROMPT, "--max-tokens", "8", "--json")
    found = json.loads(done.stdout)
    with running(engines("pretrained", 1)) as llm:
        [one] = llm.generate([PROMPT], SamplingParams(max_tokens=8))
    assert tuple(found["token_ids"]) == one.token_ids and found["text"] == one.text


def test_fewer_gpus_than_ranks(engines: Engines, command: Command) -> None:
    (line,) = command("run", engines("pretrained", 2), "x", status=2, STAND_IN_GPUS="1").stderr.splitlines()
    assert line.endswith("2 ranks run on this machine and need a GPU each, but 1 are visible")


@pytest.mark.slow
def test_benchmarks(engines: Engines, command: Command) -> None:
    sizes = ("--batch_size", "2", "--input_output_len", "8,4", "--num_runs", "2", "--duration", "0")
    latency = json.loads(command("bench", "latency", engines("pretrained", 2), *sizes, "--json").stdout)
    assert "tensorrt" in json.dumps(latency)


@contextmanager
def serving(command: Command, folder: Path) -> Iterator[tuple[Served, str]]:
    """`trtllm-pt serve`: where Triton listens, and the address of OpenAI's endpoints."""
    http, grpc, metrics, openai = free_ports(4)
    ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--openai-port", openai]
    with command.start("serve", folder, *map(str, ports)) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("curl"):
                    break
            else:
                raise AssertionError(process.communicate()[1])
            yield Served(folder, http, grpc, metrics), f"http://127.0.0.1:{openai}/v1"
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()


@needs_triton
@pytest.mark.slow
def test_triton_and_openai(engines: Engines, command: Command) -> None:
    folder = engines("pretrained", 2)
    with running(engines("pretrained", 1)) as llm:
        ids = list(llm.encode(PROMPT))
        [greedy] = llm.generate([PROMPT], SamplingParams(max_tokens=12))
        sampling = SamplingParams(max_tokens=12, end_id=-1, temperature=0.9, top_k=30, seed=5)
        [drawn] = llm.generate([PROMPT], sampling)
    with serving(command, folder) as (served, openai):
        text = {"text_input": PROMPT, "max_tokens": 12}
        assert post(served, "tensorrt_llm_bls", text)[1]["text_output"] == greedy.text
        pieces = [event["text_output"] for event in events(served, "tensorrt_llm_bls", text | {"stream": True})]
        assert "".join(pieces) == greedy.text and len(pieces) > 3
        fields = {"temperature": 0.9, "runtime_top_k": 30, "seed": 5, "end_id": END, "return_log_probs": True}
        answers = ask(served, "tensorrt_llm", tokens(ids, 12, streaming=True, **fields))
        assert ids_of(answers) == list(drawn.token_ids) and len(answers) == 12
        with ended_early(served, 100):
            stream = Stream(served, "tensorrt_llm", tokens(ids, 100, streaming=True, end_id=END))
            next(iter(stream))
            stream.close()
        body = {"model": folder.name, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "logprobs": 2, "echo": True}
        request = urllib.request.Request(
            f"{openai}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            (choice,) = json.loads(answer.read())["choices"]
        assert choice["text"] == PROMPT + greedy.text
        assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + len(greedy.token_ids)


@needs_triton
@pytest.mark.slow
def test_a_repository_serves_the_same(engines: Engines, command: Command, tmp_path: Path) -> None:
    command("repo", engines("pretrained", 2), "-o", tmp_path / "repository")
    done = command("client", "--serve", tmp_path / "repository", PROMPT, "--max-tokens", "8")
    with running(engines("pretrained", 1)) as llm:
        [one] = llm.generate([PROMPT], SamplingParams(max_tokens=8))
    assert one.text in done.stdout


@needs_triton
@pytest.mark.slow
def test_a_server_without_gpus_says_why(engines: Engines, command: Command) -> None:
    done: subprocess.CompletedProcess[str] = command("serve", engines("pretrained", 2), status=None, STAND_IN_GPUS="0")
    assert done.returncode
    assert "no NVIDIA GPU is visible here" in done.stderr
