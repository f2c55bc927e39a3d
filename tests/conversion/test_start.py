"""What a dense model starts as: the same function in another order, and the best guesses of its tracks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.spd.models import DENSE
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.load import load_reference, reference_of
from trtllm_pt.conversion.arrangement import Arranged, Arrangement
from trtllm_pt.conversion.distil import divergence, run_as
from trtllm_pt.conversion.sharing import balanced, share_heads, share_neurons
from trtllm_pt.conversion.start import guesses, split, start
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import over_tracks
from trtllm_pt.network.reference import ReferenceModel

TOKENS = torch.arange(120).remainder(101).view(4, 30)


def tracks_of(dense: ModelConfig, tracks: int, **schedule: object) -> ModelConfig:
    return over_tracks(dense, tracks, **schedule)


def test_an_arranged_model_computes_the_same_function(model: Path) -> None:
    dense = open_source(model)
    layers = [Arrangement((2, 3, 0, 1, 6, 7, 4, 5), tuple(range(63, -1, -1)))] * 5
    arranged = reference_of(Arranged(dense, layers), torch.float64)
    want = load_reference(model, torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(arranged(TOKENS), want(TOKENS), rtol=1e-11, atol=1e-11)
    back = reference_of(Arranged(Arranged(dense, layers), layers), torch.float64)  # both orders are their own inverse
    for name, value in want.named_parameters():
        assert torch.equal(dict(back.named_parameters())[name], value), name
        changed = not torch.equal(dict(arranged.named_parameters())[name], value)
        assert changed == (".qkv." in name or ".dense." in name or ".mlp." in name), name


def test_units_go_where_they_are_cheap_and_every_track_gets_as_many() -> None:
    cost = torch.tensor([[0.0, 9.0], [1.0, 2.0], [0.0, 5.0], [3.0, 3.0]])
    assert balanced(cost) == [0, 1, 0, 1]
    assert share_neurons(cost) == [0, 2, 1, 3]
    assert balanced(torch.zeros(6, 3)) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("tracks", [2, 4, 8])
def test_heads_stay_with_their_kv_head(tracks: int) -> None:
    """8 heads, 4 KV heads."""
    cost = torch.rand(8, tracks, generator=torch.Generator().manual_seed(tracks))
    order = share_heads(DENSE, cost)
    assert sorted(order) == list(range(8))
    assert [a // 2 for a in order[::2]] == [b // 2 for b in order[1::2]]

    def total(of: list[int]) -> float:
        return float(sum(cost[head, place * tracks // 8] for place, head in enumerate(of)))

    assert total(order) < total(list(range(8)))


def test_guesses_are_between_parts_and_regressions() -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 12, generator=random, dtype=torch.float64)
    mix = torch.randn(12, 12, generator=random, dtype=torch.float64)
    c = torch.randn(400, 12, generator=random, dtype=torch.float64) @ mix
    parts = split(weight, 3).transpose(0, 1)
    torch.testing.assert_close(guesses(weight, c, 3, 1e9), 3 * parts, rtol=1e-4, atol=1e-4)
    target = c @ weight.mT
    for track, guess in enumerate(guesses(weight, c, 3, 0.0)):
        fit = torch.linalg.lstsq(c[:, 4 * track : 4 * track + 4], target).solution.mT
        torch.testing.assert_close(guess, fit, rtol=1e-2, atol=1e-2)  # there is a small ridge in the guesses

    def cost(m: torch.Tensor, strength: float) -> float:
        each = torch.einsum("tnk,nwk->ntw", split(c, 3), m)
        together = strength * (each.mean(0) - target).square().sum(1).mean()
        return float(together + (each - target).square().sum(2).mean())

    best = guesses(weight, c, 3, 2.0)
    for _ in range(20):
        assert cost(best, 2.0) < cost(best + 0.05 * torch.randn(best.shape, generator=random).double(), 2.0)


def test_delayed_tensor_parallelism_starts_as_the_dense_model_in_another_order(model: Path) -> None:
    """Without a delay it is the dense model; with one, the order makes it less wrong."""
    dense, want = open_source(model), load_reference(model, torch.float64)
    config = tracks_of(dense.config, 4, schedule="dtp", delay=1)
    found = {}
    for arranged in (False, True):
        student = reference_of(start(dense, config, TOKENS, arranged=arranged, hide_bar=True), torch.float64)
        with torch.no_grad():
            found[arranged] = divergence(student(TOKENS), want(TOKENS)).item()
            run_as(student, config.replace(delay=0))
            torch.testing.assert_close(student(TOKENS), want(TOKENS), rtol=1e-11, atol=1e-11)
    assert 0 < found[True] < 0.95 * found[False]


@pytest.mark.parametrize("tracks", [2, 8])
def test_the_tracks_of_pt_together_write_what_the_dense_model_writes(model: Path, tracks: int) -> None:
    dense = open_source(model)
    config = tracks_of(dense.config, tracks, schedule="pt", block_depth=2)
    student = reference_of(start(dense, config, TOKENS, strength=1e9, hide_bar=True), torch.float64)
    want = load_reference(model, torch.float64)
    x = torch.randn(2, 9, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for own, whole in zip(student.transformer.layers, want.transformer.layers, strict=True):
            for sub_layer in ("attention_out", "ffn_out"):
                got = getattr(own, sub_layer)(x.expand(tracks, *x.shape)).mean(0)
                torch.testing.assert_close(got, getattr(whole, sub_layer)(x[None])[0], rtol=1e-3, atol=1e-3)


def test_guesses_start_nearer_to_the_dense_model_than_parts(model: Path) -> None:
    dense, want = open_source(model), load_reference(model)
    config = tracks_of(dense.config, 4, schedule="pt", block_depth=1)

    def distance(strength: float) -> float:
        student: ReferenceModel = reference_of(
            start(dense, config, TOKENS, strength=strength, hide_bar=True), torch.float32
        )
        with torch.no_grad():
            return divergence(student(TOKENS), want(TOKENS)).item()

    assert distance(10.0) < 0.95 * distance(1e9)
