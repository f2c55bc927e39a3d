"""Tests of the tests: a mistake in the network definition does not pass them."""

from __future__ import annotations

from types import ModuleType

import pytest

from tests.backends.tensorrt_llm.cases import CASES
from tests.backends.tensorrt_llm.conftest import Checkpoints
from tests.backends.tensorrt_llm.mistakes import MISTAKES, WRONG_CALLS
from tests.backends.tensorrt_llm.run import outcome
from tests.backends.tensorrt_llm.standin.world import Mismatch
from tests.backends.tensorrt_llm.test_numbers import LIMIT, check_collectives, check_logits


@pytest.mark.parametrize("name", MISTAKES)
def test_is_noticed(definition: ModuleType, checkpoints: Checkpoints, name: str) -> None:
    mistake = MISTAKES[name]
    case = CASES[mistake.case]
    checkpoint = checkpoints(case, mistake.ranks)
    with mistake.made(definition):
        if mistake.refused:
            with pytest.raises((AssertionError, Mismatch), match=r"the cache has|meet for different things"):
                outcome(definition, case, mistake.ranks, checkpoint)
            return
        found = outcome(definition, case, mistake.ranks, checkpoint)
    assert max(found.prefill, found.decode) > 1000 * LIMIT
    assert (found.prefill < LIMIT) == mistake.only_in_decode
    with pytest.raises(AssertionError):
        check_logits(case, found)


def test_an_all_reduce_less_is_counted(definition: ModuleType, checkpoints: Checkpoints) -> None:
    mistake = MISTAKES["an all-reduce dropped"]
    case = CASES[mistake.case]
    with mistake.made(definition):
        found = outcome(definition, case, mistake.ranks, checkpoints(case, mistake.ranks))
    with pytest.raises(AssertionError):
        check_collectives(case, mistake.ranks, found)


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_is_refused(definition: ModuleType, checkpoints: Checkpoints, name: str) -> None:
    made, error, words = WRONG_CALLS[name]
    case = CASES["pt"]
    with made(definition), pytest.raises(error, match=words):
        outcome(definition, case, 4, checkpoints(case, 4))
