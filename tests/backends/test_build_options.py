"""The sizes of an engine: their defaults, and what contradicts the model."""

from __future__ import annotations

import pytest

from tests.configs import SMALL
from trtllm_pt.backends.manifest import BuildOptions
from trtllm_pt.errors import UsageError

DYNAMIC = SMALL.replace(rope_scaling={"rope_type": "dynamic", "factor": 4.0})


def test_positions_beyond_the_model() -> None:
    with pytest.raises(UsageError, match=r"max_seq_len \(129\) must be between 2 and max_position_embeddings \(128\)$"):
        BuildOptions(max_seq_len=129).resolved(SMALL)


def test_dynamic_scaling_goes_no_further_than_it_leaves_the_frequencies_alone() -> None:
    assert BuildOptions().resolved(DYNAMIC).max_seq_len == 128
    with pytest.raises(UsageError, match=r"\(128\): cached keys cannot follow dynamic RoPE scaling any further"):
        BuildOptions(max_seq_len=129).resolved(DYNAMIC)
