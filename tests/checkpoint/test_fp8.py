"""FP8 checkpoints: the numbers by other means, ranges by hand, files of any number of ranks, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.checkpoint.fp8 import reference_as_stored, round_inputs
from tests.checkpoint.models import random_model, saved
from tests.checkpoint.test_quantize import MODELS
from trtllm_pt.backends.inspect import inspect
from trtllm_pt.checkpoint.calibrate import measure, token_sequences
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.init import init
from trtllm_pt.checkpoint.load import load_reference, save_model
from trtllm_pt.checkpoint.quantize import fp8_scale, quantize_fp8, to_fp8
from trtllm_pt.checkpoint.ranks import CheckpointDir
from trtllm_pt.errors import UsageError
from trtllm_pt.model.quantization import is_quantized
from trtllm_pt.model.tensors import tensors
from trtllm_pt.network.reference import Attention, Experts, ReferenceModel
from trtllm_pt.network.rope import rotary, rotate

SEQUENCES = [[1, 2, 3, 50, 100, 7], [9, 8], [60, 61, 62]]
TABLE = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()  # every value there is, two of them NaN
VALUES = np.unique(TABLE[TABLE.isfinite()].numpy())


def tokens_in(folder: Path) -> Path:
    path = folder / "tokens.jsonl"
    path.write_text("\n".join(map(str, SEQUENCES)) + "\n\n")
    return path


@given(st.floats(1e-30, 1e9))
def test_a_scale_is_the_least_power_of_two_that_holds_the_range(amax: float) -> None:
    scale = fp8_scale(amax)
    assert math.frexp(scale)[0] == 0.5 and amax <= 448 * scale
    assert amax > 448 * scale / 2 or scale == 2**-14
    if scale < 2**16:
        assert torch.tensor(scale).half().float() == scale  # exact in every dtype of a model


def test_scales_at_the_edges() -> None:
    assert [fp8_scale(amax) for amax in (0.0, 448.0, 448.001, 224.0, 0.875)] == [1, 1, 2, 0.5, 2**-9]
    assert math.isnan(fp8_scale(math.nan)) and fp8_scale(math.inf) == math.inf


@given(st.lists(st.floats(-600, 600, width=32), min_size=1, max_size=50), st.sampled_from([0.25, 1.0, 2.0]))
def test_the_nearest_of_all_values(numbers: list[float], scale: float) -> None:
    got = to_fp8(torch.tensor(numbers), scale).double().numpy()
    exact = np.clip(np.array(numbers, dtype=np.float64) / scale, -448, 448)
    nearest = np.abs(exact[:, None] - VALUES).min(1)
    assert np.array_equal(np.abs(exact - got), nearest)


def test_ties_go_to_even() -> None:
    assert to_fp8(torch.tensor([17.0, 19.0, -25.0, 2.0**-10]), 1.0).tolist() == [16, 20, -24, 0]


def test_a_scale_for_each_matrix() -> None:
    weight = torch.randn(3, 5, 16) * torch.tensor([1.0, 100.0, 0.0])[:, None, None]
    stored, scale = quantize_fp8(weight)
    assert stored.shape == weight.shape and scale.shape == (3, 1)
    assert scale.flatten().tolist() == [fp8_scale(float(matrix.abs().max())) for matrix in weight]
    assert torch.equal(stored.float(), (weight / scale[..., None]).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_gives_back_what_was_quantised(name: str, ranks: int, tmp_path: Path) -> None:
    model, folder = saved(MODELS[name], tmp_path / "model")
    how = {"quantize": "FP8", "kv_cache": "FP8", "calibrate": tokens_in(tmp_path)}
    source = CheckpointDir(convert(folder, tmp_path / "ckpt", ranks, **how))
    ranges, parameters = measure(model, SEQUENCES), dict(model.named_parameters())
    for spec in filter(is_quantized, tensors(model.config)):
        for track in range(model.config.tracks):
            weight, scale, activation = source.stored(spec, track)
            want, want_scale = quantize_fp8(parameters[spec.name][track].detach())
            assert torch.equal(weight.view(torch.uint8), want.view(torch.uint8)) and torch.equal(scale, want_scale)
            assert activation.tolist() == [fp8_scale(ranges.inputs[spec.name][track])]
    scales = [source.kv_scale(layer).tolist() for layer in range(model.config.num_layers)]
    assert scales == [[fp8_scale(amax)] for amax in ranges.kv]


def test_the_files(tmp_path: Path) -> None:
    model, folder = saved(MODELS["pt, experts"].replace(tie_embeddings=False), tmp_path / "model")
    how = {"quantize": "FP8", "kv_cache": "FP8", "calibrate": tokens_in(tmp_path)}
    prefix = "transformer.layers."
    for ranks, own in ((4, (2,)), (8, ())):  # tracks in front, where there are several
        checkpoint = convert(folder, tmp_path / str(ranks), ranks, "bfloat16", **how)
        files = [load_file(checkpoint / f"rank{rank}.safetensors") for rank in range(ranks)]
        shapes = {
            "0.attention.qkv.weight": (torch.float8_e4m3fn, (*own, 128, 64)),
            "0.attention.qkv.weights_scaling_factor": (torch.float32, (*own, 1)),
            "0.attention.qkv.activation_scaling_factor": (torch.float32, (*own, 1)),
            "0.attention.kv_cache_scaling_factor": (torch.float32, (1,)),
            "1.mlp.fc.weight": (torch.float8_e4m3fn, (*own, 4, 128, 64)),
            "1.mlp.fc.weights_scaling_factor": (torch.float32, (*own, 4, 1)),
            "1.mlp.fc.activation_scaling_factor": (torch.float32, (*own, 1)),
            "1.mlp.router.weight": (torch.float32, (*own, 4, 64)),
            "1.input_layernorm.weight": (torch.bfloat16, (*own, 64)),
        }
        assert {
            name: (files[1][prefix + name].dtype, tuple(files[1][prefix + name].shape)) for name in shapes
        } == shapes
        name = f"{prefix}1.attention.kv_cache_scaling_factor"
        assert len({float(file[name]) for file in files}) == 1
        nbytes = sum(tensor.nbytes for tensor in files[0].values())
        assert inspect(checkpoint)["bytes_per_rank"] == nbytes
    heads = 2 * 2 * model.config.num_kv_heads * model.config.head_size  # K and V, of two tracks
    assert inspect(tmp_path / "4")["kv_bytes_per_token"] == model.config.num_layers * heads


def attention_inputs(model: ReferenceModel, tokens: list[int]) -> tuple[torch.Tensor, Attention]:
    layer = model.transformer.layers[0]
    x = F.embedding(torch.tensor([tokens]), model.transformer.vocab_embedding.weight)
    return layer.input_layernorm(x.expand(model.config.tracks, *x.shape)), layer.attention


@torch.no_grad()
def test_ranges_by_hand() -> None:
    """What the first layer's matrices are multiplied with, and what its KV cache holds: K after RoPE."""
    model = random_model(MODELS["pt"])
    config, tracks = model.config, model.config.tracks
    ranges = measure(model, SEQUENCES)
    inputs, keys = [], []
    for tokens in SEQUENCES:
        x, attention = attention_inputs(model, tokens)
        inputs.append(x.abs().amax((1, 2, 3)))
        k, v = attention.qkv(x)[..., config.num_heads * config.head_size :].chunk(2, -1)
        k = k.view(tracks, 1, len(tokens), -1, config.head_size).transpose(2, 3)
        k = rotate(k, *rotary(config, torch.arange(len(tokens)), k.dtype))
        keys.append(max(float(k.abs().max()), float(v.abs().max())))
    assert torch.tensor(ranges.inputs["transformer.layers.0.attention.qkv.weight"]).equal(torch.stack(inputs).amax(0))
    assert ranges.kv[0] == pytest.approx(max(keys), rel=1e-6)


