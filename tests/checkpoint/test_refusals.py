"""What convert and the manifest refuse, each with its message, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoint.models import PT, random_model, save_tokenizer, saved
from tests.checkpoint.test_llama import saved as saved_llama
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.init import init
from trtllm_pt.checkpoint.load import load_reference, save_model
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError

Tensors = dict[str, torch.Tensor]
QKV = "transformer.layers.0.attention.qkv.weight"
FC = "transformer.layers.1.mlp.fc.weight"


def drop(tensors: Tensors) -> None:
    del tensors[QKV], tensors[FC]


def add(tensors: Tensors) -> None:
    tensors.update({f"extra.{i}": torch.zeros(1) for i in range(7)})


def reshape(tensors: Tensors) -> None:
    tensors[QKV] = tensors[QKV][:, :-1].contiguous()


def retype(tensors: Tensors) -> None:
    tensors[FC] = tensors[FC].to(torch.int8)


def spoil(tensors: Tensors) -> None:
    tensors[QKV][0, 0, 0], tensors[FC][7, 3, 3] = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, f"lacks the tensors {QKV}, {FC}$"),
        (add, "has tensors that its config does not call for: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more$"),
        (reshape, rf"of other shapes than its config: {QKV} \[8, 127, 48\], expected \[8, 128, 48\]"),
        (retype, f"that are not bfloat16, float16 or float32: {FC} I8"),
        (spoil, f"NaN, infinity, or values beyond float32 in the tensors {QKV}, {FC}$"),
    ],
)
def test_bad_tensors(damage: Callable[[Tensors], None], message: str, tmp_path: Path) -> None:
    _, folder = saved(PT, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UsageError, match=message):
        convert(folder, tmp_path / "ckpt", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_values_beyond_the_dtype(tmp_path: Path) -> None:
    _, folder = saved(PT, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors[FC][0, 0, 0] = 70000.0
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UsageError, match=f"values beyond float16 in the tensors {FC}$"):
        convert(folder, tmp_path / "ckpt", dtype="float16")
    convert(folder, tmp_path / "ckpt", dtype="bfloat16")


def test_bad_requests(tmp_path: Path) -> None:
    _, folder = saved(PT, tmp_path / "model")
    output = tmp_path / "ckpt"
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: convert(folder, output, quantize="int8"), r"quantize \('int8'\) must be W8A16 or W4A16 or .* or FP8"),
        (lambda: convert(folder, output, 3), r"ranks \(3\) must divide tracks \(8\); this model runs on 1, 2, 4, 8"),
        (lambda: convert(folder, output, dtype="int8"), r"dtype \('int8'\) must be one of bfloat16, float16, float32"),
        (lambda: convert(folder, output, gpus_per_node=0), r"gpus_per_node \(0\) must be a whole number, at least 1"),
        (lambda: convert(tmp_path / "no", output), "there is no model directory .*no"),
        (lambda: convert(tmp_path, output), "there is no .*config.json"),
        (lambda: convert(folder, folder), "model already exists; remove it or choose another"),
        (lambda: convert(folder, folder / "config.json" / "x"), "cannot write to"),
    ]
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_truncated_model(tmp_path: Path) -> None:
    _, folder = saved(PT, tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"model.safetensors is damaged, truncated"):
        convert(folder, tmp_path / "ckpt")


def test_an_empty_output_folder_will_do(tmp_path: Path) -> None:
    _, folder = saved(PT, tmp_path / "model")
    (tmp_path / "ckpt").mkdir()
    convert(folder, tmp_path / "ckpt")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["parallel_track"].update(format_version=2), "format version 2; this trtllm-pt reads 1"),
        (lambda d: d.pop("parallel_track"), "the key 'parallel_track' is missing"),
        (lambda d: d["parallel_track"].update(more=1), "'parallel_track' has keys"),
        (
            lambda d: d.update(rotary_bas=1),
            "unknown key 'rotary_bas' in the checkpoint's config; did you mean 'rotary_base'",
        ),
        (lambda d: d.pop("head_size"), "key 'head_size' is missing"),
        (lambda d: d.update(num_attention_heads=4), r"num_attention_heads \(4\) does not agree .* gives 32"),
        (lambda d: d["mapping"].update(pp_size=2), r"mapping .* does not agree"),
        (lambda d: d["mapping"].update(world_size="2"), r"mapping.world_size \('2'\) must be a whole number"),
        (lambda d: d["mapping"].update(gpus_per_node="8"), r"gpus_per_node \('8'\) must be a whole number, at least 1"),
        (lambda d: d.update(mapping=None), r"mapping \(None\) must be an object"),
        (lambda d: d["mapping"].update(world_size=3), r"ranks \(3\) must divide tracks \(8\)"),
        (lambda d: d.update(dtype="int4"), r"dtype \('int4'\) must be one of"),
        (lambda d: d["parallel_track"]["model"].update(tracks=0), r"tracks \(0\) must be at least 1"),
        (lambda d: d["parallel_track"]["schedule"].pop(), "is never finished"),
        (
            lambda d: d["parallel_track"].update(schedule=[]),
            "steps of 'schedule' are not those of the model's schedule 'pt'",
        ),
    ],
)
def test_bad_manifests(change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path) -> None:
    path = init(PT, tmp_path / "ckpt", 2) / "config.json"
    edit(path, change)
    with pytest.raises(UsageError, match=message) as caught:
        CheckpointManifest.from_dir(tmp_path / "ckpt")
    assert str(path) in str(caught.value)


def test_an_engine_may_have_more_keys() -> None:
    manifest = CheckpointManifest(model=PT, ranks=4, dtype="float16")
    data = manifest.to_json() | {"rotary_embedding_dim": 16}
    assert CheckpointManifest.from_json(data, strict=False) == manifest


def test_rank_files_that_are_not_there_or_another_models(tmp_path: Path) -> None:
    checkpoint = init(PT, tmp_path / "ckpt", 4)
    other = init(PT.replace(num_layers=2), tmp_path / "other", 4)
    wide = init(PT.replace(intermediate_size=96), tmp_path / "wide", 4)
    for source, message in (
        (other, "does not fit its config.json: transformer.layers.2"),
        (wide, "mlp.fc.weight is BF16"),
    ):
        (checkpoint / "rank1.safetensors").write_bytes((source / "rank1.safetensors").read_bytes())
        with pytest.raises(UsageError, match=message):
            load_reference(checkpoint)
    (checkpoint / "rank1.safetensors").unlink()
    with pytest.raises(UsageError, match=r"is incomplete: it lacks rank1.safetensors"):
        load_reference(checkpoint)


def test_a_killed_conversion_leaves_nothing_at_its_output(tmp_path: Path) -> None:
    saved(PT, tmp_path / "model")
    slow = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from trtllm_pt.checkpoint import source\nfrom trtllm_pt.checkpoint.convert import convert\n"
        "read = source.ModelDir.read\n"
        "source.ModelDir.read = lambda *a: (time.sleep(0.05), read(*a))[1]\n"
        "convert(Path(sys.argv[1]), Path(sys.argv[2]), 2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, str(tmp_path / "model"), str(tmp_path / "ckpt")])
    try:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob(".ckpt.*.partial/.rank*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(tmp_path.glob(".ckpt.*.partial/.rank*"))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "ckpt").exists()
    assert not list(tmp_path.rglob("rank*.safetensors"))
    convert(tmp_path / "model", tmp_path / "ckpt", 2)  # and the way is free
    assert not list(tmp_path.glob(".ckpt.*.partial"))  # nor is anything left of the first


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"],
)
def test_files_that_git_lfs_did_not_download(name: str, tmp_path: Path) -> None:
    _, folder = saved(PT, tmp_path / "model")
    (folder / name).write_text(POINTER)
    with pytest.raises(UsageError, match=rf"{name} is only git-lfs's pointer to the file; run `git lfs pull` in "):
        convert(folder, tmp_path / "ckpt")
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model-00002-of-*.safetensors"])
def test_shards_that_git_lfs_did_not_download(name: str, tmp_path: Path) -> None:
    save_model(random_model(PT), tmp_path / "model", shard_bytes=400_000)
    [path] = (tmp_path / "model").glob(name)
    path.write_text(POINTER)
    with pytest.raises(UsageError, match=f"{path} is only git-lfs's pointer"):
        convert(tmp_path / "model", tmp_path / "ckpt")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.safetensors"])
def test_pointers_to_files_that_are_not_read(name: str, tmp_path: Path) -> None:
    _, folder = saved(PT, tmp_path / "model")
    (folder / name).write_text(POINTER)
    convert(folder, tmp_path / "ckpt")


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (101, r"generation_config.json: eos_token_id \(101\) must be a token id between 0 and 100"),
        (-1, r"eos_token_id \(-1\) must be a token id"),
        ([7, 1000], r"eos_token_id \(1000\) must be a token id"),
        (["</s>"], r"eos_token_id \('</s>'\) must be a token id"),
        (90, r"generation_config.json: eos_token_id \(90\) must be a token of the tokenizer, which has no such id"),
        ([7, 90], r"eos_token_id \(90\) must be a token of the tokenizer"),
    ],
)
def test_end_tokens_that_are_no_tokens(ends: Any, message: str, tmp_path: Path) -> None:
    _, folder = saved(PT, tmp_path / "model")
    save_tokenizer(folder, tokens=90)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(UsageError, match=message):
        convert(folder, tmp_path / "ckpt")
    assert not (tmp_path / "ckpt").exists()


def test_an_end_token_of_config_json_that_is_no_token(tmp_path: Path) -> None:
    """Where there is no generation_config.json. Without a tokenizer, nobody reads it."""
    saved_llama("Llama", {}, tmp_path / "model")
    (tmp_path / "model/generation_config.json").unlink()
    edit(tmp_path / "model/config.json", lambda data: data.update(eos_token_id=99))
    convert(tmp_path / "model", tmp_path / "ckpt")
    save_tokenizer(tmp_path / "model")
    with pytest.raises(UsageError, match=r"config.json: eos_token_id \(99\) must be a token id between 0 and 98"):
        convert(tmp_path / "model", tmp_path / "again")


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    _, folder = saved(PT, tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"tokenizer\.json is not a tokenizer file"):
        convert(folder, tmp_path / "ckpt")


def test_a_tokenizer_that_adds_a_token_of_another_model(tmp_path: Path) -> None:
    _, folder = saved(PT, tmp_path / "model")
    save_tokenizer(folder, tokens=102)
    path = folder / "tokenizer.json"
    edit(path, lambda data: data.update(post_processor=TEMPLATE))
    with pytest.raises(
        UsageError, match=r"tokenizer\.json adds token 101 to every text, outside the vocabulary of 101"
    ):
        convert(folder, tmp_path / "ckpt")
    edit(path, lambda data: data["post_processor"]["special_tokens"]["101"].update(ids=[100]))
    convert(folder, tmp_path / "ckpt")


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "101", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"101": {"id": "101", "ids": [101], "tokens": ["101"]}},
}
