"""The config.json of a MODEL_DIR as transformers and vLLM see it: totals over all tracks, under their names."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import PretrainedConfig

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import HF_KEYS, TRANSFORMERS_KEYS, ModelConfig, unknown_key

_OURS = {field.name for field in dataclasses.fields(ModelConfig)}
# Keys that may stand beside ours. transformers and vLLM read them.
_THEIRS = TRANSFORMERS_KEYS | {"architectures", "attn_implementation", "name_or_path", "quantization_config"}


class ParallelTrackConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """A model's config. Raises UsageError, naming the field, for a value that is not valid."""

    model_type = str(HF_KEYS["model_type"])
    has_no_defaults_at_init = True

    def __init__(self, **values: Any) -> None:
        theirs = {key: value for key, value in values.items() if key not in _OURS | {"model_type"}}
        for key in theirs:
            if key not in _THEIRS and not key.startswith("_"):
                raise unknown_key(key, _OURS, "the model config")
        super().__init__(**theirs)
        self._set({key: value for key, value in values.items() if key in _OURS})

    def update(self, config_dict: dict[str, Any]) -> None:
        """Change fields, as vLLM's --hf-overrides does."""
        self._set(self.parallel_track | {key: value for key, value in config_dict.items() if key in _OURS})
        super().update({key: value for key, value in config_dict.items() if key not in _OURS})

    def _set(self, ours: dict[str, Any]) -> None:
        model = ModelConfig.from_json(ours)
        # vLLM and transformers read and change RoPE's keys of any config, so ours stay out of their sight.
        self.parallel_track = {key: value for key, value in model.to_json().items() if key in _OURS}
        self.vocab_size = model.vocab_size
        self.hidden_size = model.hidden_size
        self.num_hidden_layers = model.num_layers
        self.num_attention_heads = model.tracks * model.num_heads
        self.num_key_value_heads = model.tracks * model.num_kv_heads
        self.head_dim = model.head_size
        self.intermediate_size = model.intermediate_size
        self.max_position_embeddings = model.max_position_embeddings
        self.tie_word_embeddings = model.tie_embeddings

    @property
    def model(self) -> ModelConfig:
        """The same as our own config."""
        return ModelConfig.from_json(self.parallel_track)


def refusing(message: str) -> type[PretrainedConfig]:
    """Return a config class for our model type that raises UsageError with this message."""

    class Refusing(PretrainedConfig):  # type: ignore[no-untyped-call]
        model_type = str(HF_KEYS["model_type"])

        def __init__(self, **values: Any) -> None:
            raise UsageError(message)

    return Refusing
