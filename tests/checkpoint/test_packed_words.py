"""Models that other libraries have quantised: real packing orders, the same numbers, and what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.checkpoint.models import PT, random_model
from tests.checkpoint.packed import models
from tests.checkpoint.packed.models import awq, compressed_tensors, gptq, gptq_v2
from trtllm_pt.backends.export import export
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.load import load_reference, save_model
from trtllm_pt.checkpoint.packed_words import Awq, CompressedTensors, Gptq, Layout
from trtllm_pt.checkpoint.ranks import CheckpointDir
from trtllm_pt.errors import UsageError
from trtllm_pt.model.quantization import is_quantized
from trtllm_pt.model.tensors import tensors

PACKED: dict[str, tuple[Layout, models.Pack]] = {
    "gptq-4": (Gptq(4, 32, zeros_are_less_one=True), gptq),
    "gptq-8": (Gptq(8, 32, zeros_are_less_one=True), gptq),
    "awq-4": (Awq(4, 32), awq),
    "compressed-tensors-4": (CompressedTensors(4, 32, symmetric=False), compressed_tensors),
    "compressed-tensors-8": (CompressedTensors(8, 32, symmetric=False), compressed_tensors),
}


@pytest.mark.parametrize("name", PACKED)
def test_what_the_libraries_themselves_have_packed(name: str) -> None:
    """The files that packed/make.py wrote, and that the models of the tests below are packed in the same order."""
    file = load_file(Path(__file__).parent / "packed" / f"{name}.safetensors")
    layout, pack = PACKED[name]
    found = layout.integers(file.__getitem__)
    assert torch.equal(found.codes, file["codes"]) and torch.equal(found.zeros, file["zeros"])
    outputs, inputs = found.codes.shape
    shapes = dict([layout.scales(outputs, inputs)]) | layout.words(outputs, inputs)
    assert {end: tuple(file[end].shape) for end in shapes} == shapes
    again = pack(found.codes, found.scales, found.zeros, layout.bits)
    for end in set(file) - {"codes", "zeros"}:
        assert torch.equal(again[end], file[end]), end


def test_zero_points_of_0_that_gptqmodel_stores_less_1() -> None:
    """It subtracts 1 from every field of a word at once, so a 0 borrows from the next field."""
    zeros = torch.tensor([[0, 5, 0, 0, 15, 1, 0, 0]])  # of 8 outputs, from 0 to 15
    stored = (models.words(zeros, 4).long() - 0x11111111) % 2**32
    qzeros = torch.where(stored < 2**31, stored, stored - 2**32).to(torch.int32)
    found = Gptq(4, None, zeros_are_less_one=True).zeros({"qzeros": qzeros}.__getitem__)
    assert torch.equal(found, (zeros.mT - 8).to(torch.int8))


# pack, bits, group, symmetric -> the form
MODELS: dict[str, tuple[models.Pack, int, int | None, bool, str]] = {
    "gptq": (gptq, 4, 128, True, "W4A16-G128"),
    "gptq, zero points": (gptq, 4, 32, False, "W4A16-G32-ZP"),
    "gptq, int8, whole outputs": (gptq, 8, None, True, "W8A16"),
    "gptq_v2, int8": (gptq_v2, 8, 64, False, "W8A16-G64-ZP"),
    "awq": (awq, 4, 64, False, "W4A16-G64-ZP"),
    "compressed-tensors": (compressed_tensors, 4, 64, True, "W4A16-G64"),
    "compressed-tensors, int8": (compressed_tensors, 8, 128, False, "W8A16-G128-ZP"),
    "compressed-tensors, whole outputs": (compressed_tensors, 4, None, True, "W4A16"),
    "compressed-tensors, zero points of whole outputs": (compressed_tensors, 4, None, False, "W4A16-G128-ZP"),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_the_same(name: str, tmp_path: Path) -> None:
    *how, form = MODELS[name]
    theirs = models.save(tmp_path / "model", *how)
    tokens = torch.randint(99, (2, 40))
    with torch.no_grad():
        want = theirs(tokens).logits
        torch.testing.assert_close(load_reference(tmp_path / "model")(tokens), want, rtol=1e-4, atol=1e-4)
        checkpoint = CheckpointDir(convert(tmp_path / "model", tmp_path / "ckpt", 2, dtype="float32"))
        assert checkpoint.manifest.quantized == form
        torch.testing.assert_close(load_reference(tmp_path / "ckpt")(tokens), want, rtol=1e-4, atol=1e-4)


def test_integers_are_kept_and_scales_rounded_once(tmp_path: Path) -> None:
    models.save(tmp_path / "model", awq, 4, 128, False)
    exact = CheckpointDir(convert(tmp_path / "model", tmp_path / "exact", 1))
    rounded = CheckpointDir(convert(tmp_path / "model", tmp_path / "rounded", 2, "bfloat16", embedding="W8A16"))
    assert exact.dtype == "float16" and rounded.manifest.quantized == "W4A16-G128-ZP + W8A16 embedding"
    for spec in filter(is_quantized, tensors(exact.config)):
        (codes, scales, zeros), got = exact.stored(spec, 0), rounded.stored(spec, 0)
        assert all(map(torch.equal, got, (codes, scales.bfloat16(), zeros)))


def test_groups_are_divided_on_request(tmp_path: Path) -> None:
    models.save(tmp_path / "model", gptq, 4, 128, False)
    whole = load_reference(convert(tmp_path / "model", tmp_path / "whole", 1))
    with pytest.raises(UsageError, match=r"groups of 128 do not divide the 64 inputs .* 4 ranks; W4A16-G64-ZP has"):
        convert(tmp_path / "model", tmp_path / "four", 4)
    for source in ("model", "whole"):
        divided = convert(tmp_path / source, tmp_path / f"{source}-64", 4, quantize="W4A16-G64-ZP")
        assert CheckpointDir(divided).manifest.quantized == "W4A16-G64-ZP"
        for mine, other in zip(load_reference(divided).parameters(), whole.parameters(), strict=True):
            assert torch.equal(mine, other)
    with pytest.raises(
        UsageError, match=r"quantize \('W4A16-G64'\) cannot be applied: the model is already W4A16-G128-ZP"
    ):
        convert(tmp_path / "model", tmp_path / "other", 1, quantize="W4A16-G64")


def test_zeros_for_biases_and_inputs_in_order_are_no_mistake(tmp_path: Path) -> None:
    models.save(tmp_path / "model", gptq, 4, 64, True)
    edit(tmp_path / "model", lambda stored: stored.update({f"{LAYER}self_attn.q_proj.bias": torch.zeros(256).half()}))
    configure(tmp_path / "model", desc_act=True)
    assert CheckpointDir(convert(tmp_path / "model", tmp_path / "ckpt")).manifest.quantized == "W4A16-G64"


LAYER = "model.layers.1."
Tensors = dict[str, Tensor]


def edit(folder: Path, change: Callable[[Tensors], object]) -> None:
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors")


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def drop(*ends: str) -> Callable[[Tensors], object]:
    return lambda stored: [stored.pop(name) for name in list(stored) if name.endswith(ends)]


def put(name: str, tensor: Tensor) -> Callable[[Tensors], object]:
    return lambda stored: stored.update({name: tensor})


def weights(**changes: Any) -> dict[str, Any]:
    config = models.config_of(compressed_tensors, 4, 64, True)
    config["config_groups"]["group_0"]["weights"] |= changes
    return {"config_groups": config["config_groups"]}


def grouped(**changes: Any) -> dict[str, Any]:
    config = models.config_of(compressed_tensors, 4, 64, True)
    config["config_groups"]["group_0"] |= changes
    return {"config_groups": config["config_groups"]}


ORDER = torch.arange(256, dtype=torch.int32).flip(0) // 64
# pack, changes of quantization_config, a change of the tensors, the message
MISTAKES: dict[str, tuple[models.Pack, dict[str, Any], Callable[[Tensors], object] | None, str]] = {
    "an unknown method": (
        gptq,
        {"quant_method": "hqq"},
        None,
        r"quantization_config\.quant_method \('hqq'\) must be gptq",
    ),
    "no method": (
        gptq,
        {"quant_method": None},
        None,
        r"quant_method \(None\) must be gptq or awq or compressed-tensors",
    ),
    "three bits": (gptq, {"bits": 3}, None, r"bits \(3\) must be 4 or 8$"),
    "int8 of awq": (awq, {"bits": 8}, None, r"bits \(8\) must be 4$"),
    "marlin": (gptq, {"checkpoint_format": "marlin"}, None, r"checkpoint_format \('marlin'\) must be gptq or gptq_v2"),
    "gemv": (awq, {"version": "gemv"}, None, r"version \('gemv'\) must be 'gemm'"),
    "no group": (awq, {"group_size": None}, None, r"group_size \(None\) must be a number of inputs, or -1"),
    "a group that does not divide": (
        gptq,
        {"group_size": 96},
        None,
        r"groups of 96 inputs do not divide the 256 inputs of",
    ),
    "a group of another size": (gptq, {"group_size": 128}, None, r"q_proj\.scales \[4, 256\], expected \[2, 256\]"),
    "inputs out of order": (
        gptq,
        {},
        put(f"{LAYER}self_attn.q_proj.g_idx", ORDER),
        r"q_proj\.g_idx: the groups' inputs are not consecutive \(desc_act\); quantise with desc_act false",
    ),
    "awq without scales": (
        awq,
        {},
        drop(".scales"),
        r"lacks the tensors model\.layers\.0\.self_attn\.q_proj\.scales, .* more",
    ),
    "awq without zero points": (
        awq,
        {},
        drop(".qzeros"),
        r"lacks the tensors model\.layers\.0\.self_attn\.q_proj\.qzeros",
    ),
    "a matrix that is not quantised": (
        awq,
        {},
        put(f"{LAYER}mlp.down_proj.weight", torch.zeros(256, 512).half()),
        r"layers\.1\.mlp\.down_proj\.weight is not quantised, and other matrices are",
    ),
    "a quantised head": (
        gptq,
        {},
        put("lm_head.qweight", torch.zeros(32, 99).int()),
        r"lm_head\.qweight: the output head is",
    ),
    "a bias": (
        gptq,
        {},
        put(f"{LAYER}self_attn.q_proj.bias", torch.ones(256).half()),
        r"tensors that its config does not call for: model\.layers\.1\.self_attn\.q_proj\.bias",
    ),
    "words of another type": (
        awq,
        {},
        put(f"{LAYER}mlp.down_proj.qweight", torch.zeros(512, 32)),
        r"tensors that are not int32: model\.layers\.1\.mlp\.down_proj\.qweight F32",
    ),
    "scales of another type": (
        awq,
        {},
        put(f"{LAYER}mlp.down_proj.scales", torch.zeros(8, 256, dtype=torch.int32)),
        r"not bfloat16, float16 or float32: model\.layers\.1\.mlp\.down_proj\.scales I32",
    ),
    "W8A8": (compressed_tensors, grouped(input_activations={"num_bits": 8}), None, "input_activations must be null"),
    "another format": (
        compressed_tensors,
        {"format": "int-quantized"},
        None,
        r"format \('int-quantized'\) must be 'pack",
    ),
    "FP8": (compressed_tensors, weights(type="float"), None, r"type of the weights \('float'\) must be int"),
    "per tensor": (
        compressed_tensors,
        weights(strategy="tensor"),
        None,
        r"strategy .* \('tensor'\) must be group or channel",
    ),
    "two groups": (compressed_tensors, {"config_groups": {}}, None, "config_groups must have one group, .* not 0"),
    "a KV cache": (compressed_tensors, {"kv_cache_scheme": {"num_bits": 8}}, None, "kv_cache_scheme must be null"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    pack, changes, change, message = MISTAKES[name]
    models.save(tmp_path / "model", pack, 4, 64, pack is not awq)
    configure(tmp_path / "model", **changes)
    if change is not None:
        edit(tmp_path / "model", change)
    with pytest.raises(UsageError, match=message) as error:
        convert(tmp_path / "model", tmp_path / "ckpt")
    assert "\n" not in str(error.value) and not (tmp_path / "ckpt").exists()


def test_a_small_group_is_refused(tmp_path: Path) -> None:
    models.save(tmp_path / "model", gptq, 4, 16, True)
    with pytest.raises(UsageError, match=r"groups of 16 inputs must be a multiple of 128 or 64 or 32$"):
        convert(tmp_path / "model", tmp_path / "ckpt")


def test_export_would_lose_the_integers(tmp_path: Path) -> None:
    models.save(tmp_path / "model", gptq, 4, 64, True)
    with pytest.raises(UsageError, match=r"model is W4A16-G64, from which the weights before quantisation cannot be"):
        export(tmp_path / "model", tmp_path / "exported")


def test_a_quantised_pt_model_is_refused(tmp_path: Path) -> None:
    save_model(random_model(PT), tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(
        UsageError, match=r"model: quantization_config: vLLM serves this model, but only the Llama family"
    ):
        convert(tmp_path / "model", tmp_path / "ckpt")
