"""The network gives the reference's logits, all ranks together, in prefill chunks and in decode steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from safetensors.torch import load_file

from tests.backends.tensorrt.formulas import logits
from tests.backends.tensorrt.run import MAX_SEQ_LEN, is_supported, outcome
from tests.backends.tensorrt_llm.cases import CASES, FORCED, PROMPTS, REPRESENTATIVES, Case
from tests.backends.tensorrt_llm.conftest import Checkpoints
from trtllm_pt.backends.tensorrt.interpreter.networks import networks
from trtllm_pt.backends.tensorrt.interpreter.steps import Steps

# Of the largest logit. The float32 networks sum in float64 and round after each layer, and the truth is in float64.
# 5e-7, 1.2e-3 and 1.6e-2 were seen.
LIMITS = {"float32": 1e-6, "float16": 4e-3, "bfloat16": 4e-2}
# A stream that is rounded to bfloat16 may choose another expert for a token than the exact one does.
EXPERTS_LIMIT = 1e-1
# A stream that is rounded to bfloat16 may be rounded to another value of FP8 than the exact one, a sixteenth away.
FP8_LIMIT = 2e-1  # 0.12 was seen

FAST = {*REPRESENTATIVES.items(), ("pt W8A16", 4), ("pt FP8", 4)}
SLOW_AND_FAST = [
    pytest.param(case, ranks, id=f"{case.name}, {ranks}", marks=() if (case.name, ranks) in FAST else pytest.mark.slow)
    for case in CASES.values()
    for ranks in case.ranks
    if is_supported(case, ranks)
]


@pytest.mark.parametrize(("case", "ranks"), SLOW_AND_FAST)
def test_logits(checkpoints: Checkpoints, case: Case, ranks: int) -> None:
    found = outcome(case, ranks, checkpoints(case, ranks))
    limit = LIMITS[case.dtype]
    if case.dtype == "bfloat16":
        limit = EXPERTS_LIMIT if case.config.has_moe else FP8_LIMIT if case.quant_algo == "FP8" else limit
    assert found.prefill < limit
    assert found.decode < limit


@pytest.mark.parametrize(("name", "limit"), [("tp FP8", LIMITS["float32"]), ("pt FP8", 3e-2)])
def test_logits_of_fp8_in_float32(checkpoints: Checkpoints, name: str, limit: float) -> None:
    """Only few values are then so near to the middle of two of FP8's that they go another way: in `pt`, one does."""
    case = replace(CASES[name], name=f"{name} in float32", dtype="float32")
    ranks = case.ranks[-1]
    found = outcome(case, ranks, checkpoints(case, ranks))
    assert max(found.prefill, found.decode) < limit


FORMULAS = {
    "tp biases": 2,
    "spd": 4,
    "spd biases": 8,
    "pt": 2,
    "pt norms": 4,
    "pt sum": 1,
    "pt moe": 4,
    "pt qk norm after rope": 8,
    "pt qk norm mha": 8,
    "pt tied": 4,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_logits_of_the_formulas(checkpoints: Checkpoints, name: str) -> None:
    """The truth owes nothing to the reference network or to the schedule walker."""
    case, ranks = CASES[name], FORMULAS[name]
    checkpoint = checkpoints(case, ranks)
    weights = load_file(checkpoint.parent / "model" / "model.safetensors")
    steps = Steps(networks(checkpoint, MAX_SEQ_LEN), 1)
    prompt, forced = PROMPTS[0], FORCED[0]
    true = logits(case.config, weights, [*prompt, *forced])
    rows = {7: steps.prefill(0, prompt[:7]), len(prompt): steps.prefill(0, prompt[7:])}
    rows |= {len(prompt) + count: steps.decode([token])[0] for count, token in enumerate(forced, start=1)}
    for count, row in rows.items():
        error = (row[: case.config.vocab_size] - true[count - 1]).abs().max() / true.abs().max()
        assert error < LIMITS[case.dtype], f"after {count} tokens"
