"""The network gives the reference's logits, all ranks together, in prefill chunks and in decode steps."""

from __future__ import annotations

import pytest

from tests.backends.tensorrt.run import outcome
from tests.backends.tensorrt_llm.cases import CASES, REPRESENTATIVES, Case
from tests.backends.tensorrt_llm.conftest import Checkpoints

# Of the largest logit. The float32 networks sum in float64 and round after each layer, and the truth is in float64.
LIMITS = {"float32": 1e-6, "float16": 5e-3, "bfloat16": 5e-2}

FAST = set(REPRESENTATIVES.items())
SLOW_AND_FAST = [
    pytest.param(case, ranks, id=f"{case.name}, {ranks}", marks=() if (case.name, ranks) in FAST else pytest.mark.slow)
    for case in CASES.values()
    for ranks in case.ranks
    if not case.is_quantised
]


@pytest.mark.parametrize(("case", "ranks"), SLOW_AND_FAST)
def test_logits(checkpoints: Checkpoints, case: Case, ranks: int) -> None:
    found = outcome(case, ranks, checkpoints(case, ranks))
    print(case.name, ranks, found)
    assert found.prefill < LIMITS[case.dtype]
    assert found.decode < LIMITS[case.dtype]
