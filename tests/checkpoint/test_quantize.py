"""Weight-only checkpoints: integers and scales by other means, and bit for bit through files of any number of ranks."""

from __future__ import annotations

import ast
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from tests.checkpoint.models import DENSE, MOE, PT, saved
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.checkpoint.quantize import dequantize, pack_int4, quantize_groups, quantize_rows, unpack_int4
from trtllm_pt.checkpoint.ranks import CheckpointDir
from trtllm_pt.errors import UsageError
from trtllm_pt.model import cost
from trtllm_pt.model.quantization import WEIGHT_ONLY, Quantization, is_embedding, is_quantized
from trtllm_pt.model.tensors import rank_tensors, tensors

BITS = {"W8A16": 8, "W4A16": 4}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A rank's part of everything is a multiple of 64, on up to 8 ranks.
SIZES = {"hidden_size": 64, "num_layers": 2}
TP = SIZES | {"num_heads": 32, "num_kv_heads": 32, "intermediate_size": 512}
MODELS = {
    "pt": PT.replace(**SIZES),
    "pt, experts": PT.replace(**SIZES, **MOE | {"moe_intermediate_size": 64}, qkv_bias=True, tie_embeddings=True),
    "tp": DENSE.replace(**TP, output_bias=True, tie_embeddings=True),
    "tp, few KV heads": DENSE.replace(**TP | {"num_heads": 8, "num_kv_heads": 2, "head_size": 64}),
    "tp, experts": DENSE.replace(**TP, **MOE | {"moe_intermediate_size": 512}),
}
weights = st.builds(
    lambda seed, shape, size: torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size,
    st.integers(0, 99),
    st.sampled_from([(1, 2), (8, 64), (3, 5, 16)]),
    st.sampled_from([1e-6, 0.02, 1.0, 300.0]),
)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("algo", BITS)
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_gives_back_what_was_quantised(name: str, algo: str, ranks: int, tmp_path: Path) -> None:
    model, folder = saved(MODELS[name], tmp_path / "model")
    source = CheckpointDir(convert(folder, tmp_path / "ckpt", ranks, quantize=algo))
    parameters = dict(model.named_parameters())
    for spec in rank_tensors(model.config):
        whole = parameters[spec.name if spec.name in parameters else "transformer.vocab_embedding.weight"].detach()
        for track in range(model.config.tracks if spec.per_track else 1):
            weight = whole[track] if spec.per_track else whole
            want = [*quantize_rows(weight, BITS[algo], torch.float32)] if is_quantized(spec) else [weight]
            got = source.stored(spec, track)
            assert [t.dtype for t in got] == [t.dtype for t in want]
            assert all(map(torch.equal, got, want)), spec.name


GROUPED = [name for name, kind in WEIGHT_ONLY.items() if kind.group is not None]


@pytest.mark.parametrize(("algo", "ranks"), [("W4A16-G64", 1), ("W4A16-G64", 8), ("W4A16-G32-ZP", 2)])
@pytest.mark.parametrize("name", ["pt, experts", "tp", "tp, experts"])
def test_groups_are_kept_and_divided_with_their_inputs(name: str, algo: str, ranks: int, tmp_path: Path) -> None:
    model, folder = saved(MODELS[name], tmp_path / "model")
    source = CheckpointDir(convert(folder, tmp_path / "ckpt", ranks, quantize=algo))
    parameters = dict(model.named_parameters())
    for spec in filter(is_quantized, rank_tensors(model.config)):
        for track in range(model.config.tracks):
            want = quantize_groups(parameters[spec.name][track].detach(), WEIGHT_ONLY[algo], torch.float32)
            got = source.stored(spec, track)
            assert [t.dtype for t in got] == [t.dtype for t in want]
            assert all(map(torch.equal, got, want)), spec.name
            dequantised = source.read(spec, track, torch.float32)
            assert torch.equal(dequantised, dequantize(want[0], want[1], torch.float32, *want[2:]))