@torch.no_grad()
def test_only_the_chosen_experts_count() -> None:
    model = random_model(MODELS["pt, experts"])
    layer = 1
    experts = model.transformer.layers[layer].mlp
    assert isinstance(experts, Experts)
    seen: list[torch.Tensor] = []
    handle = experts.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ranges = measure(model, SEQUENCES)
    handle.remove()
    largest = [0.0] * model.config.tracks
    for x in seen:
        for track, tokens in enumerate(x.flatten(1, 2)):
            chosen = (tokens @ experts.router.weight[track].mT).topk(model.config.experts_per_token).indices
            for token, expert in ((token, expert) for token, row in zip(tokens, chosen, strict=True) for expert in row):
                up, gate = (experts.fc.weight[track, expert] @ token).chunk(2)
                largest[track] = max(largest[track], float((F.silu(gate) * up).abs().max()))
    assert ranges.inputs[f"transformer.layers.{layer}.mlp.proj.weight"] == pytest.approx(largest, rel=1e-5)
    assert (
        ranges.inputs[f"transformer.layers.{layer}.mlp.fc.weight"] == torch.cat(seen, 2).abs().amax((1, 2, 3)).tolist()
    )


@torch.no_grad()
def test_where_the_router_cannot_choose_the_experts_with_lower_indices_count() -> None:
    """An engine chooses these, so their ranges are the ones to measure."""
    model = random_model(MODELS["pt, experts"])
    experts = model.transformer.layers[1].mlp
    assert isinstance(experts, Experts)
    experts.router.weight.zero_()
    chosen = model.config.experts_per_token
    ranges = measure(model, SEQUENCES)
    experts.fc.weight[:, chosen:] *= 100
    assert measure(model, SEQUENCES) == ranges
    experts.fc.weight[:, :chosen] *= 100
    assert measure(model, SEQUENCES) != ranges


