"""Load a rank's part of every weight into the modules of model.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trtllm_pt.checkpoint.ranks import rank_part
from trtllm_pt.checkpoint.source import listed
from trtllm_pt.errors import UsageError
from trtllm_pt.model.quantization import is_quantized
from trtllm_pt.model.tensors import HEAD, TensorSpec, rank_tensors

if TYPE_CHECKING:
    from trtllm_pt.vllm_plugin.model import ParallelTrackForCausalLM


def load(model: ParallelTrackForCausalLM, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Copy this rank's part of each weight of a MODEL_DIR, and return the names of the parameters.

    The weights are views of mapped files, so those of other ranks' tracks are never read.
    """
    specs = {spec.name: spec for spec in rank_tensors(model.config)}
    left = set(specs)
    with torch.no_grad():
        for name, whole in weights:
            stem, _, leaf = name.rpartition(".")
            spec = specs.get(name if leaf == "bias" else f"{stem}.weight")
            if spec is None or (name != spec.name and not is_quantized(spec)):
                raise UsageError(f"the model has a tensor that its config does not call for: {name}")
            _load_tracks(model, spec, leaf, whole) if spec.per_track else _load_shared(model, name, whole)
            left.discard(spec.name)
        if model.config.tie_embeddings and HEAD in left:
            _load_shared(model, HEAD, model.transformer.vocab_embedding.weight)
            left.discard(HEAD)
    if left:
        raise UsageError(f"the model lacks the tensors {listed(sorted(left))}")
    return {name for name, _ in model.named_parameters()}


def _load_tracks(model: ParallelTrackForCausalLM, spec: TensorSpec, leaf: str, whole: Tensor) -> None:
    """Copy the rank's tracks of a weight, or of one of the tensors that store it quantised, which are not divided."""
    stem = spec.name.rpartition(".")[0]
    layer, _, matrix = stem.partition(".mlp.")
    module: Any = model.get_submodule(f"{layer}.mlp" if matrix else stem)
    for place, track in enumerate(range(model.layout.tracks.start, model.layout.tracks.stop)):
        stored = is_quantized(spec) and model.is_stored_quantized
        part = whole[track] if stored else rank_part(spec, model.config, model.layout, whole[track])
        module.place(f"mlp.{matrix}.{leaf}" if matrix else leaf, place, part)


def _load_shared(model: ParallelTrackForCausalLM, name: str, whole: Tensor) -> None:
    if name == HEAD:
        model.lm_head.weight.weight_loader(model.lm_head.weight, whole)
    else:
        model.get_parameter(name).view(whole.shape).copy_(whole)