@pytest.mark.parametrize("algo", GROUPED)
@pytest.mark.parametrize("shift", [0.0, 0.7, -3.0])
def test_a_grouped_weight_is_within_half_a_step(algo: str, shift: float) -> None:
    kind, weight = WEIGHT_ONLY[algo], torch.randn(3, 8, 256) + shift
    assert kind.group is not None
    values, scale, *zero = quantize_groups(weight, kind, torch.float32)
    assert values.shape == weight.shape and scale.shape == (3, 8, 256 // kind.group) and len(zero) == kind.zeros
    most = 2 ** (kind.bits - 1)
    assert all(int(t.min()) >= -most and int(t.max()) < most for t in (values, *zero))
    steps = (dequantize(values, scale, torch.float32, *zero) - weight).view(*scale.shape, -1).abs() / scale[..., None]
    # Without zero points the largest positive value of a group is rounded down by up to a whole step, and with them a
    # value at the end of the range by the half step by which the zero point was rounded.
    assert float(steps.max()) <= 1.0 + 1e-4


def test_zero_points_keep_zero_exact() -> None:
    weight = torch.rand(4, 64) + 0.2
    weight[:, ::5] = 0
    values, scale, zero = quantize_groups(weight, WEIGHT_ONLY["W4A16-G32-ZP"], torch.bfloat16)
    assert dequantize(values, scale, torch.bfloat16, zero)[:, ::5].eq(0).all()


@given(weights, st.sampled_from([8, 4]), st.sampled_from(DTYPES))
def test_integers_are_the_nearest_under_the_scale_as_stored(weight: Tensor, bits: int, dtype: torch.dtype) -> None:
    integers, scale = quantize_rows(weight, bits, dtype)
    most = 2 ** (bits - 1)
    assert integers.dtype == torch.int8 and scale.dtype == dtype
    amax = np.abs(weight.numpy()).max(-1)
    assert torch.equal(scale, torch.from_numpy(amax / np.float32(most)).to(dtype).masked_fill(scale == 1, 1))
    exact = weight.double().numpy() / scale.double().numpy()[..., None]
    assert np.array_equal(integers.numpy(), np.clip(np.rint(exact.astype(np.float32)), -most, most - 1))


@given(weights, st.sampled_from([8, 4]))
def test_as_torch_fakes_it(weight: Tensor, bits: int) -> None:
    """torch multiplies by the reciprocal: the same but for values within a few roundings of a tie."""
    integers, scale = quantize_rows(weight, bits, torch.float32)
    rows, most = weight.flatten(0, -2), 2 ** (bits - 1)
    zeros = torch.zeros(len(rows), dtype=torch.int32)
    theirs = torch.fake_quantize_per_channel_affine(rows, scale.flatten(), zeros, 0, -most, most - 1)
    steps = rows / scale.flatten()[:, None]
    is_tie = (steps - steps.floor() - 0.5).abs() < 1e-4
    ours = dequantize(integers, scale, torch.float32).flatten(0, -2)
    assert torch.equal(ours[~is_tie], theirs[~is_tie])


@pytest.mark.skipif("TRTLLM_CHECKOUT" not in os.environ, reason="TRTLLM_CHECKOUT names no TensorRT-LLM sources")
@given(weights.filter(lambda weight: len(weight) == 8), st.sampled_from([8, 4]))
def test_as_tensorrt_llm_itself(weight: Tensor, bits: int) -> None:
    """Its Python quantiser, which takes [I, O]: the integers, the scales, and which value of two is in which half."""
    source = Path(os.environ["TRTLLM_CHECKOUT"], "tensorrt_llm/quantization/functional.py").read_text()
    (function,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "symmetric_quantize_last_axis_of_batched_matrix"
    )
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([function], []), "functional.py", "exec"), scope)
    theirs, their_scale = scope[function.name](weight.mT.contiguous(), torch.int8 if bits == 8 else torch.quint4x2)
    integers, scale = quantize_rows(weight, bits, torch.float32)
    stored = integers if bits == 8 else pack_int4(integers)
    assert torch.equal(theirs.reshape(stored.shape), stored) and torch.equal(their_scale, scale)


