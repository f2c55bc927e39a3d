"""Quantised matrices of an engine stand for the numbers of its checkpoint, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.checkpoint.models import saved
from tests.checkpoint.test_quantize import MODELS
from trtllm_pt.backends.embedded.pack import SHARED_FILE, storage_of, weight_infos, write_weights
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.checkpoint.manifest import CheckpointManifest, rank_file
from trtllm_pt.checkpoint.quantize import dequantize, unpack_int4
from trtllm_pt.checkpoint.ranks import open_rank
from trtllm_pt.files.safetensors import SafetensorsFile
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.model.tensors import DOWN, EMBEDDING, GATE, HEAD, UP, UP_GATE


def matrices(checkpoint: Path, manifest: CheckpointManifest, rank: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and the values [tracks, ..., outputs, inputs] of the engine's matrices in a rank's checkpoint."""
    algo = str(manifest.quant_algo)
    file, tracks = open_rank(checkpoint, manifest, rank), len(rank_layout(manifest.model, manifest.ranks, rank).tracks)

    def numbers(name: str) -> Tensor:
        stem = name.removesuffix("weight")
        grouped = f"{stem}weights_scaling_factor" in file
        scale = file.get(f"{stem}{'weights_scaling_factor' if grouped else 'per_channel_scale'}")
        zero = file.get(f"{stem}zero") if f"{stem}zero" in file else None
        assert grouped == ("G" in algo) and (zero is not None) == algo.endswith("ZP")
        weight = unpack_int4(file.get(name)) if algo.startswith("W4") else file.get(name)
        values = dequantize(weight, scale, torch.float32, zero)
        return values if tracks > 1 else values[None]

    for layer in range(manifest.model.num_layers):
        prefix = f"transformer.layers.{layer}."
        for name in ("attention.qkv.weight", "attention.dense.weight"):
            yield prefix + name, numbers(prefix + name)
        yield f"{prefix}mlp.down.weight", numbers(prefix + DOWN)
        if manifest.model.is_moe(layer):
            up, gate = numbers(prefix + UP_GATE).chunk(2, 2)
            yield f"{prefix}mlp.gate_up.weight", torch.stack((gate, up), 2)
        else:
            yield f"{prefix}mlp.gate_up.weight", torch.stack((numbers(prefix + GATE), numbers(prefix + UP)), 1)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", ["pt", "tp"])  # an own output head, and a tied one
def test_an_int8_embedding_and_head_stand_for_their_numbers(name: str, ranks: int, tmp_path: Path) -> None:
    _, folder = saved(MODELS[name], tmp_path / "model")
    checkpoint = convert(folder, tmp_path / "checkpoint", ranks, embedding="W8A16")
    manifest = CheckpointManifest.from_dir(checkpoint)
    write_weights(checkpoint, manifest, tmp_path, progress=False)
    config, form = manifest.model, storage_of(manifest).embedding_form
    assert form is not None
    want = load_reference(checkpoint)
    whole = want.transformer.vocab_embedding.weight.detach()
    head = whole if want.lm_head is None else want.lm_head.weight.detach()
    table = SafetensorsFile(tmp_path / SHARED_FILE).get(EMBEDDING)
    ids = torch.arange(config.vocab_size)
    got = torch.ops.trtllm_pt.gather_rows(ids, table, config.hidden_size, form.to_list(), torch.float32)
    assert table.dtype == torch.uint8 and torch.equal(got, whole)
    for rank in range(ranks):
        engine, rows = SafetensorsFile(rank_file(tmp_path, rank)), rank_layout(config, ranks, rank).vocab
        weight = table if config.tie_embeddings else engine.get(HEAD)
        units, first = torch.eye(config.hidden_size), engine.get("lm_head.first")
        columns = torch.ops.trtllm_pt.head(units, weight, first, len(rows), form.to_list())
        inside = min(rows.stop, config.vocab_size) - rows.start
        assert torch.equal(columns.mT[:inside], head[rows.start : rows.start + inside])


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("algo", ["W8A16", "W4A16", "W4A16-G64", "W4A16-G32-ZP"])
@pytest.mark.parametrize("name", MODELS)
def test_products_with_unit_vectors_are_the_columns(name: str, algo: str, ranks: int, tmp_path: Path) -> None:
    _, folder = saved(MODELS[name], tmp_path / "model")
    checkpoint = convert(folder, tmp_path / "checkpoint", ranks, quantize=algo)
    manifest = CheckpointManifest.from_dir(checkpoint)
    write_weights(checkpoint, manifest, tmp_path, progress=False)
    infos, shared = weight_infos(manifest), SafetensorsFile(tmp_path / SHARED_FILE)
    for rank in range(ranks):
        engine = SafetensorsFile(rank_file(tmp_path, rank))
        for weight, want in matrices(checkpoint, manifest, rank):
            assert weight not in shared
            rows, columns = want.shape[-2:]
            packed, form = engine.get(weight), storage_of(manifest).form(columns)
            assert packed.dtype == torch.uint8 and tuple(packed.shape) == infos[weight].shape and form is not None
            packed = packed.reshape(-1, *packed.shape[-2:])
            units = torch.eye(columns).expand(len(packed), -1, -1)
            got = torch.ops.trtllm_pt.linear(units, packed, None, rows, form.to_list())
            assert torch.equal(got.mT.reshape(want.shape), want), weight
