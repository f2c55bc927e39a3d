"""The kernels against `cost`: every weight is read once, every FLOP is counted once."""

from __future__ import annotations

import math

import pytest

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.cost import DTYPE_BYTES, flops_per_token
from trtllm_pt.model.layout import padded_vocab_size, rank_layout
from trtllm_pt.model.presets import preset
from trtllm_pt.model.tensors import tensors
from trtllm_pt.planner.kernels import Kernel, Kernels, Work

CASES = [("dense-30b", 8), ("dense-6b", 1), ("pt-30b", 8), ("pt-30b", 2), ("pt-13b-d8", 1), ("pt-moe-tiny", 8)]


def forward(config: ModelConfig, ranks: int, work: Work) -> list[Kernel]:
    kernels = Kernels(config, ranks, "bfloat16")
    found = list(kernels.ends(work))
    for layer in range(config.num_layers):
        for place in ("attention", "ffn"):
            found += kernels.sub_layer(layer, place, work)
    return found


@pytest.mark.parametrize(("name", "ranks"), CASES)
def test_flops_of_all_ranks_are_those_of_cost(name: str, ranks: int) -> None:
    config = preset(name)
    if config.num_kv_heads < ranks and config.tracks == 1:
        pytest.skip("KV heads are held twice")
    context = 50
    kernels = forward(config, ranks, Work(1, 1, context - 1))
    counted = ranks * sum(kernel.flops for kernel in kernels if kernel.kind != "memory")
    padding = 2 * (padded_vocab_size(config, ranks) - config.vocab_size) * config.hidden_size
    assert counted - padding == pytest.approx(flops_per_token(config, context), rel=1e-9)


@pytest.mark.parametrize(("name", "ranks"), CASES[:-1])
def test_a_step_reads_every_matrix_of_the_rank_once(name: str, ranks: int) -> None:
    config = preset(name)
    layout = rank_layout(config, ranks)
    weights = sum(
        math.prod(spec.rank_shape(config, layout)) * DTYPE_BYTES["bfloat16"]
        for spec in tensors(config)
        if spec.kind in ("matrix", "output") or spec.name == "lm_head.weight"
    )
    read = sum(kernel.bytes for kernel in forward(config, ranks, Work(1, 1, 0)) if kernel.kind == "matrix")
    assert weights < read < 1.01 * weights  # activations of one token beside them


def test_keys_by_hand() -> None:
    for past, new, window in [(0, 7, None), (0, 7, 3), (5, 7, 8), (10, 1, 4), (10, 4, 100), (2, 5, 7), (9, 3, 3)]:
        by_hand = sum(min(past + i, window or 10**9) for i in range(1, new + 1))
        assert Work(2, new, past).keys(window) == 2 * by_hand


def test_experts_read_are_those_chosen() -> None:
    config = preset("pt-moe-tiny")  # 8 experts, 2 for each token
    kernels = Kernels(config, 8, "bfloat16")
    expert = 2 * 3 * config.moe_intermediate_size * config.hidden_size  # bytes of one

    def read(tokens: int) -> float:
        found = [each for each in kernels.sub_layer(1, "ffn", Work(tokens, 1)) if each.kind == "matrix"]
        moved = 2 * tokens * 2 * (3 * config.moe_intermediate_size + 2 * config.hidden_size)
        return (sum(each.bytes for each in found[1:]) - moved) / expert

    assert read(1) == pytest.approx(2)
    assert read(2) == pytest.approx(8 * (1 - 0.75**2))
    assert read(500) == pytest.approx(8)
