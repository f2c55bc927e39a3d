"""Requests on real engines: batched, preempted, streamed, and with ranks that die."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.backends.embedded.conftest import Engines
from trtllm_pt.errors import MPI_OF_EMBEDDED, RunError, UsageError
from trtllm_pt.job.mpirun import find_mpirun
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.runtime.llm import LLM, RunResult
from trtllm_pt.runtime.remote import RemoteRuntime

KV_TOKENS = 640  # 40 pages for 16 slots: too few, so that some are preempted
BREAK = "llm = LLM(folder); llm._runtime.session.engine._caches.clear()"  # of rank 0 alone
PROMPT = "def read_text(path):\n    with open(path"


@pytest.fixture(scope="module")
def llm(engines: Engines) -> Iterator[LLM]:
    [folder] = engines("pretrained-2")
    with LLM(folder, kv_tokens=KV_TOKENS) as running:
        yield running


def workload(count: int, vocab_size: int) -> list[tuple[list[int], SamplingParams]]:
    draw = random.Random(11)
    requests = []
    for number in range(count):
        prompt = [draw.randrange(1, vocab_size) for _ in range(draw.choice((1, 3, 15, 16, 17, 40)))]
        length = draw.choice((1, 9, 30, 80))
        sampling = SamplingParams(max_tokens=length, end_id=-1, seed=number, log_probs=number % 5 == 0)
        if number % 3 == 0:
            sampling = replace(sampling, temperature=0.9, top_k=40, repetition_penalty=1.1)
        requests.append((prompt, sampling))
    return requests


def test_200_requests_get_what_each_gets_alone(llm: LLM) -> None:
    requests = workload(200, llm.manifest.model.vocab_size)
    prompts, sampling = [r[0] for r in requests], [r[1] for r in requests]
    together = llm.generate(prompts, sampling)
    assert llm._runtime.stats().preemptions > 0
    for (prompt, one), batched in zip(requests, together, strict=True):
        [alone] = llm.generate([prompt], one)
        assert (batched.token_ids, batched.log_probs) == (alone.token_ids, alone.log_probs)
        assert len(batched.token_ids) == one.max_tokens
    stats = llm._runtime.stats()
    assert (stats.active_requests, stats.waiting_requests) == (0, 0)


def test_drafts_change_no_output(engines: Engines, llm: LLM) -> None:
    requests = workload(60, llm.manifest.model.vocab_size)
    requests += [(prompt * 3, sampling) for prompt, sampling in requests[:20]]  # whose drafts are often right
    prompts, sampling = [r[0] for r in requests], [r[1] for r in requests]
    [folder] = engines("pretrained-2")
    with LLM(folder, kv_tokens=KV_TOKENS, speculative="ngram") as drafting:
        found = drafting.generate(prompts, sampling)
        stats = drafting._runtime.stats()
    for plain, drafted in zip(llm.generate(prompts, sampling), found, strict=True):
        assert (plain.token_ids, plain.log_probs) == (drafted.token_ids, drafted.log_probs)
    assert stats.drafted_tokens is not None and stats.accepted_tokens is not None
    assert 100 < stats.accepted_tokens < stats.drafted_tokens
    assert llm._runtime.stats().drafted_tokens is None


def test_streamed_text_joined_is_the_unstreamed(llm: LLM) -> None:
    sampling = SamplingParams(max_tokens=60, temperature=1.5, seed=3)
    *pieces, last = llm.stream(PROMPT, sampling)
    [whole] = llm.generate([PROMPT], sampling)
    assert isinstance(last, RunResult)
    assert "".join(map(str, pieces)) == last.text == whole.text
    assert len(pieces) > 10
    assert last.sync_points_seen == 2


def test_a_stop_string_ends_the_text(llm: LLM) -> None:
    [free] = llm.generate([PROMPT], SamplingParams(max_tokens=40))
    stop = free.text[7:12]
    [stopped] = llm.generate([PROMPT], SamplingParams(max_tokens=40), stop=[stop])
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop_words"


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ([1] * 128, {}, r"has 128 tokens and must be shorter than max_seq_len \(128\)"),
        ([99999], {}, r"token_ids\[0\] \(99999\) must be a token id between 0 and 4095"),
        ([], {}, "token_ids is empty"),
        ([1], {"temperature": -1.0}, r"temperature \(-1.0\)"),
    ],
)
def test_what_an_engine_cannot_take_is_refused(llm: LLM, prompt: list[int], sampling: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        llm.generate([prompt], SamplingParams(**sampling))


def test_a_prompt_and_output_beyond_the_engine_is_cut(llm: LLM) -> None:
    [result] = llm.generate([[1] * 120], SamplingParams(max_tokens=100, end_id=-1))
    assert (len(result.token_ids), result.finish_reason) == (8, "length")


def test_an_engine_leaves_gradients_on_in_the_process_of_its_owner(engines: Engines) -> None:
    [folder] = engines("pretrained-1")
    with LLM(folder) as one_rank:
        one_rank.generate([[1]], SamplingParams(max_tokens=2, end_id=-1))
        assert torch.is_grad_enabled()


def test_streams_may_be_read_by_turns(llm: LLM) -> None:
    prompts = ["import os", "class Queue:"]
    both = zip(*(llm.stream(prompt, SamplingParams(max_tokens=24, end_id=-1)) for prompt in prompts), strict=False)
    taken = [list(pieces) for pieces in zip(*both, strict=True)]
    for prompt, pieces in zip(prompts, taken, strict=True):
        [whole] = llm.generate([prompt], SamplingParams(max_tokens=24, end_id=-1))
        assert whole.text.startswith("".join(piece for piece in pieces if isinstance(piece, str)))


def test_a_refused_prompt_leaves_nothing_of_its_batch(llm: LLM) -> None:
    with pytest.raises(UsageError, match="must be a token id"):
        llm.generate([[1], [99999]])
    stats = llm._runtime.stats()
    assert (stats.active_requests, stats.waiting_requests) == (0, 0)


def test_an_engine_outlives_the_thread_that_started_it(engines: Engines) -> None:
    [folder] = engines("pretrained-2")
    with ThreadPoolExecutor(1) as pool:
        llm = pool.submit(LLM, folder).result()
    assert llm.generate([[1]], SamplingParams(max_tokens=4, end_id=-1))[0].token_ids
    llm.close()
    with pytest.raises(UsageError, match="this engine is closed"):
        llm.generate([[1]])
    llm.close()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("LLM(folder).generate(['import'])", 0),
        ("LLM(folder); raise ValueError('of the script')", 1),
        ("with LLM(folder) as llm:\n  llm.generate([[1]])\n  raise ValueError('of the script')", 1),
        (f"{BREAK}; llm.generate([[1]])", 1),
        (f"{BREAK}\ntry: llm.generate([[1]])\nexcept Exception: pass", 1),
    ],
    ids=["no close", "raises without close", "raises inside", "fails in a step", "goes on after a failed step"],
)
def test_scripts_under_mpirun_end(engines: Engines, body: str, status: int) -> None:
    [folder] = engines("pretrained-2")
    script = f"from trtllm_pt import LLM\nfolder = {str(folder)!r}\n{body}"
    command = [find_mpirun(MPI_OF_EMBEDDED), "-n", "2", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) == bool(status), done.stderr
    assert ("of the script" in done.stderr) == ("of the script" in body)


@pytest.mark.parametrize(
    ("end", "rank", "how"),
    [
        (signal.SIGKILL, 0, "(was killed by signal 9|has exited)"),
        (signal.SIGKILL, 1, "(was killed by signal 9|has exited)"),
        (signal.SIGSTOP, 1, "has not answered for 8 s"),
    ],
)
def test_a_rank_that_dies_or_hangs_ends_all_by_name(engines: Engines, end: int, rank: int, how: str) -> None:
    """mpirun may say how another ended, which it ended itself; then nobody knows of this one."""
    [folder] = engines("pretrained-2")
    with LLM(folder) as victim:
        assert isinstance(victim._runtime, RemoteRuntime)
        pids = victim._runtime.pids
        threading.Timer(0.3, os.kill, (pids[rank], end)).start()
        with pytest.raises(RunError, match=rf"rank {rank} \(process {pids[rank]}\) {how}"):
            while True:
                victim.generate([[1]] * 4, SamplingParams(max_tokens=100, end_id=-1))
        leftovers = victim._runtime.leftovers
    wait_until_gone(pids)
    assert leftovers and not any(path.exists() for path in leftovers)


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.05)


def test_an_owner_that_is_killed_takes_its_ranks_along(engines: Engines, tmp_path: Path) -> None:
    """What it leaves in TMPDIR and in /dev/shm is removed by the next owner, which leaves those of the living."""
    [folder] = engines("pretrained-2")
    script = f"""
