"""One side of a comparison: a process that keeps a model loaded and generates when it is told to.

    python <side>.py convert SOURCE TARGET [OPTION…]   another format of a model
    python <side>.py serve MODEL THREADS [OPTION…]     lines of JSON, in and out:

        <- {"version": "…"}                                 once it is ready
        -> {"prompts": [[5, 9, …], …], "tokens": 33}        prompts of one length; greedy, without an end token
        <- {"seconds": [0.21, 0.22, …], "tokens": [[…], …]} when each sequence had its next token, since the request
        <- {"error": "…"}                                   instead, where it failed
        -> {"windows": [[5, 9, …], …]}                      in place of prompts, for quality:
        <- {"nats": [730.1, …]}                             of each window's tokens from the second on

It needs nothing but the standard library, for every side runs in the Python that has its package.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

Prompts = Sequence[Sequence[int]]


class Side(Protocol):
    version: str

    def generate(self, prompts: Prompts, tokens: int, stamp: Callable[[], None]) -> list[list[int]]:
        """`tokens` more of every prompt. Calls `stamp` whenever each sequence has one more."""
        ...

    def nats(self, windows: Prompts) -> list[float]:
        """The sum of -log(p) of each window's tokens from the second on, each given those before it."""
        ...


def main(
    convert: Callable[..., None] | None,
    serve: Callable[..., Side],
) -> None:
    action, first, second, *options = sys.argv[1:]
    if action == "convert":
        assert convert is not None
        convert(Path(first), Path(second), *options)
        return
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no line of the protocol
    side = serve(first, int(second), *options)

    def say(message: dict[str, object]) -> None:
        lines.write(json.dumps(message) + "\n")
        lines.flush()

    say({"version": side.version})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "windows" in request:
                say({"nats": side.nats(request["windows"])})
            else:
                say(_timed(side, request["prompts"], request["tokens"]))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


def _timed(side: Side, prompts: Prompts, tokens: int) -> dict[str, object]:
    stamps: list[float] = []
    began = time.perf_counter()
    generated = side.generate(prompts, tokens, lambda: stamps.append(time.perf_counter() - began))
    lengths = {len(each) for each in generated}
    if len(generated) != len(prompts) or lengths != {tokens} or len(stamps) != tokens:
        raise ValueError(f"{tokens} tokens of each were asked for, {lengths} came, {len(stamps)} times")
    return {"seconds": stamps, "tokens": generated}


def group_size(folder: Path) -> int:
    """The inputs that share a scale in int4: 128, or 64 if 128 does not divide those of a model's matrices."""
    config = json.loads((folder / "config.json").read_text())
    return 64 if config["hidden_size"] % 128 or config["intermediate_size"] % 128 else 128


def nats_of(logits: Any, tokens: Sequence[int]) -> float:
    """The sum of -log(p) of tokens [T], given logits [T, V] as a numpy array."""
    import numpy as np

    rows = np.asarray(logits, np.float64)
    rows = rows - rows.max(-1, keepdims=True)
    return float((np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(tokens)), list(tokens)]).sum())
