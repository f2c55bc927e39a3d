"""`trtllm-pt client` against the real server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.serving.conftest import Served, needs_triton
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.runtime.llm import LLM
from trtllm_pt.serving.triton.server import free_ports

PROMPT = "def binary_search("


def client(
    *arguments: str, folder: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """folder: the working directory. env: more variables of the environment."""
    command = [str(Path(sys.prefix) / "bin" / "trtllm-pt"), "client", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=120, check=False
    )


@needs_triton
def test_it_prints_what_the_engine_writes(served: Served, engines: Path) -> None:
    url = f"http://127.0.0.1:{served.http}"
    greedy, sampled = client(url, PROMPT), client(url, PROMPT, "--temperature", "0.75", "--top-k", "40", "--seed", "3")
    stopped = client(url, PROMPT, "--stop", "arg")
    with LLM(engines) as llm:
        [one] = llm.generate([PROMPT])
        [other] = llm.generate([PROMPT], SamplingParams(temperature=0.75, top_k=40, seed=3))
        [short] = llm.generate([PROMPT], stop=["arg"])
    assert greedy.stdout == f"{PROMPT}{one.text}\n"
    assert sampled.stdout == f"{PROMPT}{other.text}\n"
    assert stopped.stdout == f"{PROMPT}{short.text}{'arg' if short.finish_reason == 'stop_words' else ''}\n"
    assert greedy.stderr.startswith("64 tokens · TTFT ")


@needs_triton
def test_a_server_of_its_own(engines: Path, tmp_path: Path) -> None:
    """Behind a proxy that no request of ours may use, and in a folder from which no process may import."""
    own = shutil.copytree(engines, tmp_path / "own")
    (tmp_path / "folder" / "trtllm_pt").mkdir(parents=True)
    for name in ("trtllm_pt/__init__.py", "queue.py", "numpy.py"):
        (tmp_path / "folder" / name).write_text("raise SystemExit('imported from the working directory')")
    [closed] = free_ports(1)
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), f"http://127.0.0.1:{closed}")
    done = client("--serve", "../own", PROMPT, "--max-tokens", "16", folder=tmp_path / "folder", env=proxies)
    with LLM(engines) as llm:
        [alone] = llm.generate([PROMPT], SamplingParams(max_tokens=16))
    assert (done.returncode, done.stdout) == (0, f"{PROMPT}{alone.text}\n")
    schedule = "8 tracks on 2 ranks: A─F─A─F─A─F─●─A─F─A─F─A─F─●, 2 all-reduces per token, 12 with tensor parallelism"
    assert schedule in done.stderr
    assert "16 tokens · TTFT " in done.stderr
    assert done.stderr.endswith("the server and its ranks have exited\n")
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(own) not in listed


@needs_triton
def test_what_the_server_refuses_is_told(served: Served) -> None:
    done = client(f"http://127.0.0.1:{served.http}", "x " * 2000)
    assert (done.returncode, done.stdout) == (2, "")
    assert "must be shorter than max_seq_len (1024)" in done.stderr


def test_no_server() -> None:
    [port] = free_ports(1)
    done = client(f"http://127.0.0.1:{port}", PROMPT)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"no server answers at http://127.0.0.1:{port}" in done.stderr
    assert "start one with `trtllm-pt serve`" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "b", "c"), "client takes one PROMPT, not 3"),
        (("--serve", "x", "http://127.0.0.1", "b"), "--serve (x) and URL (http://127.0.0.1) cannot be combined"),
        (("--serve", "/nowhere", "b"), "there is no engine directory at /nowhere"),
        (("nonsense", "b"), "'nonsense' is not the address of a server"),
        ((), "Missing argument"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str) -> None:
    done = client(*arguments)
    assert done.returncode == 2 and message in done.stderr