import time
from trtllm_pt.runtime.llm import LLM
llm = LLM({str(folder)!r})
print(*llm._runtime.pids, *llm._runtime.leftovers, flush=True)
time.sleep(60)
"""

    def owner() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", script]
        return subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True)

    with owner() as killed, owner() as lives:
        (killed_pids, killed_files), (_, live_files) = processes_and_files(killed), processes_and_files(lives)
        killed.kill()
        wait_until_gone(killed_pids)
        assert len(killed_pids) == 2 and killed_files and live_files
        assert len(list(tmp_path.iterdir())) == 2
        with owner() as third:
            processes_and_files(third)
            assert not any(path.exists() for path in killed_files)
            assert all(path.exists() for path in live_files)
            assert len(list(tmp_path.iterdir())) == 2
            third.kill()
        lives.kill()


def processes_and_files(owner: subprocess.Popen[str]) -> tuple[list[int], list[Path]]:
    assert owner.stdout is not None
    words = owner.stdout.readline().split()
    return [int(word) for word in words if word.isdigit()], [Path(word) for word in words if not word.isdigit()]


def test_idle_ranks_do_not_spin(llm: LLM) -> None:
    assert isinstance(llm._runtime, RemoteRuntime)
    llm.generate([[1]], SamplingParams(max_tokens=2))
    time.sleep(0.2)
    before = [cpu_seconds(pid) for pid in llm._runtime.pids]
    time.sleep(1)
    used = [cpu_seconds(pid) - b for pid, b in zip(llm._runtime.pids, before, strict=True)]
    assert max(used) < 0.25, used  # a rank that spins uses the whole second


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_engine_runs_from_any_place_without_a_compiler(engines: Engines, tmp_path: Path) -> None:
    [folder] = engines("pretrained-2")
    moved = tmp_path / "elsewhere" / "demo"
    shutil.copytree(folder, moved)
    script = (
        f"from trtllm_pt.runtime.llm import LLM\nwith LLM('demo') as llm: print(llm.generate([{PROMPT!r}])[0].text)"
    )
    environment = {"PATH": "/nonexistent", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=moved.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with LLM(folder) as here:
        assert done.stdout == here.generate([PROMPT])[0].text + "\n"
