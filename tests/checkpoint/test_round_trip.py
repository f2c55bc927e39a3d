"""What goes into a checkpoint comes out bit for bit, for every number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint.models import CONFIGS, PT, random_model, save_tokenizer, saved
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.load import load_reference, save_model
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.model.tensors import rank_tensors
from trtllm_pt.network.reference import ReferenceModel

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def assert_same(got: ReferenceModel, want: ReferenceModel, dtype: torch.dtype = torch.float32) -> None:
    """Bit for bit, up to the rounding to `dtype` that all weights but routers have gone through."""
    assert got.config == want.config
    for (name, a), (_, b) in zip(got.named_parameters(), want.named_parameters(), strict=True):
        assert torch.equal(a, b if "router" in name else b.to(dtype).float()), name


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_checkpoint(name: str, ranks: int, tmp_path: Path) -> None:
    model, folder = saved(CONFIGS[name], tmp_path / "model")
    checkpoint = convert(folder, tmp_path / "ckpt", ranks)
    assert_same(load_reference(checkpoint), model)
    for rank in range(ranks):
        stored = load_file(checkpoint / f"rank{rank}.safetensors")  # by the format's own library
        layout = rank_layout(model.config, ranks, rank)
        shapes = {spec.name: spec.rank_shape(model.config, layout) for spec in rank_tensors(model.config)}
        assert {key: tuple(value.shape) for key, value in stored.items()} == shapes
        assert stored["lm_head.weight"].shape == (-(-101 // ranks), model.config.hidden_size)
        assert stored["transformer.vocab_embedding.weight"].shape[0] == 101


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype: str, tmp_path: Path) -> None:
    model, folder = saved(CONFIGS["pt, experts"], tmp_path / "model")
    checkpoint = convert(folder, tmp_path / "ckpt", 4, dtype)
    assert CheckpointManifest.from_dir(checkpoint).dtype == dtype
    for name, tensor in load_file(checkpoint / "rank1.safetensors").items():
        assert tensor.dtype == (torch.float32 if "router" in name else DTYPES[dtype]), name
    assert_same(load_reference(checkpoint), model, DTYPES[dtype])


def test_auto_keeps_the_dtype_and_another_number_of_ranks_the_weights(tmp_path: Path) -> None:
    model, folder = saved(PT, tmp_path / "model", "bfloat16")
    on_8 = convert(folder, tmp_path / "on_8", 8)
    on_2 = convert(on_8, tmp_path / "on_2", 2)
    assert CheckpointManifest.from_dir(on_2) == CheckpointManifest(model=PT, ranks=2, dtype="bfloat16")
    assert_same(load_reference(on_2), model, torch.bfloat16)


def test_output_bias_is_on_the_first_rank_alone(tmp_path: Path) -> None:
    model, folder = saved(CONFIGS["tp, few KV heads, biases"], tmp_path / "model")
    checkpoint = convert(folder, tmp_path / "ckpt", 2)
    name = "transformer.layers.0.attention.dense.bias"
    first, second = (load_file(checkpoint / f"rank{rank}.safetensors")[name] for rank in (0, 1))
    assert torch.equal(first, dict(model.named_parameters())[name][0])
    assert not second.any()


def test_tokenizer_travels(tmp_path: Path) -> None:
    _, folder = saved(PT, tmp_path / "model")
    save_tokenizer(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 100]}')
    for file in ("chat_template.jinja", "merges.txt"):
        (folder / file).write_text(file)
    first = convert(folder, tmp_path / "first", 2)
    again = convert(first, tmp_path / "again", 4)
    names = ("tokenizer.json", "generation_config.json", "chat_template.jinja", "merges.txt")
    for checkpoint in (first, again):
        assert {path.name: path.read_bytes() for path in (checkpoint / "tokenizer").iterdir()} == {
            name: (folder / name).read_bytes() for name in names
        }


def test_sharded_model_dir_replaces_and_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (first := random_model(PT)) and save_model(first, folder)
    save_model(second := random_model(PT), folder, shard_bytes=200_000)
    files = sorted(path.name for path in folder.glob("model*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert_same(load_reference(folder), second)
    save_model(first, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "modeling_parallel_track.py",
    ]
    assert_same(load_reference(folder), first)


def test_float64_reads_exactly(tmp_path: Path) -> None:
    model, folder = saved(PT, tmp_path / "model", "bfloat16")
    wide = load_reference(folder, torch.float64)
    tokens = torch.randint(101, (2, 9))
    want = model.to(torch.bfloat16).double()(tokens)
    assert torch.equal(wide(tokens), want)


def test_config_has_totals(tmp_path: Path) -> None:
    _, folder = saved(CONFIGS["pt, experts"], tmp_path / "model")
    data = json.loads((convert(folder, tmp_path / "ckpt", 2) / "config.json").read_text())
    expected = {
        "architecture": "ParallelTrackForCausalLM",
        "dtype": "float32",
        "hidden_size": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "intermediate_size": 512,
        "hidden_act": "swiglu",
        "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1, "cp_size": 1, "gpus_per_node": 8},
        "moe": {"num_experts": 4, "top_k": 2, "normalization_mode": 1},
        "runtime_defaults": {"max_attention_window": [5, 128, 5]},
    }
    assert {key: data[key] for key in expected} == expected


def test_gpus_of_a_machine_are_stored_for_tensorrt_llm(tmp_path: Path) -> None:
    """And those of a checkpoint that is divided again are given again, quantised or not."""
    _, folder = saved(PT.replace(hidden_size=64, num_layers=2), tmp_path / "model", "bfloat16")
    plain = convert(folder, tmp_path / "plain", 2, gpus_per_node=4)
    quantised = convert(folder, tmp_path / "quantised", 2, quantize="W8A16", gpus_per_node=4)
    again = convert(quantised, tmp_path / "again", 1, gpus_per_node=2)
    for checkpoint, gpus in ((plain, 4), (quantised, 4), (again, 2)):
        assert json.loads((checkpoint / "config.json").read_text())["mapping"]["gpus_per_node"] == gpus
        assert CheckpointManifest.from_dir(checkpoint).gpus_per_node == gpus


def test_a_head_beside_a_tied_embedding(tmp_path: Path) -> None:
    """An equal one is dropped. Another one is used, and the model is untied."""
    model, folder = saved(PT.replace(tie_embeddings=True), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.vocab_embedding.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    assert_same(load_reference(folder), model)
    tensors["lm_head.weight"][100, 47] += 0.5
    save_file(tensors, folder / "model.safetensors")
    other = load_reference(folder)
    assert not other.config.tie_embeddings and other.lm_head is not None
    assert torch.equal(other.lm_head.weight, tensors["lm_head.weight"])
    assert_same(load_reference(convert(folder, tmp_path / "ckpt", 2)), other)
