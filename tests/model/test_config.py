"""One error per mistake in a model config, naming the field and what would be right; and what follows from a config."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.configs import SMALL
from trtllm_pt.errors import UsageError
from trtllm_pt.model import cost
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import padded_vocab_size, rank_layout
from trtllm_pt.model.presets import PRESETS, preset
from trtllm_pt.model.schedule import schedule_of, sync_points, tensor_parallel_sync_points
from trtllm_pt.model.tensors import tensors

DENSE = SMALL.replace(tracks=1, schedule="tp", block_depth=None)
LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
YARN = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32}
MISTAKES = [
    ({"num_layers": 0}, r"num_layers \(0\) must be at least 1"),
    ({"tracks": -2}, r"tracks \(-2\) must be at least 1"),
    ({"hidden_size": "48"}, r"hidden_size \('48'\) must be a whole number"),
    ({"hidden_size": True}, r"hidden_size \(True\) must be a whole number"),
    ({"tie_embeddings": 1}, r"tie_embeddings \(1\) must be true or false"),
    ({"num_kv_heads": 3}, r"num_kv_heads \(3\) must divide num_heads \(4\)"),
    ({"head_size": 15}, r"head_size \(15\) must be even"),
    ({"norm_eps": 0.0}, r"norm_eps \(0.0\) must be above 0"),
    ({"schedule": "ring"}, r"schedule \('ring'\) must be one of tp, pt"),
    ({"block_depth": None}, "schedule 'pt' needs block_depth"),
    ({"block_depth": 6}, r"block_depth \(6\) must be between 1 and num_layers \(5\)"),
    ({"sync_every": 2}, r"sync_every \(2\) belongs to schedule 'desync', not to 'pt'"),
    ({"dropped_layers": (1,)}, r"dropped_layers \(\[1\]\) belongs to schedule 'spd'"),
    ({"delay": 2}, r"delay \(2\) belongs to schedule 'dtp', not to 'pt'"),
    ({"schedule": "dtp", "block_depth": None}, "schedule 'dtp' needs delay"),
    (
        {"schedule": "dtp", "block_depth": None, "delay": 10},
        r"delay \(10\) must be between 0 and 2 \* num_layers - 1 \(9\)",
    ),
    ({"combine": "max"}, r"combine \('max'\) must be 'mean' or 'sum'"),
    ({"output_bias": True}, r"output_bias \(true\) belongs to schedules 'tp' and 'spd', not to 'pt'"),
    (
        {"schedule": "spd", "block_depth": None, "output_bias": True, "residual_norm": True},
        r"output_bias \(true\) must be false for residual_norm \(true\) with schedule 'spd'",
    ),
    ({"schedule": "tp", "block_depth": None}, r"tracks \(4\) must be 1 for schedule 'tp'"),
    (
        {"schedule": "spd", "block_depth": None, "dropped_layers": (5,)},
        r"dropped_layers \(5\) must be layers between 0",
    ),
    ({"schedule": "spd", "block_depth": None, "combine_norm": True}, "combine_norm .* belongs to schedule 'pt'"),
    ({"attention_pattern": ()}, "attention_pattern must not be empty"),
    ({"attention_pattern": ("local",)}, r"attention_pattern \('local'\) must be one of global, sliding"),
    ({"attention_pattern": ("sliding",)}, r"window \(None\) must be at least 1"),
    ({"window": 8}, r"window \(8\) needs a sliding kind"),
    ({"qk_norm_after_rope": True}, "needs qk_norm"),
    ({"rope_theta": 0}, r"rope_theta \(0\) must be above 0"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type 'longrope'; supported: linear, dynamic, llama3, yarn"),
    ({"rope_scaling": {}}, "rope_type 'None'; supported"),
    ({"rope_scaling": {"rope_type": "dynamic"}}, r"has keys \['rope_type'\]; it must have \['factor', 'rope_type'\]"),
    (
        {"rope_scaling": YARN | {"alpha": 1}},
        r"it must have \[.*\], and may have \['attention_factor', 'beta_fast', 'beta_slow'",
    ),
    ({"rope_scaling": YARN | {"attention_factor": 0}}, r"attention_factor \(0\) must be a number above 0"),
    ({"rope_scaling": YARN | {"truncate": 1}}, r"truncate \(1\) must be true or false"),
    ({"rope_scaling": YARN | {"beta_slow": 33}}, r"beta_fast \(32.0\) must be at least beta_slow \(33\)"),
    ({"rope_scaling": YARN, "rope_theta": 1.0}, r"rope_theta \(1.0\) must be above 1 for rope_scaling of type 'yarn'"),
    ({"rope_scaling": {"rope_type": "linear"}}, r"has keys \['rope_type'\]; it must have \['factor', 'rope_type'\]"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, r"factor \('2'\) must be a number above 0"),
    (
        {"rope_scaling": {**LLAMA3, "low_freq_factor": 4, "original_max_position_embeddings": 64}},
        r"low_freq_factor \(4\) must be below high_freq_factor \(4\)",
    ),
    ({"intermediate_size": 0}, r"intermediate_size \(0\) must be at least 1"),
    ({"ffn_pattern": ("sparse",)}, r"ffn_pattern \('sparse'\) must be one of dense, moe"),
    ({"ffn_pattern": ("moe",)}, r"num_experts \(0\) must be at least 1 where ffn_pattern has 'moe'"),
    (
        {"ffn_pattern": ("moe",), "num_experts": 2, "experts_per_token": 3, "moe_intermediate_size": 8},
        r"experts_per_token \(3\) must not exceed num_experts \(2\)",
    ),
    ({"router_logits_cap": -1.0}, r"router_logits_cap \(-1.0\) must be above 0"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[str(changes) for changes, _ in MISTAKES])
def test_mistakes_are_refused(changes: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError, match=message):
        SMALL.replace(**changes)


def test_json_round_trip() -> None:
    for config in PRESETS.values():
        assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a readable JSON file"),
        ("[]", "holds a JSON list; it must hold an object"),
        ('{"hiden_size": 1}', "unknown key 'hiden_size' in the model config; did you mean 'hidden_size'?"),
        ('{"num_layers": 1}', "lacks 'hidden_size', 'num_heads'"),
    ],
)
def test_files_that_are_no_config(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        ModelConfig.from_file(path)


def test_presets_and_their_dense_twins_have_equal_parameters() -> None:
    """arXiv:2602.07306, Table 1: layers, heads and KV heads over all tracks, tracks."""
    table = {"6b": (32, 32, 8), "13b": (40, 40, 8), "30b": (48, 64, 8)}
    for size, (layers, heads, kv_heads) in table.items():
        for depth in (2, 4, 8):
            c = preset(f"pt-{size}-d{depth}")
            assert (c.num_layers, c.num_heads * 8, c.num_kv_heads * 8, c.tracks) == (layers, heads, kv_heads, 8)
            assert sync_points(schedule_of(c)) * 2 * depth == tensor_parallel_sync_points(c)
        twin = preset(f"dense-{size}")
        assert (twin.num_layers, twin.num_heads, twin.num_kv_heads) == (layers, heads, kv_heads)
        assert cost.parameters(twin) == pytest.approx(cost.parameters(c), rel=1e-3)


@pytest.mark.parametrize("config", [SMALL, DENSE, DENSE.replace(num_kv_heads=1)], ids=["pt", "tp", "tp, one KV head"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_hold_everything(config: ModelConfig, ranks: int) -> None:
    layouts = [rank_layout(config, ranks, rank) for rank in range(ranks)]
    for name, size in (("tracks", config.tracks), ("vocab", padded_vocab_size(config, ranks))):
        spans = [getattr(layout, name) for layout in layouts]
        if config.schedule == "tp" and name == "tracks":
            continue
        assert [i for span in spans for i in range(span.start, span.stop)] == list(range(size))
    for layout in layouts:
        # The query heads of a rank find their KV head on it.
        group = config.num_heads // config.num_kv_heads
        for head in range(layout.heads.start, layout.heads.stop):
            assert layout.kv_heads.start <= head // group < layout.kv_heads.stop


def test_ranks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match=r"ranks \(3\) must divide tracks \(4\); this model runs on 1, 2, 4 ranks"):
        rank_layout(SMALL, 3)
    with pytest.raises(UsageError, match=r"ranks \(3\) must divide num_heads \(4\) for schedule 'tp'"):
        rank_layout(DENSE, 3)
    with pytest.raises(UsageError, match=r"rank \(2\) must be between 0 and ranks - 1 \(1\)"):
        rank_layout(SMALL, 2, 2)
    rank_layout(DENSE.replace(residual_norm=True), 1)
    with pytest.raises(UsageError, match=r"ranks \(2\) must be 1 for residual_norm \(true\)"):
        rank_layout(DENSE.replace(residual_norm=True), 2)


def test_costs_are_those_of_the_weights() -> None:
    config = preset("pt-moe-tiny")
    total = sum(math.prod(spec.global_shape(config)) for spec in tensors(config))
    assert cost.parameters(config) == total
    # 8 experts of which 2 are met, in every second of 4 layers, on 8 tracks
    expert = 3 * config.moe_intermediate_size * config.hidden_size
    assert total - cost.active_parameters(config) == 8 * 2 * 6 * expert
    assert cost.kv_bytes_per_token(config, 2, "bfloat16") == 2 * 4 * 4 * config.num_kv_heads * config.head_size * 2


def test_flops_are_twice_the_weights_that_a_token_meets() -> None:
    config = preset("dense-150m")
    products = cost.parameters(config) - config.vocab_size * config.hidden_size  # all but the embedding, and few norms
    assert cost.flops_per_token(config, context=1) == pytest.approx(2 * products, rel=1e-3)
    keys = cost.flops_per_token(config, context=101) - cost.flops_per_token(config, context=1)
    assert keys == 100 * 4 * config.num_layers * config.num_heads * config.head_size


def test_collectives_are_counted_from_the_schedule() -> None:
    found = cost.collectives(SMALL, 2, "float32", step_bytes=88)
    assert [c.kind for c in found] == ["broadcast", *["all_reduce"] * 3, "gather"]
    assert [(c.layer, c.place) for c in found[1:-1]] == [(1, "ffn"), (3, "ffn"), (4, "ffn")]
    assert found[1].bytes_per_token == 48 * 4
    assert cost.collectives(SMALL, 1, "float32", step_bytes=88) == []
