"""This engine through its runtime: scheduler, paged cache and sampling included, as in the server."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from side import Prompts, group_size, main

import trtllm_pt
from trtllm_pt import BuildOptions, build
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.checkpoint.convert import convert as to_checkpoint
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.requests.messages import Request, SamplingParams
from trtllm_pt.runtime.llm import start_runtime

_POLL_SECONDS = 10.0
_POSITIONS = 1024


def convert(source: Path, target: Path, ranks: str, quantize: str = "", gemm: str = "") -> None:
    """Builds anew each time, for the sources may have changed; compiled things come from the cache."""
    checkpoint = target.with_suffix(".checkpoint")
    if not checkpoint.exists():
        forms = {}
        if quantize:
            forms = {"quantize": quantize.replace("G128", f"G{group_size(source)}"), "embedding": "W8A16"}
        to_checkpoint(source, checkpoint, ranks=int(ranks), **forms)
    shutil.rmtree(target, ignore_errors=True)
    positions = CheckpointManifest.from_dir(checkpoint).model.max_position_embeddings
    extra = {"gemm": gemm} if gemm else {}
    build(checkpoint, target, "embedded", BuildOptions(max_seq_len=min(_POSITIONS, positions), extra=extra))


class Ours:
    version = trtllm_pt.__version__

    def __init__(self, folder: str, threads: int, ranks: str) -> None:
        engine = Path(folder)
        self._runtime = start_runtime(engine, read_engine(engine), threads // int(ranks), None)

    def generate(self, prompts: Prompts, tokens: int, stamp: Callable[[], None]) -> list[list[int]]:
        sampling = SamplingParams(max_tokens=tokens, end_id=-1)
        for number, prompt in enumerate(prompts):
            self._runtime.submit(Request(id=number, token_ids=tuple(prompt), sampling=sampling))
        found: list[list[int]] = [[] for _ in prompts]
        complete = 0
        while complete < tokens:
            for message in self._runtime.poll(_POLL_SECONDS):
                if message.error is not None:
                    raise RuntimeError(message.error)
                found[message.id] += message.token_ids
            while complete < min(map(len, found)):
                complete += 1
                stamp()
        return found

    def nats(self, windows: Prompts) -> list[float]:
        sampling = SamplingParams(max_tokens=0, prompt_log_probs=True)
        for number, window in enumerate(windows):
            self._runtime.submit(Request(id=number, token_ids=tuple(window), sampling=sampling))
        found = [0.0] * len(windows)
        while self._runtime.busy:
            for message in self._runtime.poll(_POLL_SECONDS):
                found[message.id] -= sum(score.log_prob for score in message.prompt_scores)
        return found


if __name__ == "__main__":
    main(convert, Ours)
