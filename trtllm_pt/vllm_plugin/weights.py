"""Load a rank's part of every weight into the modules of model.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trtllm_pt.checkpoint.ranks import rank_part, rank_tensors
from trtllm_pt.checkpoint.source import listed
from trtllm_pt.errors import UsageError
from trtllm_pt.model.tensors import TensorSpec

if TYPE_CHECKING:
    from trtllm_pt.vllm_plugin.model import ParallelTrackForCausalLM

_HEAD = "lm_head.weight"


def load(model: ParallelTrackForCausalLM, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Copy this rank's part of each weight of a MODEL_DIR, and return the names of the parameters.

    The weights are views of mapped files, so those of other ranks' tracks are never read.
    """
    specs = {spec.name: spec for spec in rank_tensors(model.config)}
    left = set(specs)
    with torch.no_grad():
        for name, whole in weights:
            if name not in specs:
                raise UsageError(f"the model has a tensor that its config does not call for: {name}")
            _load_tracks(model, specs[name], whole) if specs[name].per_track else _load_shared(model, name, whole)
            left.discard(name)
        if model.config.tie_embeddings and _HEAD in left:
            _load_shared(model, _HEAD, model.transformer.vocab_embedding.weight)
            left.discard(_HEAD)
    if left:
        raise UsageError(f"the model lacks the tensors {listed(sorted(left))}")
    return {name for name, _ in model.named_parameters()}


def _load_tracks(model: ParallelTrackForCausalLM, spec: TensorSpec, whole: Tensor) -> None:
    layer, _, within = spec.name.partition(".mlp.")
    stem, _, leaf = (f"{layer}.mlp", "", f"mlp.{within}") if within else spec.name.rpartition(".")
    module: Any = model.get_submodule(stem)  # one of layers.py, each of which has a method `place`
    for place, track in enumerate(range(model.layout.tracks.start, model.layout.tracks.stop)):
        module.place(leaf, place, rank_part(spec, model.config, model.layout, whole[track]))


def _load_shared(model: ParallelTrackForCausalLM, name: str, whole: Tensor) -> None:
    if name == _HEAD:
        model.lm_head.weight.weight_loader(model.lm_head.weight, whole)
    else:
        model.get_parameter(name).view(whole.shape).copy_(whole)
