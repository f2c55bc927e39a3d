"""`make soak`: 64 clients on one server. Status 1 unless each gets what a lone request gets, and memory stays."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.interruption import descendants
from tests.serving.client import END, ask, figures, ids_of, tokens
from tests.serving.conftest import Served
from trtllm_pt.backends import read_engine
from trtllm_pt.requests.messages import SamplingParams
from trtllm_pt.runtime.llm import LLM
from trtllm_pt.serving.triton.repository import write_repository
from trtllm_pt.serving.triton.server import Address, Server

CLIENTS = 64
PROMPT_TOKENS, NEW_TOKENS = (3, 17, 40, 120, 400), (8, 24, 48)
WARM_SECONDS = 20.0  # after which the memory must no longer grow
GROWTH_MB = 8.0  # of all processes together, for what allocators keep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    arguments = parser.parse_args()
    wanted = lone_answers(arguments.engines)
    with tempfile.TemporaryDirectory() as scratch:
        write_repository(arguments.engines, Path(scratch) / "repository")
        address = Address.free()
        with Server(Path(scratch) / "repository", address, Path(scratch) / "log") as server:
            server.wait_until_ready()
            served = Served(arguments.engines, address.http, address.grpc, address.metrics)
            run = Run(served, wanted, arguments.seconds)
            run.go()
            status = server.close()
    print(f"the server ended with status {status}")
    sys.exit(1 if run.wrong or run.grown > GROWTH_MB or status else 0)


def lone_answers(engines: Path) -> list[tuple[list[int], list[int]]]:
    """Prompts of random tokens, each with its greedy output, one after the other and without a server."""
    draw, vocab_size = random.Random(1), read_engine(engines).model.vocab_size
    prompts = [[draw.randrange(1, vocab_size) for _ in range(draw.choice(PROMPT_TOKENS))] for _ in range(24)]
    samplings = [SamplingParams(max_tokens=draw.choice(NEW_TOKENS), end_id=-1) for _ in prompts]
    with LLM(engines) as llm:
        results = [llm.generate([prompt], sampling)[0] for prompt, sampling in zip(prompts, samplings, strict=True)]
    return [(prompt, list(result.token_ids)) for prompt, result in zip(prompts, results, strict=True)]


class Run:
    """The clients, and what they count."""

    def __init__(self, served: Served, wanted: list[tuple[list[int], list[int]]], seconds: float) -> None:
        self.served, self.wanted, self.seconds = served, wanted, seconds
        self.requests = self.tokens = 0
        self.wrong: list[str] = []
        self.grown = 0.0
        self._lock = threading.Lock()

    def go(self) -> None:
        began = time.monotonic()
        clients = [threading.Thread(target=self._client, args=(n, began + self.seconds)) for n in range(CLIENTS)]
        for client in clients:
            client.start()
        time.sleep(min(WARM_SECONDS, self.seconds / 2))
        before = memory()
        for client in clients:
            client.join()
        seconds, after = time.monotonic() - began, memory()
        self.grown = sum(after.values()) - sum(before.values())
        print(f"{CLIENTS} clients, {seconds:.0f} s: {self.requests} requests, {self.tokens} tokens, all compared")
        print(f"{len(self.wrong)} wrong or failed{': ' + self.wrong[0] if self.wrong else ''}")
        for name in sorted(after):
            print(f"{name}: {before[name]:.1f} MB after {WARM_SECONDS:.0f} s, {after[name]:.1f} MB at the end")
        left = figures(self.served)
        names = ("nv_trt_llm_request_metrics/active", "nv_trt_llm_kv_cache_block_metrics/used")
        print("left: {:.0f} requests, {:.0f} KV pages".format(*(left[name] for name in names)))

    def _client(self, number: int, end: float) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            prompt, wanted = draw.choice(self.wanted)
            try:
                got = ids_of(ask(self.served, "tensorrt_llm", tokens(prompt, len(wanted), end_id=END, streaming=True)))
                fault = "" if got == wanted else f"{got} instead of {wanted}"
            except Exception as error:
                got, fault = [], repr(error)
            with self._lock:
                self.requests, self.tokens = self.requests + 1, self.tokens + len(got)
                self.wrong += [fault] if fault else []


def memory() -> dict[str, float]:
    """MB of each process below this one that belongs to the server: Triton, its Python models, the ranks."""
    found = {}
    for pid in descendants(os.getpid()):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        rank = "trtllm_pt.runtime.worker" in words and "python" in words[0]
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        if rank or "triton" in words[0]:
            found[f"{'rank' if rank else Path(words[0]).name} {pid}"] = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return found


if __name__ == "__main__":
    main()
