"""Initial weights: the same model for every number of ranks, of the promised scale."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.checkpoint.models import CONFIGS, PT
from trtllm_pt.checkpoint.init import init, initial
from trtllm_pt.checkpoint.init import init as init_function
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.errors import UsageError
from trtllm_pt.model.tensors import TensorSpec, tensors


@pytest.mark.parametrize("name", ["pt, tied, all norms", "pt, experts", "tp, few KV heads, biases"])
def test_same_model_for_every_number_of_ranks(name: str, tmp_path: Path) -> None:
    want = load_reference(init(CONFIGS[name], tmp_path / "1", seed=3))
    for ranks in (2, 4, 8):
        got = load_reference(init(CONFIGS[name], tmp_path / str(ranks), ranks, seed=3))
        for (key, a), (_, b) in zip(got.named_parameters(), want.named_parameters(), strict=True):
            assert torch.equal(a, b), key


def test_rank_by_rank(tmp_path: Path) -> None:
    whole, parts = init(PT, tmp_path / "whole", 4), tmp_path / "parts"
    for rank in (2, 0, 3):
        init(PT, parts, 4, rank)
    with pytest.raises(UsageError, match=r"is incomplete: it lacks rank1.safetensors"):
        load_reference(parts)
    init(PT, parts, 4, 1)
    for file in sorted(path.name for path in whole.iterdir()):
        assert (parts / file).read_bytes() == (whole / file).read_bytes(), file


def test_seed_name_and_track_matter() -> None:
    specs = {spec.name: spec for spec in tensors(PT)}
    a, b = (specs[f"transformer.layers.{layer}.attention.qkv.weight"] for layer in (0, 1))
    numbers = [initial(PT, *args) for args in ((a, 0, 0), (a, 0, 0), (a, 1, 0), (b, 0, 0), (a, 0, 1))]
    assert torch.equal(numbers[0], numbers[1])
    assert all(abs(torch.corrcoef(torch.stack((numbers[0], x)).flatten(1))[0, 1]) < 0.05 for x in numbers[2:])


GOLDEN = [1.916, -0.4451, 0.156, 0.8221, -1.3485]


def test_numbers_do_not_change() -> None:
    """A seed means the same model in every version; across the border of two blocks too."""
    spec = TensorSpec("w", (600_000,), False, fan_in=1)
    got = initial(PT, spec, 0, 7)
    assert [round(got[i].item(), 4) for i in (0, 1, (1 << 18) - 1, 1 << 18, 599_999)] == GOLDEN
    assert torch.equal(initial(PT, spec, 0, 7, torch.bfloat16), got.bfloat16())


def test_scales() -> None:
    config = PT.replace(hidden_size=512, intermediate_size=512)
    specs = {spec.name: spec for spec in tensors(config)}
    prefix = "transformer.layers.0."
    expected = {
        "transformer.vocab_embedding.weight": 0.02,
        f"{prefix}mlp.fc.weight": 512**-0.5,
        # 1/sqrt(2L), and sqrt(8) for a mean over 8 tracks
        f"{prefix}mlp.proj.weight": 512**-0.5 / math.sqrt(6) * math.sqrt(8),
    }
    for name, std in expected.items():
        assert initial(config, specs[name], 0, 0).std().item() == pytest.approx(std, rel=0.02), name
    assert torch.equal(initial(config, specs["transformer.ln_f.weight"], 0, 0), torch.ones(512))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"seed \(-1\)"):
        init_function(PT, tmp_path / "a", seed=-1)
    with pytest.raises(UsageError, match=r"ranks \(3\) must divide tracks \(8\)"):
        init_function(PT, tmp_path / "a", 3)
    with pytest.raises(UsageError, match=r"rank \(4\) must be between 0 and"):
        init_function(PT, tmp_path / "a", 4, 4)
    assert not list(tmp_path.iterdir())
    init_function(PT, tmp_path / "a", 4, 0)
    with pytest.raises(UsageError, match=r"rank0.safetensors already exists"):
        init_function(PT, tmp_path / "a", 4, 0)
    with pytest.raises(UsageError, match="was made with seed 0, not 1"):
        init_function(PT, tmp_path / "a", 4, 1, seed=1)
    with pytest.raises(UsageError, match="holds another checkpoint"):
        init_function(PT, tmp_path / "a", 2, 1)
    with pytest.raises(UsageError, match="already exists; remove it or choose another"):
        init_function(PT, tmp_path / "a", 4)


def test_file_of_a_rank_holds_its_tracks(tmp_path: Path) -> None:
    init(PT, tmp_path / "a", 4, 3, "float32")
    name = "transformer.layers.1.mlp.gate.weight"
    spec = next(spec for spec in tensors(PT) if spec.name == name)
    stored = load_file(tmp_path / "a/rank3.safetensors")[name]
    assert torch.equal(stored, torch.stack([initial(PT, spec, track, 0) for track in (6, 7)]))
