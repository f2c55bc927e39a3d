"""Apple's tamm, the one official implementation of tracks: its models, imported, give its logits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.load import load_reference
from trtllm_pt.checkpoint.tamm import _ACCEPTED, _DEFAULTS, _IGNORED, TYPE_KEY, tamm_to_model_config
from trtllm_pt.errors import UsageError

tamm = pytest.importorskip("tamm")
from tamm.models.afm_text.afm_pt_moe import AFMParallelTrackMoEConfig  # noqa: E402
from tamm.utils import json as tamm_json  # noqa: E402

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "num_tracks": 3,
    "num_layers_per_track": 4,
    "num_layers_per_track_per_sync_point": 2,
    "hidden_dim": 32,
    "attention_hidden_dim": 48,
    "dense_feed_forward_hidden_dim": 40,
    "sparse_feed_forward_hidden_dim": 24,
    "num_heads": 6,
    "num_kv_heads": 2,
    "local_attention_window_size": 4,
    "num_experts": 5,
    "experts_router_logits_cap": 3.0,
}
NORMS = {"tracks_dispatch_norm": "rms_norm", "tracks_combine_norm": "rms_norm", "pre_residual_norm": "rms_norm"}
CASES: dict[str, dict[str, Any]] = {
    "default patterns": {},
    "all dense": {"feed_forward_layer_pattern": ("dense",)},
    "all sparse": {"feed_forward_layer_pattern": ("sparse",), "num_experts_per_token": 3},
    "sum": {"tracks_combine_op": "sum"},
    "dispatch norm": {"tracks_dispatch_norm": "rms_norm"},
    "combine norm": {"tracks_combine_norm": "rms_norm"},
    "sum, all norms": {"tracks_combine_op": "sum", **NORMS},
    "norm before the residual": {"pre_residual_norm": "rms_norm"},
    "all local": {"attention_layer_pattern": ("local",), "local_attention_window_size": 1},
    "all global": {"attention_layer_pattern": ("global_nope",)},
    "as many KV heads": {"num_kv_heads": None, "norm_eps": 1e-3},
    "one KV head, no cap": {"num_kv_heads": 1, "experts_router_logits_cap": None},
    "QK norm without weights": {"scale_qk_norm": False, "rope_theta": 300.0},
    "a sync per layer": {"num_layers_per_track_per_sync_point": 1, **NORMS},
    "one sync": {"num_layers_per_track_per_sync_point": 4, **NORMS},
    "one track": {"num_tracks": 1},
}


def saved(options: dict[str, Any], folder: Path) -> torch.nn.Module:
    """A random model, its config as tamm's own JSON and its state dict as safetensors."""
    config = AFMParallelTrackMoEConfig(**SMALL | options)
    model: torch.nn.Module = config.create_module().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.4)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(tamm_json.dumps(config))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return model


@pytest.mark.parametrize("name", CASES)
def test_logits(name: str, tmp_path: Path) -> None:
    theirs = saved(CASES[name], tmp_path)
    ours = load_reference(tmp_path)
    for length in (3, 17):  # shorter and longer than the window
        tokens = torch.randint(1, SMALL["vocab_size"], (2, length))  # 0 is tamm's padding
        with torch.no_grad():
            want, got = theirs(tokens).logits, ours(tokens)
        assert (got - want).abs().max() < 1e-5 * want.abs().max(), length


def test_checkpoint_holds_the_same_model(tmp_path: Path) -> None:
    saved({"num_tracks": 4, **NORMS}, tmp_path / "tamm")
    checkpoint = convert(tmp_path / "tamm", tmp_path / "ckpt", 2)
    want = load_reference(tmp_path / "tamm").state_dict()
    for name, tensor in load_reference(checkpoint).state_dict().items():
        assert torch.equal(tensor, want[name]), name


def test_a_head_that_is_not_the_embedding(tmp_path: Path) -> None:
    """tamm ties them always, so a state dict with both was edited."""
    saved({}, tmp_path)
    tied = load_reference(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["output_transform.weight"] = state["embedding.weight"].clone()
    save_file(state, tmp_path / "model.safetensors")
    assert load_reference(tmp_path).config == tied.config
    state["output_transform.weight"] = 2 * state["embedding.weight"]
    save_file(state, tmp_path / "model.safetensors")
    untied, tokens = load_reference(tmp_path), torch.randint(1, SMALL["vocab_size"], (2, 9))
    with torch.no_grad():
        assert torch.equal(untied(tokens), 2 * tied(tokens))


def test_defaults_are_tamms() -> None:
    """Its JSON leaves out fields at their defaults."""
    base = {field.name for field in dataclasses.fields(tamm.layers.ModuleConfig)}
    config = AFMParallelTrackMoEConfig()
    for field in dataclasses.fields(AFMParallelTrackMoEConfig):
        value = getattr(config, field.name)
        if field.name in _DEFAULTS:
            assert (list(value) if isinstance(value, tuple) else value) == _DEFAULTS[field.name], field.name
        else:
            assert field.name in _IGNORED or (field.name in _ACCEPTED and field.name in base), field.name
    assert tamm_to_model_config(json.loads(tamm_json.dumps(config))).tracks == 8


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("post_norm", "rms_norm", r"tamm's post_norm \('rms_norm'\) is not supported; it must be None"),
        ("pre_norm", None, r"pre_norm \(None\) is not supported; it must be 'rms_norm'"),
        ("pre_norm", "pre_scale_rms_norm", r"pre_norm \('pre_scale_rms_norm'\)"),
        ("tracks_combine_norm", "pre_scale_rms_norm", "tracks_combine_norm .* must be None or 'rms_norm'"),
        ("tracks_combine_op", "max", r"combine \('max'\) must be 'mean' or 'sum'"),
        ("attention_layer_pattern", ["global_rope"], "attention_layer_pattern has 'global_rope'; supported: local"),
        ("feed_forward_layer_pattern", ["shared"], "feed_forward_layer_pattern has 'shared'"),
        ("num_layers_per_track_per_sync_point", 3, r"sync_point \(3\) must divide num_layers_per_track \(4\)"),
        ("num_heads", 5, r"num_heads \(5\) must divide attention_hidden_dim \(48\)"),
        ("adapters", {"lora": {}}, "adapters .* is not supported"),
        ("colour", "blue", "unknown key 'colour' in the tamm config"),
        (TYPE_KEY, "models:AFMTextV7", r"__tamm_type__ \('models:AFMTextV7'\) is not supported"),
    ],
)
def test_refusals(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tamm_to_model_config(SMALL | {field: value})
