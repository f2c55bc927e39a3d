"""Share heads and neurons out over the tracks, as many to each, by what each one costs on each track."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trtllm_pt.model.config import ModelConfig


def share_neurons(cost: Tensor) -> list[int]:
    """Return the neuron at each place, by the costs [neurons, tracks]. The first places are the first track's."""
    return _in_order(range(len(cost)), balanced(cost))


def share_heads(dense: ModelConfig, cost: Tensor) -> list[int]:
    """Return the head at each place, by the costs [heads, tracks]. The heads of a KV head stay together.

    If there are more tracks than KV heads, several tracks have the same KV head, and share its heads.
    """
    tracks, size = cost.shape[1], dense.num_heads // dense.num_kv_heads
    teams = min(tracks, dense.num_kv_heads)  # of tracks with the same KV heads
    by_team = cost.view(dense.num_heads, teams, tracks // teams)
    team_of = balanced(by_team.mean(2).view(-1, size, teams).sum(1))
    order = list[int]()
    for team in range(teams):
        mine = [kv * size + head for kv, other in enumerate(team_of) if other == team for head in range(size)]
        order += _in_order(mine, balanced(by_team[mine, team]))
    return order


def balanced(cost: Tensor) -> list[int]:
    """Return the track of each unit, by the costs [units, tracks]. Every track has as many units.

    The units choose their cheapest track with room, first those that lose most by their second choice.
    """
    units, tracks = cost.shape
    best = cost.topk(min(2, tracks), largest=False).values
    first_to_choose = torch.argsort(best[:, -1] - best[:, 0], descending=True, stable=True).tolist()
    room, chosen = [units // tracks] * tracks, [0] * units
    for unit, choices in zip(first_to_choose, cost[first_to_choose].tolist(), strict=True):
        chosen[unit] = min((track for track in range(tracks) if room[track]), key=choices.__getitem__)
        room[chosen[unit]] -= 1
    return chosen


def _in_order(units: Sequence[int], tracks: list[int]) -> list[int]:
    return [unit for _, unit in sorted(zip(tracks, units, strict=True), key=lambda pair: pair[0])]
