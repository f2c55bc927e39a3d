"""What transformers and vLLM read from a MODEL_DIR's config.json. These tests need transformers and no vLLM."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from tests.configs import EVERYTHING, LLAMA, OTHER_SCHEDULES, PRETRAINED, SMALL
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.vllm_plugin.config import ParallelTrackConfig

MODELS = {"pt": SMALL, "everything": EVERYTHING, "llama": LLAMA, **OTHER_SCHEDULES}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_field_survives(model: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(model.to_json()))
    config = ParallelTrackConfig.from_pretrained(tmp_path)
    assert config.model == model
    assert pickle.loads(pickle.dumps(config)).model == model  # as vLLM sends it to its processes


def test_totals() -> None:
    config = ParallelTrackConfig.from_pretrained(PRETRAINED)
    totals = (config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.hidden_size)
    assert totals == (8 * 2, 8 * 1, 32, 128)
    assert (config.num_hidden_layers, config.vocab_size, config.max_position_embeddings) == (6, 4096, 1024)
    assert config.tie_word_embeddings


def test_ropes_keys_stay_out_of_sight() -> None:
    """vLLM would multiply the longest length by a scaling's factor, and transformers would rename the keys."""
    config = ParallelTrackConfig(**EVERYTHING.to_json())
    assert not hasattr(config, "rope_theta") and not getattr(config, "rope_parameters", None)
    assert not hasattr(config, "sliding_window")  # vLLM would apply it to every layer


def test_overrides_change_the_model() -> None:
    config = ParallelTrackConfig(**SMALL.to_json())
    config.update({"block_depth": 5, "architectures": ["Other"]})
    assert (config.model, config.architectures) == (SMALL.replace(block_depth=5), ["Other"])
    with pytest.raises(UsageError, match=r"block_depth \(6\) must be between 1 and num_layers \(5\)"):
        config.update({"block_depth": 6})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tracks": 4, "schedule": "tp", "block_depth": None}, r"tracks \(4\) must be 1 for schedule 'tp'"),
        ({"block_deph": 2}, "unknown key 'block_deph' in the model config; did you mean 'block_depth'"),
        ({"vocab_size": 0}, r"vocab_size \(0\) must be at least 1"),
    ],
)
def test_mistakes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ParallelTrackConfig(**SMALL.to_json() | changes)