@torch.no_grad()
def test_activations_are_rounded_where_they_are_stored_so(tmp_path: Path) -> None:
    model, folder = saved(MODELS["pt"], tmp_path / "model")
    checkpoint = convert(folder, tmp_path / "ckpt", 4, quantize="FP8", calibrate=tokens_in(tmp_path))
    plain, rounded, source = load_reference(checkpoint), load_reference(checkpoint), CheckpointDir(checkpoint)
    round_inputs(rounded, checkpoint)
    x, attention = attention_inputs(plain, SEQUENCES[0])
    _, same = attention_inputs(rounded, SEQUENCES[0])
    spec = next(spec for spec in tensors(model.config) if spec.name.endswith("0.attention.qkv.weight"))
    for track in range(model.config.tracks):
        weight, scale, activation = source.stored(spec, track)
        q = (x[track] / activation).to(torch.float8_e4m3fn).float() * activation
        torch.testing.assert_close(same.qkv(x)[track], q @ (weight.float() * scale).mT, rtol=1e-5, atol=1e-5)
    want = model.transformer.layers[0].attention.qkv(x)
    errors = [float((got - want).norm() / want.norm()) for got in (attention.qkv(x), same.qkv(x))]
    assert 0.01 < errors[0] < errors[1] < 0.05  # three bits after the point: 2^-4 / sqrt(3) at most, on either side
    tokens = torch.tensor(SEQUENCES[:1])
    assert torch.equal(reference_as_stored(checkpoint)(tokens), rounded(tokens))


@torch.no_grad()
def test_an_fp8_kv_cache_alone(tmp_path: Path) -> None:
    """Scale 1 without calibration; nothing else changes."""
    model, folder = saved(MODELS["tp"], tmp_path / "model")
    checkpoint = convert(folder, tmp_path / "ckpt", 2, kv_cache="FP8")
    source, exact = CheckpointDir(checkpoint), load_reference(checkpoint)
    assert [float(source.kv_scale(layer)) for layer in range(2)] == [1.0, 1.0]
    assert source.manifest.quant_algo is None and source.manifest.kv_cache_quant_algo == "FP8"
    for got, want in zip(exact.parameters(), model.parameters(), strict=True):
        assert torch.equal(got, want)
    tokens, x = torch.tensor(SEQUENCES[:1]), torch.randn(1, 2, 3, 4) * 300
    rounded = x.to(torch.float8_e4m3fn).float().clamp(-448, 448)
    assert torch.equal(reference_as_stored(checkpoint).transformer.layers[1].attention.kv_cache(x), rounded)
    assert float((reference_as_stored(checkpoint)(tokens) - exact(tokens)).abs().max()) > 1e-3
    calibrated = convert(folder, tmp_path / "calibrated", 2, kv_cache="FP8", calibrate=tokens_in(tmp_path))
    assert float(CheckpointDir(calibrated).kv_scale(1)) == fp8_scale(measure(model, SEQUENCES).kv[1]) < 1


