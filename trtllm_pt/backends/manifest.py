"""An engine directory's `config.json`, in TensorRT-LLM's shape: {version, pretrained_config, build_config}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from trtllm_pt._version import __version__
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig, read_json

Kind = Literal["embedded", "tensorrt_llm"]
MODEL_FILE = "model.pt2"  # only an embedded engine has it
TENSORRT_FILE = "rank0.engine"  # only a TensorRT engine
RECORDED = "recorded_plugins"  # a key of config.json: how many layers of each plugin a TensorRT engine's ranks have
# Bounds of the embedded graph's axes. They are no options: one graph serves every engine of a model and rank count.
MAX_TOKENS, MAX_BATCH = 1 << 17, 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What an engine can take, under the names of trtllm-build."""

    max_batch_size: int  # requests in flight
    max_input_len: int  # tokens of a prompt
    max_seq_len: int  # tokens of a prompt and its output
    max_num_tokens: int  # tokens of a step


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What is asked of a build, under the names of trtllm-build. None: the engine's default.

    tensorrt_llm: trtllm-build's other options by name, and `all_reduce_strategy`; for the TensorRT engine alone.
    """

    max_batch_size: int | None = None
    max_input_len: int | None = None  # default: max_seq_len - 1
    max_seq_len: int | None = None  # default: the model's positions
    max_num_tokens: int | None = None
    tensorrt_llm: Mapping[str, Any] = field(default_factory=dict)

    def resolved(self, config: ModelConfig, max_batch_size: int = 16, max_num_tokens: int = 2048) -> Capacity:
        """Every value set, the two defaults as given. Raises UsageError for values that contradict each other or the
        model."""
        most = config.max_position_embeddings
        max_seq_len = most if self.max_seq_len is None else self.max_seq_len
        found = Capacity(
            max_batch_size=max_batch_size if self.max_batch_size is None else self.max_batch_size,
            max_input_len=max_seq_len - 1 if self.max_input_len is None else self.max_input_len,
            max_seq_len=max_seq_len,
            max_num_tokens=max_num_tokens if self.max_num_tokens is None else self.max_num_tokens,
        )
        for name, bound in (("max_batch_size", MAX_BATCH), ("max_num_tokens", MAX_TOKENS)):
            value = getattr(found, name)
            if not 1 <= value <= bound:
                raise UsageError(f"{name} ({value}) must be between 1 and {bound}")
        if not 2 <= max_seq_len <= most:
            raise UsageError(f"max_seq_len ({max_seq_len}) must be between 2 and max_position_embeddings ({most})")
        if not 1 <= found.max_input_len < max_seq_len:
            raise UsageError(
                f"max_input_len ({found.max_input_len}) must be at least 1 and below max_seq_len ({max_seq_len})"
            )
        if found.max_num_tokens < found.max_batch_size:
            raise UsageError(
                f"max_num_tokens ({found.max_num_tokens}) must be at least max_batch_size ({found.max_batch_size}): "
                "a step decodes a token of every request"
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineManifest:
    """What an engine directory holds; `versions` are those that must be the same where it runs."""

    kind: Kind
    checkpoint: CheckpointManifest
    options: Capacity
    versions: dict[str, str]
    reuses_pages: bool = True  # the attention of prompts reads the KV cache: a known start need not be computed again

    @property
    def model(self) -> ModelConfig:
        return self.checkpoint.model

    @property
    def ranks(self) -> int:
        return self.checkpoint.ranks

    @property
    def max_seq_len(self) -> int:
        return self.options.max_seq_len

    @property
    def chunks_prompts(self) -> bool:
        """Whether a prompt may come in several steps. Not with windows under TensorRT-LLM, whose chunks are too small
        for windowed kernels where some layers see all tokens (trtGptModelInflightBatching.cpp has it as a to-do)."""
        return self.reuses_pages and (self.kind == "embedded" or self.windows is None)

    @property
    def windows(self) -> tuple[int, ...] | None:
        """Tokens that each layer's attention sees, where they differ from all."""
        if self.model.window is None:
            return None
        layers = range(self.model.num_layers)
        return tuple(min(self.model.layer_window(i) or self.max_seq_len, self.max_seq_len) for i in layers)

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
        kind, build = _kind(folder), data["build_config"]
        built_with = build.get("versions", {})
        if not isinstance(built_with, dict):
            raise UsageError(f"{folder / 'config.json'}: build_config.versions is no object")
        try:
            checkpoint = CheckpointManifest.from_json(data["pretrained_config"], strict=False)
            built = Capacity(**_whole_numbers(build))
            if kind == "embedded":
                capacity = BuildOptions(**asdict(built)).resolved(checkpoint.model)
                return cls(kind=kind, checkpoint=checkpoint, options=capacity, versions=built_with)
        except UsageError as error:
            raise UsageError(f"{folder / 'config.json'}: {error}") from None
        return cls._of_tensorrt(checkpoint, built, built_with, build.get("plugin_config") or {})

    @classmethod
    def _of_tensorrt(
        cls, checkpoint: CheckpointManifest, built: Capacity, versions: dict[str, str], plugins: dict[str, Any]
    ) -> EngineManifest:
        """TensorRT-LLM ignores max_input_len where prompts are packed and their attention is fused."""
        paged = bool(plugins.get("use_paged_context_fmha"))
        found = cls(kind="tensorrt_llm", checkpoint=checkpoint, options=built, versions=versions, reuses_pages=paged)
        if not (plugins.get("remove_input_padding") and plugins.get("context_fmha")):
            return found
        step = built.max_seq_len if found.chunks_prompts else built.max_num_tokens
        return replace(found, options=replace(built, max_input_len=min(built.max_seq_len - 1, step)))


def _whole_numbers(build: dict[str, Any]) -> dict[str, int]:
    given: dict[str, Any] = {field.name: build.get(field.name) for field in fields(Capacity)}
    if bad := [name for name, value in given.items() if type(value) is not int]:
        raise UsageError(f"build_config has no whole number for {', '.join(bad)}")
    return given


def _kind(folder: Path) -> Kind:
    if (folder / MODEL_FILE).exists():
        return "embedded"
    if (folder / TENSORRT_FILE).exists():
        return "tensorrt_llm"
    raise UsageError(f"{folder} is incomplete: it has neither {MODEL_FILE} nor {TENSORRT_FILE}; build it again")
