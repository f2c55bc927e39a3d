"""Where the formulas of the reference network leave a choice."""

from __future__ import annotations

import pytest
import torch

from tests.configs import SMALL
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.network.reference import Experts


def experts(count: int, chosen: int) -> Experts:
    """A mixture whose router cannot tell the experts apart, with expert e that returns e + 1 for an input of ones."""
    config: ModelConfig = SMALL.replace(
        tracks=1,
        ffn_pattern=("moe",),
        num_experts=count,
        experts_per_token=chosen,
        moe_intermediate_size=1,
        hidden_size=1,
    )
    module = Experts(config)
    with torch.no_grad():
        module.router.weight.fill_(0.5)
        module.fc.weight.fill_(1.0)
        hidden = torch.nn.functional.silu(torch.ones(()))
        module.proj.weight.copy_((torch.arange(count) + 1.0).view(1, count, 1, 1) / hidden)
    return module


@pytest.mark.parametrize("chosen", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [8, 9, 16, 17, 40, 64, 128, 300])
def test_equal_logits_go_to_the_experts_with_the_lower_indices(count: int, chosen: int) -> None:
    """As in the op of the embedded engine. The order must not depend on the number of tokens either."""
    module = experts(count, chosen)
    for tokens in (1, 2, 33):
        got = module(torch.ones(1, 1, tokens, 1))
        want = torch.full_like(got, (chosen + 1) / 2)  # the mean of 1 to `chosen`
        torch.testing.assert_close(got, want)