def test_another_number_of_ranks_keeps_every_bit(tmp_path: Path) -> None:
    _, folder = saved(MODELS["tp, experts"], tmp_path / "model")
    how = {"quantize": "FP8", "kv_cache": "FP8", "calibrate": tokens_in(tmp_path)}
    for ranks in (2, 8):
        convert(folder, tmp_path / str(ranks), ranks, **how)
    convert(tmp_path / "8", tmp_path / "again", 2)
    for path in (tmp_path / "2").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def word_tokenizer(folder: Path) -> None:
    """Words `t0` … `t100`."""
    tokenizer = Tokenizer(models.WordLevel({f"t{i}": i for i in range(101)}, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def test_text_and_token_ids_are_cut_alike(tmp_path: Path) -> None:
    config = MODELS["pt"].replace(max_position_embeddings=2048)
    _, folder = saved(config, tmp_path / "model")
    word_tokenizer(folder)
    source, many = open_source(folder), [i * i % 101 for i in range(200 * 512)]
    (tmp_path / "text.txt").write_text(" ".join(f"t{i}" for i in many))
    want = [many[start : start + 512] for start in range(0, 128 * 512, 512)]
    assert token_sequences(source, tmp_path / "text.txt") == want
    (tmp_path / "ids.json").write_text(json.dumps([many[start : start + 700] for start in range(0, len(many), 512)]))
    assert token_sequences(source, tmp_path / "ids.json") == want
    saved(config.replace(max_position_embeddings=9), tmp_path / "short")
    assert token_sequences(open_source(tmp_path / "short"), tmp_path / "ids.json") == [ids[:9] for ids in want]
    assert token_sequences(source, tokens_in(tmp_path)) == SEQUENCES


FILES = {
    "empty.txt": "",
    "empty.jsonl": "[]\n",
    "words.jsonl": '["a"]',
    "floats.json": "[[1.5]]",
    "truth.json": "[[true]]",
    "flat.json": "[1, 2]",
    "broken.json": "[[1, 2",
    "large.jsonl": "[1, 101]",
}


def test_refusals(tmp_path: Path) -> None:
    _, folder = saved(MODELS["pt"], tmp_path / "model")
    word_tokenizer(folder)
    _, wordless = saved(MODELS["pt"], tmp_path / "wordless")
    saved(MODELS["pt"].replace(intermediate_size=96), tmp_path / "odd")
    saved(MODELS["tp"], tmp_path / "split")
    quantised = convert(folder, tmp_path / "quantised", 2, quantize="W8A16")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    tokens, output = tokens_in(tmp_path), tmp_path / "ckpt"

    def fp8(calibrate: object, model: Path = folder) -> Callable[[], object]:
        return lambda: convert(model, output, quantize="FP8", calibrate=calibrate)  # type: ignore[arg-type]

    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: convert(folder, output, quantize="W4A8"), r"quantize \('W4A8'\) must be W8A16 or W4A16 or .* or FP8"),
        (lambda: convert(folder, output, kv_cache="INT4"), r"kv_cache \('INT4'\) must be FP8 or INT8"),
        (lambda: convert(folder, output, quantize="FP8"), r"quantize \('FP8'\) needs calibrate"),
        (lambda: convert(folder, output, quantize="W8A16", calibrate=tokens), "tokens.jsonl'. applies only to FP8"),
        (lambda: convert(folder, output, calibrate=tokens), "applies only to FP8"),
        (
            lambda: convert(tmp_path / "odd", output, quantize="W8A16"),
            r"\('W8A16'\): transformer.layers.0.mlp.fc.weight has 96 outputs and 64 inputs on each of 1 rank; both "
            "must be multiples of 64$",
        ),
        (
            lambda: convert(tmp_path / "split", output, 16, quantize="W4A16"),
            r"attention.qkv.weight has 96 outputs and 64 inputs on each of 16 ranks",
        ),
        (
            lambda: convert(quantised, output, quantize="W4A16"),
            r"quantize \('W4A16'\) cannot be applied: the model is already W8A16",
        ),
        (lambda: convert(quantised, output, kv_cache="FP8"), r"kv_cache \('FP8'\) .* is already W8A16"),
        (lambda: convert(quantised, output, dtype="bfloat16"), r"dtype \('bfloat16'\) must be 'auto' or 'float32'"),
        (fp8(tmp_path / "no.txt"), r"calibrate: cannot read .*no.txt: No such file"),
        (fp8(tmp_path), r"calibrate: cannot read"),
        (fp8(tmp_path / "latin.txt"), "latin.txt is not UTF-8 text"),
        (fp8(tmp_path / "empty.txt"), "empty.txt holds no tokens"),
        (fp8(tmp_path / "empty.jsonl"), "empty.jsonl holds no tokens"),
        (fp8(tmp_path / "words.jsonl"), "words.jsonl must hold one list of token ids per line"),
        (fp8(tmp_path / "flat.json"), "flat.json must hold a list of lists of token ids"),
        (fp8(tmp_path / "floats.json"), "floats.json must hold a list of lists"),
        (fp8(tmp_path / "truth.json"), "truth.json must hold a list of lists"),
        (fp8(tmp_path / "broken.json"), "broken.json must hold a list of lists"),
        (fp8(tmp_path / "large.jsonl"), "large.jsonl has token 101, outside the vocabulary of 101"),
        (fp8(tmp_path / "empty.txt", wordless), "the model has no tokenizer.json to encode .*empty.txt"),
        (
            lambda: init(MODELS["pt"], output, quantize="int8"),
            r"quant_algo \('int8'\) must be one of W8A16, W4A16, .*FP8",
        ),
    ]
    before = sorted(tmp_path.rglob("*"))
    for call, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = random_model(MODELS["pt"])
    name = "transformer.layers.1.mlp.gate.weight"
    with torch.no_grad():
        dict(model.named_parameters())[name][3, 2, 1] = math.nan
    folder = save_model(model, tmp_path / "model")
    with pytest.raises(UsageError, match=f"values beyond float32 in the tensors {name}$"):
        convert(folder, tmp_path / "ckpt", quantize="W8A16")
    with pytest.raises(UsageError, match=r"the input of transformer.layers.1.mlp.proj.weight becomes NaN or infinite"):
        convert(folder, tmp_path / "ckpt", quantize="FP8", calibrate=tokens_in(tmp_path))


def test_random_weights(tmp_path: Path) -> None:
    """The same on any ranks; nominal scales; and the model is the unquantised one but for the rounding."""
    config = MODELS["pt, experts"]
    how = {"dtype": "bfloat16", "seed": 5, "quantize": "FP8", "kv_cache": "FP8"}
    source = CheckpointDir(init(config, tmp_path / "8", 8, **how))
    init(config, tmp_path / "2", 2, **how)
    convert(tmp_path / "8", tmp_path / "again", 2)
    for rank in range(2):
        want, got = (load_file(tmp_path / folder / f"rank{rank}.safetensors") for folder in ("2", "again"))
        assert all(torch.equal(got[name].float(), want[name].float()) for name in want) and set(got) == set(want)
    spec = next(filter(is_quantized, tensors(config)))
    weight, scale, activation = source.stored(spec, 3)
    assert float(activation) == float(source.kv_scale(1)) == 1 / 16
    exact = load_reference(init(config, tmp_path / "exact", 1, dtype="float32", seed=5)).get_parameter(spec.name)[3]
    assert torch.equal(weight.view(torch.uint8), quantize_fp8(exact.detach())[0].view(torch.uint8))
    assert scale < 2**-8
