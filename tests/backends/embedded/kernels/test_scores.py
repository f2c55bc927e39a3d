"""The ops of log-probs against plain float64, and the same bits for any number of ranks."""

from __future__ import annotations

import math

import pytest
import torch

INF = math.inf


def scored(ops, logits, targets, k, ranks):
    """As the ranks do it: each scores its slice of the padded vocabulary."""
    vocab = logits.shape[1]
    n = -(-vocab // ranks)
    padded = torch.nn.functional.pad(logits, (0, ranks * n - vocab), value=-INF)
    slices = [padded[:, rank * n : (rank + 1) * n].contiguous() for rank in range(ranks)]
    parts = torch.stack([ops.score_slice(part, rank * n, vocab, targets, k) for rank, part in enumerate(slices)])
    return ops.merge_scores(parts, n, vocab, k)


@pytest.mark.parametrize("vocab", [1, 7, 255, 256, 257, 1000, 1024, 5000])
@pytest.mark.parametrize("k", [0, 1, 5, 20])
def test_log_softmax_and_the_likeliest_tokens(ops, vocab, k):
    torch.manual_seed(vocab)
    logits = 4 * torch.randn(6, vocab)
    logits[1] = logits[1].round()  # ties
    logits[2] += 1e4
    logits[3, vocab // 2 :] = -INF
    logits[3, 0] = 0
    logits[4] = 0
    targets = torch.randint(vocab, (6,))
    targets[0], targets[1], targets[3] = 0, vocab - 1, 0
    want = logits.double().log_softmax(1)
    order = (-logits).argsort(dim=1, stable=True)[:, :k]
    first = scored(ops, logits, targets, k, 1)
    chosen, top, tokens = first
    torch.testing.assert_close(chosen, want.gather(1, targets[:, None])[:, 0], rtol=0, atol=2e-6)
    for row in range(6):
        few = min(k, int((logits[row] > -INF).sum()))
        assert tokens[row, :few].tolist() == order[row, :few].tolist()
        torch.testing.assert_close(top[row, :few], want[row, order[row, :few]], rtol=0, atol=2e-6)
        assert (top[row, few:] == -INF).all()
    for ranks in (2, 3, 4, 8):
        again = scored(ops, logits, targets, k, ranks)
        for one, other in zip(first[:2], again[:2], strict=True):
            assert torch.equal(one, other), ranks
        finite = top > -INF
        assert torch.equal(tokens[finite], again[2][finite])


def test_rows_are_scored_alone_as_together(ops):
    logits, targets = torch.randn(9, 700), torch.arange(9)
    together = scored(ops, logits, targets, 4, 2)
    for row in range(9):
        alone = scored(ops, logits[row : row + 1], targets[row : row + 1], 4, 2)
        assert all(torch.equal(one[row : row + 1], other) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("place", [0, 300, 699])
def test_logits_that_are_no_numbers_show(ops, bad, place):
    logits = torch.randn(1, 700)
    logits[0, place] = bad
    for ranks in (1, 3):
        chosen, _, _ = scored(ops, logits, torch.tensor([5]), 0, ranks)
        assert not torch.isfinite(chosen).any()


def test_no_possible_token(ops):
    chosen, top, _ = scored(ops, torch.full((1, 600), -INF), torch.tensor([3]), 2, 2)
    assert not torch.isfinite(chosen).any() and not torch.isfinite(top).any()


def test_wrong_arguments(ops):
    logits = torch.randn(2, 10)
    with pytest.raises(RuntimeError, match="targets"):
        ops.score_slice(logits, 0, 10, torch.zeros(3, dtype=torch.int64), 0)
    with pytest.raises(RuntimeError, match="must not be negative"):
        ops.score_slice(logits, 0, 10, torch.zeros(2, dtype=torch.int64), -1)
    part = ops.score_slice(logits, 0, 10, torch.zeros(2, dtype=torch.int64), 1)
    with pytest.raises(RuntimeError, match="are not the vocabulary's 11"):
        ops.merge_scores(part[None], 10, 11, 1)
    with pytest.raises(RuntimeError, match="parts"):
        ops.merge_scores(part[None], 10, 10, 2)
