"""Logits as numpy arrays."""

from __future__ import annotations

import torch

from trtllm_pt.backends.embedded.logits_view import Views


def test_a_view_is_of_the_tensor_without_its_padding() -> None:
    views = Views(6)
    room = torch.empty(64)
    for rows, padded in ((2, 8), (3, 8), (2, 8), (2, 6)):
        tensor = room[: rows * padded].view(rows, padded)
        tensor.copy_(torch.rand(rows, padded))
        found = (views if padded == 8 else Views(6)).of(tensor, rows)
        assert found.tolist() == tensor[:, :6].tolist()
        tensor.add_(1)
        assert found.tolist() == tensor[:, :6].tolist()


def test_many_places() -> None:
    views, room = Views(2), torch.arange(400.0).view(200, 2)
    assert all(views.of(row[None], 1).tolist() == [row.tolist()] for row in room)
