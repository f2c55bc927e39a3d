"""Layers that are repaired: the order of heads, what they learn, and how they go on after an interruption."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.configs import PRETRAINED
from tests.spd.models import DENSE
from tests.spd.test_analyse import Killed, true_nats
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.load import load_reference, reference_of
from trtllm_pt.checkpoint.split import SplitSource
from trtllm_pt.cli.app import main
from trtllm_pt.spd import distil as module
from trtllm_pt.spd.blocks import Blocks
from trtllm_pt.spd.distil import distil
from trtllm_pt.spd.heads import GroupedHeads, Order, best_order, exchanged, exchanges, head_outputs, kv_order
from trtllm_pt.spd.learning import Lesson, Recipe, learn
from trtllm_pt.spd.windows import read_windows

ORDERS: dict[int, Order] = {0: (2, 3, 0, 1, 6, 7, 4, 5), 3: (7, 6, 1, 0, 4, 5, 3, 2)}
RECIPE = Recipe(steps=20, learning_rate=3e-3, batch_tokens=64, seed=3)


def test_an_order_moves_heads_and_nothing_else(model: Path) -> None:
    """In float64 each head adds to the stream what it added before, from another place.

    The weights are the same bits, as the next test shows. How a product is rounded depends on the place of its row on
    some processors, so outputs agree to the last digits only.
    """
    dense = open_source(model)
    before, after = (reference_of(source, torch.float64) for source in (dense, GroupedHeads(dense, ORDERS)))
    x = torch.randn(2, 9, DENSE.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(60).view(3, 20)
    with torch.no_grad():
        for layer in range(5):
            old, new = (head_outputs(each.transformer.layers[layer], x) for each in (before, after))
            order = list(ORDERS.get(layer, range(8)))
            torch.testing.assert_close(new, old[order], rtol=1e-12, atol=1e-12)
            assert torch.allclose(new, old, rtol=1e-9, atol=1e-9) == (layer not in ORDERS)
        torch.testing.assert_close(after(tokens), before(tokens), rtol=1e-11, atol=1e-11)


def test_an_order_and_its_inverse_give_the_same_weights(model: Path) -> None:
    inverse = {layer: tuple(order.index(head) for head in range(8)) for layer, order in ORDERS.items()}
    dense = open_source(model)
    back = GroupedHeads(GroupedHeads(dense, ORDERS), inverse)
    want = dict(reference_of(dense, torch.float64).named_parameters())
    for name, value in reference_of(back, torch.float64).named_parameters():
        assert torch.equal(value, want[name]), name


@pytest.mark.parametrize("tracks", [2, 4, 8])
def test_exchanges_keep_the_heads_of_a_kv_head_together(tracks: int) -> None:
    """8 heads, 4 KV heads."""
    for config, pairs in ((DENSE, {2: 4, 4: 6, 8: 6 + 4}), (DENSE.replace(num_kv_heads=8), {2: 16, 4: 24, 8: 28})):
        found = list(exchanges(config, tracks))
        assert len(found) == pairs[tracks]
        for first, second in found:
            order = exchanged(tuple(range(8)), first, second)
            assert sorted(order) == list(range(8))
            assert sorted(kv_order(config, order)) == list(range(config.num_kv_heads))


@pytest.mark.parametrize(("tracks", "least"), [(2, 0.0), (4, 0.01), (8, 0.01)])
def test_the_best_order_is_better_than_all_that_are_one_exchange_away(model: Path, tracks: int, least: float) -> None:
    dense = open_source(model)
    x = torch.randn(2, 9, DENSE.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def error(order: Order) -> float:
        source = SplitSource(GroupedHeads(dense, {1: order}), tracks)
        block = Blocks(source, torch.float64).load(1)
        torch.testing.assert_close(block.spd_block(x, False), target, rtol=1e-11, atol=1e-11)
        return float((block.spd_block(x, True) - target).square().mean())

    with torch.no_grad():
        block = Blocks(SplitSource(dense, tracks), torch.float64).load(1)
        target = block.spd_block(x, False)
        order = best_order(dense.config, block, x)
        found = error(order)
        assert found <= (1 - least) * error(tuple(range(8)))
        assert all(error(exchanged(order, *pair)) > found for pair in exchanges(dense.config, tracks))


def test_layers_learn_and_the_model_that_is_written_is_the_one_that_was_measured(
    model: Path, text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "spd"
    found = distil(
        model, folder, 4, [text], (1, 2, 3), learn=(1, 3), group=(3,), recipe=RECIPE, window=16, progress=False
    )
    assert list((tmp_path / "cache" / "spd").iterdir()) == []
    one, two, three = found.layers
    assert (two.grouped, two.after, one.grouped) == (None, None, None)
    assert one.after is not None and three.grouped is not None and three.after is not None
    assert one.after < 0.9 * one.before and three.after < 0.9 * three.grouped and three.grouped != three.before
    windows = read_windows(open_source(folder), [text], 16, 65536)
    assert (found.windows, found.held_out_windows) == (19, 6)
    for dropped, perplexity in (((), found.perplexity), ((1, 2, 3), found.dropped_perplexity)):
        assert math.exp(true_nats(model, dropped, windows)[19:].mean()) == pytest.approx(perplexity, rel=1e-4)
    with torch.no_grad():
        repaired = load_reference(folder, torch.float64).requires_grad_(False)
    losses = torch.nn.functional.cross_entropy(repaired(windows[19:, :-1]).flatten(0, 1), windows[19:, 1:].flatten())
    assert math.exp(losses) == pytest.approx(found.perplexity_after, rel=1e-4)
    changed = {
        name
        for name, value in reference_of(SplitSource(open_source(model), 4), torch.float64).named_parameters()
        if not torch.equal(value, dict(repaired.named_parameters())[name])
    }
    assert {name.split(".")[2] for name in changed} == {"1", "3"}


def test_a_killed_command_ends_with_the_same_weights(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(output: Path, most: float = math.inf) -> tuple[list[tuple[int, int]], dict[str, torch.Tensor]]:
        """The steps that are made until the command is killed, or all of them."""
        made: list[tuple[int, int]] = []
        pair = module._Repair._pair

        def count(self: module._Repair, layer: int, some: slice | list[int]) -> tuple[torch.Tensor, torch.Tensor]:
            if isinstance(some, list):
                if len(made) >= most:
                    raise Killed
                made.append((layer, some[0]))
            return pair(self, layer, some)

        with monkeypatch.context() as patch:
            patch.setattr(module._Repair, "_pair", count)
            try:
                distil(model, output, 4, [text], (1, 3), group=(3,), recipe=RECIPE, window=16, progress=False)
            except Killed:
                assert not output.exists()
                return made, {}
        return made, dict(load_reference(output).named_parameters())

    monkeypatch.setenv("TRTLLM_PT_CACHE", str(tmp_path / "whole"))
    whole, want = run(tmp_path / "one")
    assert len(whole) == 2 * RECIPE.steps
    monkeypatch.setenv("TRTLLM_PT_CACHE", str(tmp_path / "killed"))
    parts = [run(tmp_path / "two", most)[0] for most in (7, 1, 16, 9)]
    rest, got = run(tmp_path / "two")
    assert sum(map(len, parts)) + len(rest) < len(whole) + 2 * len(parts) + 1  # the state is saved every two steps
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert [first <= second for first, second in pairwise(layer for layer, _ in rest)]


def test_the_held_out_loss_is_not_computed_where_nobody_sees_it(tmp_path: Path) -> None:
    module, seen = torch.nn.Linear(2, 1), [0]

    def held_out() -> float:
        seen[0] += 1
        return 0.0

    for number, hide_bar in enumerate((True, False)):
        lesson = Lesson(
            "bar", 4, 1, 0, lambda step, drawn: module(torch.ones(2)).sum(), held_out, tmp_path / str(number)
        )
        learn(module, Recipe(steps=10, batch_tokens=1), lesson, hide_bar)
        assert seen[0] == (0 if hide_bar else 10)


MISTAKES = {
    "a PT model": ("--drop 1", "the model has schedule 'pt'; only a dense model, of schedule 'tp'"),
    "no such layer": ("--drop 5", "--drop (5) must be layers between 0 and 4"),
    "not dropped": ("--drop 1-2 --learn 3", "--learn (3) must be among the dropped layers"),
    "grouped but not dropped": ("--drop 1 --group 0", "--group (0) must be among the dropped layers"),
    "none": ("--drop none", "--drop must name at least one layer"),
    "no layers": ("--drop few", "Invalid value for '--drop': 'few' is not a list of layers, such as 0,3-5"),
    "learning rate": ("--drop 1 --learning-rate 0", "Invalid value for '--learning-rate': 0.0 is not in the range x>0"),
    "heads": ("--drop 1 -g 3", "ranks (3) must divide num_heads (8)"),
    "short text": ("--drop 1 --window 128", "it must have at least 1025, for 8 windows of 128 (--window)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = MISTAKES[name]
    words = ["-g", "4", "--text", str(text), "--window", "16", "-o", str(tmp_path / "out"), *arguments.split()]
    subject = PRETRAINED if name == "a PT model" else model
    with pytest.raises(SystemExit) as ended:
        main(["spd", "distil", str(subject), *words])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out").exists()
