"""One layer of a model at a time in memory, and the ends of the model around the layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trtllm_pt.checkpoint.source import Source
from trtllm_pt.model.tensors import TensorSpec, tensors
from trtllm_pt.network.reference import Layer, Norm

_TOKENS = 2048  # run at once


class Blocks:
    """The parts of a model with tracks, each loaded when it is asked for.

    Residual streams are float32. Products are in `dtype`, as in an engine of that dtype.
    """

    def __init__(self, source: Source, dtype: torch.dtype) -> None:
        self.source, self.config, self.dtype = source, source.config, dtype
        self._specs = {spec.name: spec for spec in tensors(source.config)}

    def load(self, number: int, dtype: torch.dtype | None = None) -> Layer:
        """Return a layer with its weights, in `dtype` or in the dtype of the products."""
        layer = Layer(self.config, number).to(dtype or self.dtype)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                spec = self._specs[f"transformer.layers.{number}.{name}"]
                for track in range(self.config.tracks) if spec.per_track else (0,):
                    part = parameter[track] if spec.per_track else parameter
                    part.copy_(self.source.read(spec, track, part.dtype))
        return layer.requires_grad_(False)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the stream [B, S, W] of `tokens` [B, S] before the first layer."""
        return F.embedding(tokens, self._read("transformer.vocab_embedding.weight")).float()

    def nats(self, x: Tensor, targets: Tensor) -> Tensor:
        """Return the mean nats per token, float64 [B], of `targets` [B, S] after the last stream x [B, S, W]."""
        norm = Norm(self.config, self.config.hidden_size, per_track=False)
        norm.weight = torch.nn.Parameter(self._read("transformer.ln_f.weight").float(), requires_grad=False)
        tied = self.config.tie_embeddings
        head = self._read("transformer.vocab_embedding.weight" if tied else "lm_head.weight")
        losses = [
            F.cross_entropy((norm(row).to(self.dtype) @ head.mT).float(), target, reduction="none").double().mean()
            for row, target in zip(x, targets, strict=True)
        ]
        return torch.stack(losses)

    def run(self, layer: Layer, x: Tensor, is_dropped: bool) -> Tensor:
        """Return the shared stream after a layer."""
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            return layer.spd_block(x, is_dropped).float()

    def _read(self, name: str) -> Tensor:
        spec: TensorSpec = self._specs[name]
        return self.source.read(spec, 0, self.dtype)


def batches(windows: int, length: int) -> list[slice]:
    """Return the windows that are run at once."""
    size = max(1, _TOKENS // length)
    return [slice(start, min(start + size, windows)) for start in range(0, windows, size)]
