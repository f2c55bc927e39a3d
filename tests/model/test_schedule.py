"""Every schedule as a program against its formula, with 1 and 2 tracks or shards per rank, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.configs import SMALL
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.schedule import (
    Finish,
    ReduceOp,
    Run,
    Start,
    check,
    from_json,
    schedule_of,
    sync_points,
    to_json,
    unordered,
)
from trtllm_pt.network.reference import ReferenceModel, Transformer
from trtllm_pt.network.walk import walk

MOE = {"ffn_pattern": ("dense", "moe"), "num_experts": 4, "experts_per_token": 2, "moe_intermediate_size": 32}
DENSE = SMALL.replace(tracks=1, schedule="tp", block_depth=None)
CASES = {
    "tp": (DENSE, 10),
    "tp, biases": (DENSE.replace(output_bias=True, qkv_bias=True), 10),
    "parallel": (DENSE.replace(schedule="parallel"), 5),
    "ladder": (DENSE.replace(schedule="ladder"), 10),
    "pt": (SMALL, 3),
    "pt, D = L": (SMALL.replace(block_depth=5), 1),
    "pt, D = 1": (SMALL.replace(block_depth=1), 5),
    "pt, sum with norms": (SMALL.replace(combine="sum", dispatch_norm=True, combine_norm=True, residual_norm=True), 3),
    "pt, experts": (SMALL.replace(qk_norm=True, router_logits_cap=5.0, **MOE), 3),
    "spd": (SMALL.replace(schedule="spd", block_depth=None, dropped_layers=(1, 2, 4)), 7),
    "spd, biases": (
        SMALL.replace(schedule="spd", block_depth=None, dropped_layers=(1, 2, 4), output_bias=True, qkv_bias=True),
        7,
    ),
    "spd, none dropped": (SMALL.replace(schedule="spd", block_depth=None), 10),
    "dtp": (SMALL.replace(schedule="dtp", block_depth=None, delay=1), 10),
    "dtp, nothing arrives": (SMALL.replace(schedule="dtp", block_depth=None, delay=9), 10),
    "dtp, at once": (SMALL.replace(schedule="dtp", block_depth=None, delay=0), 10),
    "desync": (SMALL.replace(schedule="desync", block_depth=None, sync_every=1), 5),
    "desync, every second": (SMALL.replace(schedule="desync", block_depth=None, sync_every=2), 3),
}


def test_only_ladder_and_dtp_start_an_all_reduce_that_does_not_need_the_one_before() -> None:
    for config, syncs in CASES.values():
        first, *others = unordered(schedule_of(config))
        assert (first, len(others)) == (False, syncs - 1)
        assert set(others) <= {config.schedule == "ladder" or bool(config.delay)}


class AllRanks:
    """Every rank in one process: a value is one tensor per rank, [tracks on the rank, B, S, W]."""

    def __init__(self, transformer: Transformer, ranks: int) -> None:
        self.transformer, self.ranks, self.count = transformer, ranks, 0
        self.in_flight: list[tuple[list[Tensor], list[Tensor]]] = []  # what was started, and its result
        self.tracks = transformer.config.tracks
        self.per_rank = max(1, self.tracks // ranks)

    def _split(self, x: list[Tensor]) -> Tensor:
        return torch.cat([part.expand(self.per_rank, *part.shape[1:]) for part in x])

    def _join(self, x: Tensor) -> list[Tensor]:
        return list(x.split(self.per_rank))

    def sublayer(self, run: Run, x: list[Tensor]) -> list[Tensor]:
        layer = self.transformer.layers[run.layer]
        f = layer.attention_out if run.place == "attention" else layer.ffn_out
        if self.tracks == 1:  # the ranks' partial sums: any split of the whole will do
            whole = [f(part) for part in x]
            shares = torch.arange(1.0, self.ranks + 1, dtype=torch.float64) / sum(range(1, self.ranks + 1))
            return [part * share for part, share in zip(whole, shares, strict=True)]
        return self._join(f(self._split(x)))

    def dispatch(self, layer: int, shared: list[Tensor]) -> list[Tensor]:
        streams = self._split(shared)
        norm = self.transformer.config.dispatch_norm
        return self._join(self.transformer.layers[layer].dispatch_layernorm(streams) if norm else streams)

    def combine(self, layer: int, stream: list[Tensor]) -> list[Tensor]:
        norm = self.transformer.config.combine_norm
        return self._join(self.transformer.layers[layer].combine_layernorm(self._split(stream))) if norm else stream

    def all_reduce(self, x: list[Tensor], op: ReduceOp) -> list[Tensor]:
        self.count += 1
        total = torch.cat(x).sum(0, keepdim=True)
        return [total / self.tracks if op == "mean" else total] * self.ranks

    def start_all_reduce(self, x: list[Tensor], op: ReduceOp) -> list[Tensor]:
        """The result is not there until it is finished, so whoever reads it before reads no number."""
        result = self.all_reduce(x, op)
        self.in_flight.append(([part * torch.nan for part in result], result))
        return self.in_flight[-1][0]

    def finish_all_reduce(self, started: list[Tensor]) -> list[Tensor]:
        [found] = [flight for flight in self.in_flight if flight[0] is started]
        self.in_flight.remove(found)
        return found[1]

    def add(self, a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        return [x + y for x, y in zip(a, b, strict=True)]

    def shared_bias(self, run: Run) -> list[Tensor] | None:
        if not self.transformer.config.has_shared_bias or run.place == "ffn":
            return None
        return [self.transformer.layers[run.layer].attention_shared.bias] * self.ranks

    def scale_mean(self, x: list[Tensor]) -> list[Tensor]:
        return [part / self.tracks for part in x]


def random_model(config: ModelConfig) -> ReferenceModel:
    model = ReferenceModel(config).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("tracks_per_rank", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_program_equals_formula(name: str, tracks_per_rank: int) -> None:
    config, syncs = CASES[name]
    model = random_model(config)
    x = torch.randn(2, 7, config.hidden_size, dtype=torch.float64)
    ranks = 4 // tracks_per_rank
    ops = AllRanks(model.transformer, ranks)
    got = walk(schedule_of(config), ops, [x[None]] * ranks)
    want = model.transformer.streams(x)
    assert ops.count == sync_points(schedule_of(config)) == syncs and not ops.in_flight
    for rank in range(ranks):
        torch.testing.assert_close(got[rank][0], want, rtol=1e-12, atol=1e-12)


def test_dtp_without_delay_is_spd_without_dropped_layers() -> None:
    config = CASES["dtp, at once"][0]
    model, spd = random_model(config), ReferenceModel(config.replace(schedule="spd", delay=None)).double()
    spd.load_state_dict(model.state_dict())
    x = torch.randn(2, 7, config.hidden_size, dtype=torch.float64)
    torch.testing.assert_close(model.transformer.streams(x), spd.transformer.streams(x), rtol=1e-12, atol=1e-12)


def test_dtp_by_hand() -> None:
    """Linear sub-layers, delay 1: the second sub-layer of a track has not seen the first of the other track."""
    config = SMALL.replace(schedule="dtp", block_depth=None, delay=1, tracks=2, num_layers=1)
    transformer = random_model(config).transformer
    layer = transformer.layers[0]
    slopes = {"attention_out": (2.0, 3.0), "ffn_out": (5.0, 7.0)}
    for name, (first, second) in slopes.items():
        layer.__dict__[name] = lambda h, a=first, b=second: torch.stack((a * h[0], b * h[1]))
    x = torch.ones(1, 1, config.hidden_size, dtype=torch.float64)
    # own streams after attention: 1 + 2 and 1 + 3; FFN outputs 5 * 3 and 7 * 4; then everything arrives
    assert torch.equal(transformer.streams(x), x * (1 + 2 + 3 + 15 + 28))


@pytest.mark.parametrize("name", CASES)
def test_json_round_trip(name: str) -> None:
    schedule = schedule_of(CASES[name][0])
    assert from_json(to_json(schedule)) == schedule


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([Run(0, "attention")], "is never shared"),
        ([Run(0, "ffn"), Start((0, "ffn"), "partial", "sum")], "is never finished"),
        ([Start((0, "ffn"), "partial", "sum")], "nothing to share"),
        ([Run(0, "ffn"), Finish((0, "ffn"))], "was never started"),
    ],
)
def test_invalid_programs_are_refused(steps: list, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError, match=message):
        check(steps)


def test_json_that_is_no_step_is_refused() -> None:
    with pytest.raises(UsageError, match="is not a step"):
        from_json([{"step": "jump", "layer": 0}])
