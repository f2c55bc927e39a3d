"""Runs a case's networks on the interpreter, and compares with the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.backends.tensorrt_llm.cases import FORCED, PROMPTS, Case
from tests.checkpoint.fp8 import reference_as_stored
from trtllm_pt.backends.tensorrt.interpreter.networks import networks
from trtllm_pt.backends.tensorrt.interpreter.steps import Steps
from trtllm_pt.backends.tensorrt.limits import check
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError

MAX_SEQ_LEN = 64
CHUNK = 5
DECODE_STEPS = 2


def is_supported(case: Case, ranks: int) -> bool:
    """Whether the backend builds the case on so many ranks."""
    try:
        algos = {"quant_algo": case.quant_algo, "kv_cache_quant_algo": case.kv_cache_quant_algo}
        check(CheckpointManifest(model=case.config, ranks=ranks, dtype=case.dtype, **algos), ())
    except UsageError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Outcome:
    """The worst errors over all rows of logits, of the size of the reference's largest logit."""

    prefill: float
    decode: float


def outcome(case: Case, ranks: int, checkpoint: Path) -> Outcome:
    """The prompts of two slots in chunks, then the third's beside decode steps of the two, then decode steps of all."""
    steps = Steps(networks(checkpoint, MAX_SEQ_LEN), len(PROMPTS))
    found: list[dict[int, Tensor]] = [{} for _ in PROMPTS]  # of each prompt, by the number of tokens before
    fed = [[*prompt, *forced] for prompt, forced in zip(PROMPTS, FORCED, strict=True)]

    def prefill(slot: int) -> None:
        for start in range(0, len(PROMPTS[slot]), CHUNK):
            chunk = PROMPTS[slot][start : start + CHUNK]
            found[slot][start + len(chunk)] = steps.prefill(slot, chunk)

    def decode(slots: int) -> None:
        rows = steps.decode([fed[slot][steps.lengths[slot]] for slot in range(slots)])
        for slot in range(slots):
            found[slot][steps.lengths[slot]] = rows[slot]

    prefill(0)
    prefill(1)
    decode(2)
    prefill(2)
    for _ in range(DECODE_STEPS):
        decode(3)
    true = _true_logits(case.name, checkpoint)
    largest = max(float(rows.abs().max()) for rows in true)
    errors: dict[bool, float] = {True: 0.0, False: 0.0}  # of prefill, of decode
    for prompt, rows, wanted in zip(PROMPTS, found, true, strict=True):
        for count, row in rows.items():
            error = float((row[: case.config.vocab_size].double() - wanted[count - 1]).abs().max()) / largest
            errors[count <= len(prompt)] = max(errors[count <= len(prompt)], math.inf if math.isnan(error) else error)
    return Outcome(prefill=errors[True], decode=errors[False])


_TRUE: dict[str, list[Tensor]] = {}


def _true_logits(name: str, checkpoint: Path) -> list[Tensor]:
    """The reference's logits [tokens, V] of each prompt and its forced tokens, from the stored weights in float64."""
    if name not in _TRUE:
        model = reference_as_stored(checkpoint, torch.float64)
        with torch.no_grad():
            pairs = zip(PROMPTS, FORCED, strict=True)
            _TRUE[name] = [model(torch.tensor([[*prompt, *forced]]))[0] for prompt, forced in pairs]
    return _TRUE[name]
