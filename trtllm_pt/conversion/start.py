"""Where a dense model starts as a model with tracks: which heads and neurons each track gets, and what it writes.

The dense model runs once over some text, layer by layer. At each sub-layer it is known what every track's stream would
lack there under the schedule, and so by how much each head's and each neuron's output would be wrong on each track.
Heads and neurons go where they are least wrong, as many to each track.

A track of schedule dtp adds its own part of a sub-layer's output, and the other parts come later. A track of schedule
pt sees only what it adds itself until the end of the block, where the mean over the tracks is taken. With contexts c
(the outputs of all heads, or the hidden values of all neurons), of which track i has c_i, and the dense output W c,
track i adds M_i c_i. The mean of these is the dense output if M_i = n W_i, but then every track takes its own part for
all of it. The best guess that a track can make alone is the linear regression of W c on c_i. `guesses` is between the
two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from trtllm_pt.checkpoint.source import Source
from trtllm_pt.checkpoint.split import SplitSource
from trtllm_pt.conversion.arrangement import Arranged, Arrangement
from trtllm_pt.conversion.sharing import share_heads, share_neurons
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.tensors import DOWN, TensorSpec
from trtllm_pt.network.module import Module
from trtllm_pt.network.reference import Layer
from trtllm_pt.spd.blocks import Blocks

STRENGTH = 10.0
_RIDGE = 1e-4  # of the contexts' mean square: contexts that depend on each other have a solution, too


class TracksOfDense:
    """A `Source` of the model with tracks that a dense model starts as.

    written: by the weights' names, what the tracks write instead of their parts of the dense weights, [n, W, I / n].
    """

    def __init__(self, arranged: Source, config: ModelConfig, written: dict[str, Tensor]) -> None:
        self._split, self._written = SplitSource(arranged, config.tracks), written
        self.config = config
        self.dtype = arranged.dtype
        self.tokenizer: Path | None = arranged.tokenizer

    def read(self, spec: TensorSpec, track: int, dtype: torch.dtype) -> Tensor:
        if spec.name in self._written:
            return self._written[spec.name][track].to(dtype)
        return self._split.read(spec, track, dtype)


@torch.no_grad()
def start(
    dense: Source,
    config: ModelConfig,
    tokens: Tensor,
    *,
    arranged: bool = True,
    strength: float = STRENGTH,
    hide_bar: bool | None = None,
) -> TracksOfDense:
    """Return a dense model as a model of `config`, of schedule pt or dtp, by what it computes for tokens [B, S].

    arranged: whether heads and neurons change places. strength: see `guesses`.
    Peak memory: one layer in float32, and for each track the streams of the tokens.
    """
    blocks = Blocks(dense, torch.float32)
    x = blocks.embed(tokens)
    lacking = _Lacking(config)
    arrangements, written = list[Arrangement](), dict[str, Tensor]()
    for number in tqdm(range(config.num_layers), "arranging", unit="layer", disable=hide_bar):
        orders = []
        for part in _sub_layers(blocks.load(number)):
            seen = part.contexts(x)
            whole = seen @ part.weight.mT
            order = list(range(part.units))
            if arranged and (missing := lacking.now()) is not None:
                wrong = torch.stack([part.wrong(part.contexts(x - each) - seen) for each in missing], 1)
                order = share_neurons(wrong) if part.name == DOWN else share_heads(dense.config, wrong)
            ends = part.name == DOWN and config.ends_block(number)
            c, weight = part.ordered(seen, order), part.ordered(part.weight, order)
            own = split(weight, config.tracks).transpose(0, 1)
            if config.schedule == "pt":
                own = config.tracks * own if ends else guesses(weight, c.flatten(0, 1), config.tracks, strength)
                written[f"transformer.layers.{number}.{part.name}"] = own
            lacking.add(whole - torch.einsum("bsnk,nwk->nbsw", split(c, config.tracks), own), ends)
            x = x + whole
            orders.append(tuple(order))
        arrangements.append(Arrangement(*orders))
    return TracksOfDense(Arranged(dense, arrangements), config, written)


def guesses(weight: Tensor, contexts: Tensor, tracks: int, strength: float) -> Tensor:
    """Return what each track writes for its own contexts c_i, M [n, W, I / n], which minimises

        strength * E|mean_i M_i c_i - W c|^2 + mean_i E|M_i c_i - W c|^2

    weight: W [W, I]. contexts: c [T, I], over which E is the mean. Where the gradient is zero,
    M (strength C + n diag_i C_ii) = n (1 + strength) W C with C = E c c^T.
    """
    c, w = contexts.double(), weight.double()
    second = c.mT @ c / len(c)
    second += _RIDGE * second.diagonal().mean() * torch.eye(len(second), dtype=c.dtype)
    size = weight.shape[1] // tracks
    same_track = torch.arange(len(second)) // size
    own = second * (same_track[:, None] == same_track)
    m: Tensor = torch.linalg.solve(strength * second + tracks * own, tracks * (1 + strength) * second @ w.mT).mT
    return split(m, tracks).transpose(0, 1).to(weight.dtype)


def split(values: Tensor, parts: int) -> Tensor:
    """Return [..., parts, I / parts] of values [..., I]."""
    return values.reshape(*values.shape[:-1], parts, -1)


class _Lacking:
    """What each track's stream lacks of the dense model's, under a schedule."""

    def __init__(self, config: ModelConfig) -> None:
        self.config, self._parts = config, list[Tensor]()

    def now(self) -> Tensor | None:
        """Return it for each track, [n, B, S, W], or None if all is there."""
        return sum(self._parts[1:], self._parts[0]) if self._parts else None

    def add(self, part: Tensor, ends_block: bool) -> None:
        """Go on after a sub-layer whose output the tracks see without `part`."""
        self._parts.append(part)
        if self.config.schedule == "pt":
            self._parts = [] if ends_block else self._parts
        else:
            delay = self.config.delay
            assert delay is not None
            self._parts = self._parts[len(self._parts) - min(delay, len(self._parts)) :]


@dataclass(frozen=True, slots=True)
class _SubLayer:
    """The attention or the FFN of a dense layer: heads or neurons, whose contexts a last matrix [W, I] reads."""

    name: str  # of the last matrix
    layer: Layer
    last: Module
    units: int

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self.last.weight[0]  # type: ignore[index]
        return weight

    def contexts(self, x: Tensor) -> Tensor:
        """Return what the last matrix reads for the stream x [B, S, W]: [B, S, I]."""
        seen = list[Tensor]()
        hook = self.last.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
        (self.layer.ffn_out if self.name == DOWN else self.layer.attention_out)(x[None])
        hook.remove()
        return seen[0]

    def wrong(self, difference: Tensor) -> Tensor:
        """Return by how much each unit's output is wrong, squared, [units], for a difference of contexts [B, S, I]."""
        d = split(difference.flatten(0, 1), self.units)
        w = split(self.weight, self.units)
        return torch.einsum("tud,ude,tue->u", d, torch.einsum("wud,wue->ude", w, w), d)

    def ordered(self, values: Tensor, order: list[int]) -> Tensor:
        """Return [..., I] with the units in an order."""
        return split(values, self.units)[..., order, :].flatten(-2)


def _sub_layers(layer: Layer) -> Iterator[_SubLayer]:
    yield _SubLayer("attention.dense.weight", layer, layer.attention.dense, layer.config.num_heads)
    yield _SubLayer(DOWN, layer, layer.mlp.proj, layer.config.intermediate_size)  # type: ignore[arg-type]
