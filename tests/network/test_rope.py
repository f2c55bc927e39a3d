"""RoPE's frequencies and attention factors are those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.configs import SMALL
from trtllm_pt.checkpoint.llama_config import llama_to_model_config
from trtllm_pt.model.rope import attention_factor
from trtllm_pt.network.rope import inverse_frequencies, rotary

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 3.0},
    LLAMA3 | {"original_max_position_embeddings": 512},
    LLAMA3,
    YARN,
    YARN | {"rope_theta": 1e6},
    YARN | {"attention_factor": 1.5},
    YARN | {"mscale": 0.7, "mscale_all_dim": 1.2},
    YARN | {"mscale": 0.7},
    YARN | {"mscale": 0.7, "mscale_all_dim": 0},
    YARN | {"attention_factor": 1.5, "mscale": 0.7, "mscale_all_dim": 1.2},
    YARN | {"attention_factor": None, "beta_fast": None, "beta_slow": 0},
    YARN | {"beta_fast": 16, "beta_slow": 2},
    YARN | {"truncate": False},
    YARN | {"truncate": None},
    YARN | {"beta_fast": 1, "beta_slow": 1, "truncate": False},  # a ramp without width
    YARN | {"factor": None},
    YARN | {"factor": 1},
    YARN | {"original_max_position_embeddings": 16},  # no frequency turns 32 times
    YARN | {"original_max_position_embeddings": 10**7},  # every frequency turns more than 32 times
    {"rope_type": "yarn", "factor": 4.0},  # max_position_embeddings are the original positions
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
]


@pytest.mark.parametrize("head_size", [8, 64, 128])
@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_frequencies_and_factors_are_those_of_transformers(scaling: dict[str, Any], head_size: int) -> None:
    sizes = {"num_attention_heads": 2, "head_dim": head_size, "max_position_embeddings": 4096}
    theirs = transformers.LlamaConfig(**sizes, rope_parameters=dict(scaling))
    want, factor = ROPE_INIT_FUNCTIONS[theirs.rope_parameters["rope_type"]](theirs)
    ours = llama_to_model_config({"model_type": "llama", **sizes, "rope_parameters": scaling})
    # transformers computes in float32, of which a power keeps about six digits.
    torch.testing.assert_close(inverse_frequencies(ours), want, rtol=2e-6, atol=0)
    assert attention_factor(ours.rope_scaling) == pytest.approx(factor, rel=1e-12)


def test_the_attention_factor_scales_cos_and_sin() -> None:
    plain, doubled = (
        SMALL.replace(rope_scaling=YARN | {"attention_factor": factor, "factor": 1.0}) for factor in (1.0, 2.0)
    )
    tables = [torch.stack(rotary(config, torch.arange(9), torch.float32)) for config in (plain, doubled)]
    assert torch.equal(2 * tables[0], tables[1])
