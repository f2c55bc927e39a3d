"""Tests of the tests: a mistake in the network definition, or in what runs it, does not pass them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import pytest

from tests.backends.tensorrt.mistakes import MISTAKES
from tests.backends.tensorrt.run import MAX_SEQ_LEN, outcome
from tests.backends.tensorrt.test_numbers import LIMITS
from tests.backends.tensorrt_llm.cases import CASES
from tests.backends.tensorrt_llm.conftest import Checkpoints
from trtllm_pt.backends.tensorrt import network
from trtllm_pt.backends.tensorrt.graph import Graph
from trtllm_pt.backends.tensorrt.interpreter.networks import networks
from trtllm_pt.errors import RunError


@pytest.mark.parametrize("name", MISTAKES)
def test_is_noticed(checkpoints: Checkpoints, name: str) -> None:
    mistake = MISTAKES[name]
    case = CASES[mistake.case]
    with mistake.made():
        found = outcome(case, mistake.ranks, checkpoints(case, mistake.ranks))
    assert found.decode > 1000 * LIMITS[case.dtype]
    assert (found.prefill < LIMITS[case.dtype]) == mistake.only_in_decode


def _dropped_on_the_second_rank() -> AbstractContextManager[Any]:
    right = network.TrackOps.all_reduce

    def all_reduce(self: Any, x: Any, op: Any) -> Any:
        return x if self.part.layout.rank == 1 and self.previous is None else right(self, x, op)

    return patch.object(network.TrackOps, "all_reduce", all_reduce)


def test_ranks_that_do_not_meet(checkpoints: Checkpoints) -> None:
    case = CASES["pt"]
    with (
        _dropped_on_the_second_rank(),
        pytest.raises(AssertionError, match=r"some ranks have fewer collectives|the ranks meet for different things"),
    ):
        outcome(case, 8, checkpoints(case, 8))


# What TensorRT itself refuses while the network is defined.
REFUSED = {
    "one input for two layers' caches": patch.object(network, "cache_names", lambda layer: ("keys_0", "values_0")),
    "operands of two dtypes": patch.object(Graph, "sigmoid", lambda self, x: self.cast(x, network.torch.int32)),
    "heads that are no multiple": patch.object(network, "_heads", lambda part, step, qkv, first, count: qkv),
}


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(checkpoints: Checkpoints, name: str) -> None:
    case = CASES["pt"]
    with REFUSED[name], pytest.raises(RunError, match=r"TensorRT refuses the layer [\w.]+: \w") as error:
        networks(checkpoints(case, 4), MAX_SEQ_LEN)
    assert "\n" not in str(error.value)
