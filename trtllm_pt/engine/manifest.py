"""An engine directory's `config.json`, in TensorRT-LLM's shape: {version, pretrained_config, build_config}."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from trtllm_pt import __version__
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.config import ModelConfig, read_json
from trtllm_pt.errors import UsageError

Kind = Literal["embedded", "tensorrt_llm"]
MODEL_FILE = "model.pt2"  # only an embedded engine has it
TENSORRT_FILE = "rank0.engine"  # only a TensorRT engine
# Bounds of the embedded graph's axes. They are no options: one graph serves every engine of a model and rank count.
MAX_TOKENS, MAX_BATCH = 1 << 17, 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What an engine can take, under the names of trtllm-build. None: as much as the model allows."""

    max_batch_size: int = 16  # requests in flight
    max_input_len: int | None = None  # tokens of a prompt
    max_seq_len: int | None = None  # tokens of a prompt and its output
    max_num_tokens: int = 2048  # tokens of a step

    def resolved(self, config: ModelConfig) -> BuildOptions:
        """Every value set. Raises UsageError for values that contradict each other or the model."""
        most = config.max_position_embeddings
        max_seq_len = most if self.max_seq_len is None else self.max_seq_len
        max_input_len = max_seq_len - 1 if self.max_input_len is None else self.max_input_len
        for name, bound in (("max_batch_size", MAX_BATCH), ("max_num_tokens", MAX_TOKENS)):
            value = getattr(self, name)
            if not 1 <= value <= bound:
                raise UsageError(f"{name} ({value}) must be between 1 and {bound}")
        if not 2 <= max_seq_len <= most:
            raise UsageError(f"max_seq_len ({max_seq_len}) must be between 2 and max_position_embeddings ({most})")
        if not 1 <= max_input_len < max_seq_len:
            raise UsageError(
                f"max_input_len ({max_input_len}) must be at least 1 and below max_seq_len ({max_seq_len})"
            )
        if self.max_num_tokens < self.max_batch_size:
            raise UsageError(
                f"max_num_tokens ({self.max_num_tokens}) must be at least max_batch_size ({self.max_batch_size}): "
                "a step decodes a token of every request"
            )
        return BuildOptions(
            max_batch_size=self.max_batch_size,
            max_input_len=max_input_len,
            max_seq_len=max_seq_len,
            max_num_tokens=self.max_num_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineManifest:
    """What an engine directory holds; `versions` are those that must be the same where it runs."""

    kind: Kind
    checkpoint: CheckpointManifest
    options: BuildOptions  # resolved
    versions: dict[str, str]

    @property
    def model(self) -> ModelConfig:
        return self.checkpoint.model

    @property
    def ranks(self) -> int:
        return self.checkpoint.ranks

    @property
    def max_seq_len(self) -> int:
        assert self.options.max_seq_len is not None
        return self.options.max_seq_len

    def to_json(self) -> dict[str, Any]:
        build = asdict(self.options) | {"max_beam_width": 1, "kv_cache_type": "paged", "versions": self.versions}
        return {"version": __version__, "pretrained_config": self.checkpoint.to_json(), "build_config": build}

    @classmethod
    def from_dir(cls, folder: Path) -> EngineManifest:
        """Raises UsageError where `folder` is not an engine directory that this version reads."""
        if not folder.is_dir():
            raise UsageError(f"there is no engine directory at {folder}")
        data = read_json(folder / "config.json")
        if not isinstance(data.get("pretrained_config"), dict) or not isinstance(data.get("build_config"), dict):
            hint = ": it is a checkpoint, run `trtllm-pt build` on it" if "parallel_track" in data else ""
            raise UsageError(f"{folder} is not an engine directory{hint}")
        build = data["build_config"]
        given = {field.name: build.get(field.name) for field in fields(BuildOptions)}
        bad = [name for name, value in given.items() if type(value) is not int]
        built_with = build.get("versions", {})
        if bad or not isinstance(built_with, dict):
            raise UsageError(f"{folder / 'config.json'}: build_config has no whole number for {', '.join(bad)}")
        try:
            checkpoint = CheckpointManifest.from_json(data["pretrained_config"], strict=False)
            options = BuildOptions(**given).resolved(checkpoint.model)
        except UsageError as error:
            raise UsageError(f"{folder / 'config.json'}: {error}") from None
        return cls(kind=_kind(folder), checkpoint=checkpoint, options=options, versions=built_with)


def _kind(folder: Path) -> Kind:
    if (folder / MODEL_FILE).exists():
        return "embedded"
    if (folder / TENSORRT_FILE).exists():
        return "tensorrt_llm"
    raise UsageError(f"{folder} is incomplete: it has neither {MODEL_FILE} nor {TENSORRT_FILE}; build it again")