@pytest.mark.parametrize(("quantize", "ranks"), [(None, 1), ("W4A16-G64", 2), ("W8A16", 8)])
@pytest.mark.parametrize("name", ["pt", "pt, experts", "tp"])  # an own output head, and a tied one
def test_the_embedding_and_the_head_are_quantised(name: str, quantize: str | None, ranks: int, tmp_path: Path) -> None:
    """And 101 tokens are divided over any number of ranks, each with its scales."""
    model, folder = saved(MODELS[name], tmp_path / "model")
    source = CheckpointDir(convert(folder, tmp_path / "ckpt", ranks, quantize=quantize, embedding="W8A16"))
    parameters = dict(model.named_parameters())
    for spec in filter(is_embedding, rank_tensors(model.config)):
        whole = parameters[spec.name if spec.name in parameters else "transformer.vocab_embedding.weight"].detach()
        want = quantize_rows(whole, 8, torch.float32)
        assert all(map(torch.equal, source.stored(spec, 0), want)), spec.name
        assert torch.equal(source.read(spec, 0, torch.float32), dequantize(*want, torch.float32))
    head = load_file(tmp_path / f"ckpt/rank{ranks - 1}.safetensors")
    rows = -(-101 // ranks)
    assert head["lm_head.weight"].shape == (rows, 64) and head["lm_head.per_channel_scale"].shape == (rows,)
    quantization = Quantization(matrices=quantize, embedding="W8A16")
    nbytes = sum(tensor.nbytes for tensor in load_file(tmp_path / "ckpt/rank0.safetensors").values())
    assert cost.bytes_per_rank(model.config, ranks, "float32", quantization, own_head=True) == nbytes


def test_a_quantised_checkpoint_can_get_a_quantised_embedding(tmp_path: Path) -> None:
    _, folder = saved(MODELS["tp"], tmp_path / "model")
    at_once = convert(folder, tmp_path / "at-once", 2, quantize="W4A16", embedding="W8A16")
    later = convert(convert(folder, tmp_path / "first", 1, quantize="W4A16"), tmp_path / "later", 2, embedding="W8A16")
    again = convert(at_once, tmp_path / "again", 2)
    for path in at_once.iterdir():
        assert path.read_bytes() == (later / path.name).read_bytes() == (again / path.name).read_bytes(), path.name
    with pytest.raises(UsageError, match=r"embedding \('W8A16'\) .* already W4A16 \+ W8A16 embedding; convert"):
        convert(at_once, tmp_path / "twice", 2, embedding="W8A16")


def test_an_int8_cache_has_no_scales_in_files(tmp_path: Path) -> None:
    _, folder = saved(MODELS["tp"], tmp_path / "model")
    plain = convert(folder, tmp_path / "plain", 2, quantize="W4A16")
    for source in (folder, plain):
        checkpoint = convert(source, tmp_path / f"{source.name}-8", 2, kv_cache="INT8")
        assert CheckpointDir(checkpoint).manifest.kv_cache_quant_algo == "INT8"
    for rank in range(2):
        same = [(each / f"rank{rank}.safetensors").read_bytes() for each in (plain, tmp_path / "plain-8")]
        assert same[0] == same[1]
    heads, size = 16, MODELS["tp"].head_size  # on each of 2 ranks
    assert cost.kv_bytes_per_token(MODELS["tp"], 2, "bfloat16", "INT8") == 2 * 2 * heads * (size + 4)


def test_a_row_of_zeros() -> None:
    integers, scale = quantize_rows(torch.tensor([[0.0, 0.0], [1.0, -2.0]]), 8, torch.float16)
    assert integers.tolist() == [[0, 0], [64, -128]] and scale.tolist() == [1, 1 / 64]


@given(st.lists(st.integers(-8, 7), min_size=2, max_size=8).filter(lambda values: len(values) % 2 == 0))
def test_two_values_a_byte(values: list[int]) -> None:
    packed = pack_int4(torch.tensor(values, dtype=torch.int8))
    as_bytes = [(odd % 16) << 4 | even % 16 for even, odd in zip(values[::2], values[1::2], strict=True)]
    assert packed.view(torch.uint8).tolist() == as_bytes
    assert unpack_int4(packed).tolist() == values


@pytest.mark.parametrize("algo", BITS)
def test_the_files(algo: str, tmp_path: Path) -> None:
    """Names, dtypes and shapes by the format's own library; rows and columns where they belong."""
    model, folder = saved(MODELS["tp, experts"], tmp_path / "model")
    checkpoint = convert(folder, tmp_path / "ckpt", 2, "bfloat16", quantize=algo)
    files = [load_file(checkpoint / f"rank{rank}.safetensors") for rank in range(2)]
    per_byte = 8 // BITS[algo]
    moe, prefix = "transformer.layers.1.mlp.", "transformer.layers.0."
    shapes = {
        f"{prefix}attention.qkv.weight": (768, 64 // per_byte),
        f"{prefix}attention.qkv.per_channel_scale": (768,),
        f"{prefix}attention.dense.weight": (64, 256 // per_byte),
        f"{prefix}attention.dense.per_channel_scale": (64,),
        f"{moe}fc.weight": (4, 512, 64 // per_byte),
        f"{moe}fc.per_channel_scale": (4, 512),
        f"{moe}proj.weight": (4, 64, 256 // per_byte),
        f"{moe}proj.per_channel_scale": (4, 64),
    }
    for name, shape in shapes.items():
        for file in files:
            assert tuple(file[name].shape) == shape and file[name].dtype == (
                torch.int8 if name.endswith("weight") else torch.bfloat16
            )
    for name in (f"{prefix}attention.dense.per_channel_scale", f"{moe}proj.per_channel_scale"):
        assert torch.equal(files[0][name], files[1][name])  # inputs are divided: a row's scale is of the whole row
    assert files[0][f"{moe}router.weight"].dtype == torch.float32
    assert files[0]["lm_head.weight"].dtype == torch.bfloat16
    names = {name.rsplit(".", 1)[0] for name in files[0] if name.endswith("per_channel_scale")}
    assert names == {spec.name.removesuffix(".weight") for spec in tensors(model.config) if is_quantized(spec)}
    whole = dict(model.named_parameters())[f"{moe}fc.weight"][0].detach()
    gate_of_rank_1 = quantize_rows(whole, BITS[algo], torch.bfloat16)[0][:, 768:]
    found = files[1][f"{moe}fc.weight"][:, 256:]
    assert torch.equal(unpack_int4(found) if algo == "W4A16" else found, gate_of_rank_1)


@pytest.mark.parametrize("algo", BITS)
def test_the_reference_reads_the_dequantised_model(algo: str, tmp_path: Path) -> None:
    model, folder = saved(MODELS["pt, experts"], tmp_path / "model")
    exact = load_reference(convert(folder, tmp_path / "ckpt", 4, quantize=algo), torch.float64)
    rounded = load_reference(tmp_path / "ckpt", torch.float32)
    quantised = {spec.name for spec in tensors(model.config) if is_quantized(spec)}
    for (name, wide), narrow, want in zip(
        exact.named_parameters(), rounded.parameters(), model.parameters(), strict=True
    ):
        assert torch.equal(wide.float(), narrow)
        amax = want.abs().amax(-1, keepdim=True) if name in quantised else 0
        assert bool(((wide - want).abs() <= amax * 1.001 / 2 ** (BITS[algo] - 1)).all())


@pytest.mark.parametrize("algo", BITS)
def test_another_number_of_ranks_keeps_every_bit(algo: str, tmp_path: Path) -> None:
    _, folder = saved(MODELS["tp"], tmp_path / "model")
    for ranks in (2, 8):
        convert(folder, tmp_path / str(ranks), ranks, quantize=algo)
    convert(tmp_path / "8", tmp_path / "again", 2)
    for path in (tmp_path / "2").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("algo", BITS)
@pytest.mark.parametrize("name", ["pt, experts", "tp"])
def test_bytes_are_counted(name: str, algo: str, tmp_path: Path) -> None:
    config = MODELS[name].replace(tie_embeddings=False)
    _, folder = saved(config, tmp_path / "model")
    checkpoint = convert(folder, tmp_path / "ckpt", 2, "bfloat16", quantize=algo)
    stored = load_file(checkpoint / "rank0.safetensors")
    nbytes = sum(tensor.nbytes for tensor in stored.values())
    assert cost.bytes_per_rank(config, 2, "bfloat16", Quantization(algo)) == nbytes


def test_manifest(tmp_path: Path) -> None:
    manifest = CheckpointManifest(model=MODELS["pt"], ranks=2, dtype="float16", quant_algo="W4A16")
    data = json.loads(json.dumps(manifest.to_json()))
    assert data["quantization"] == {"quant_algo": "W4A16", "kv_cache_quant_algo": None}
    assert CheckpointManifest.from_json(data) == manifest
    embedded = replace(manifest, embedding_quant_algo="W8A16")
    assert CheckpointManifest.from_json(json.loads(json.dumps(embedded.to_json()))) == embedded
    own = data["parallel_track"] | {"embedding_quant_algo": "W4A16"}
    with pytest.raises(UsageError, match=r"embedding_quant_algo \('W4A16'\) must be W8A16$"):
        CheckpointManifest.from_json(data | {"parallel_track": own})
    narrow = MODELS["pt"].replace(hidden_size=96)
    with pytest.raises(UsageError, match=r"^embedding_quant_algo .* hidden_size \(96\) must be a multiple of 64$"):
        replace(manifest, model=narrow, quant_algo=None, embedding_quant_algo="W8A16")
