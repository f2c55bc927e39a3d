"""The `config.json` of an engine directory.

Its keys `version`, `pretrained_config` and `build_config` are TensorRT-LLM's. The key `engine` is ours: it has the
backend, the format of the directory, and the versions of the packages that the engine depends on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from trtllm_pt._version import __version__
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.requests.limits import MAX_BATCH, MAX_TOKENS, Limits

if TYPE_CHECKING:
    from trtllm_pt.backends.backend import Backend

ENGINE_KEY = "engine"
COMPILED = "compiled"  # key of config.json: what the compiler's log says of the engine, from a backend that reads it
RECORDED = "recorded_plugins"  # key of config.json: the number of layers of each plugin in rank 0's network


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The sizes that an engine is built for, with the names of trtllm-build."""

    max_batch_size: int  # requests in flight
    max_input_len: int  # tokens of a prompt
    max_seq_len: int  # tokens of a prompt and its output
    max_num_tokens: int  # tokens of a step, over all requests


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """The options of a build, with the names of trtllm-build. None selects the default.

    extra: the values of the options that a backend adds, by name.
    """

    max_batch_size: int | None = None
    max_input_len: int | None = None  # default: max_seq_len - 1
    max_seq_len: int | None = None  # default: the model's positions
    max_num_tokens: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def resolved(self, config: ModelConfig, max_batch_size: int = 16, max_num_tokens: int = 2048) -> Capacity:
        """Return the options with defaults filled in; the arguments are the backend's defaults.

        Raises UsageError for values that contradict each other or the model.
        """
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
            kind = config.rope_scaling and config.rope_scaling["rope_type"]
            why = ": cached keys cannot follow dynamic RoPE scaling any further" if kind == "dynamic" else ""
            raise UsageError(f"max_seq_len ({max_seq_len}) must be between 2 and max_position_embeddings ({most}){why}")
        if not 1 <= found.max_input_len < max_seq_len:
            raise UsageError(
                f"max_input_len ({found.max_input_len}) must be at least 1 and below max_seq_len ({max_seq_len})"
            )
        if found.max_num_tokens < found.max_batch_size:
            raise UsageError(
                f"max_num_tokens ({found.max_num_tokens}) must be at least max_batch_size ({found.max_batch_size}): "
                "a step decodes one token of every request"
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineManifest:
    """The backend, model, sizes and versions of an engine directory."""

    backend: Backend
    checkpoint: CheckpointManifest
    options: Capacity
    versions: Mapping[str, str]  # of the packages that the engine was built with
    format: int | None  # format number of the directory; None if config.json has none
    reuses_pages: bool = True  # whether a prefix that an earlier request computed is read from the KV cache
    chunks_prompts: bool = True  # whether a long prompt is computed in several steps

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
    def limits(self) -> Limits:
        """The limits on the requests that the engine accepts."""
        return Limits(
            vocab_size=self.model.vocab_size,
            max_seq_len=self.options.max_seq_len,
            max_input_len=self.options.max_input_len,
            problems=self.backend.problems,
        )

    @property
    def triton_limits(self) -> Limits:
        """The limits on the requests that the engine accepts in Triton."""
        return replace(self.limits, problems=self.backend.triton_problems)

    @property
    def windows(self) -> tuple[int, ...] | None:
        """The number of tokens that each layer attends to, or None if every layer attends to all tokens."""
        if self.model.window is None:
            return None
        layers = range(self.model.num_layers)
        return tuple(min(self.model.layer_window(i) or self.max_seq_len, self.max_seq_len) for i in layers)

    @property
    def windows_differ(self) -> bool:
        """Whether some layers attend to more tokens than others."""
        return len(set(self.windows or ())) > 1

    def to_json(self) -> dict[str, Any]:
        """Return the contents of config.json."""
        return {
            "version": __version__,
            "pretrained_config": self.checkpoint.to_json(),
            "build_config": asdict(self.options) | {"max_beam_width": 1, "kv_cache_type": "paged"},
            **self.engine_json(),
        }

    def engine_json(self) -> dict[str, Any]:
        """Return the part of config.json that names the backend, its format and its versions."""
        return {ENGINE_KEY: {"backend": self.backend.name, "format": self.format, "versions": dict(self.versions)}}


def whole_numbers(build: Mapping[str, Any]) -> dict[str, int]:
    """Return the fields of a Capacity from build_config. Raises UsageError, naming those that are not whole numbers."""
    given: dict[str, Any] = {field.name: build.get(field.name) for field in fields(Capacity)}
    if bad := [name for name, value in given.items() if type(value) is not int]:
        raise UsageError(f"build_config must have a whole number for {', '.join(bad)}")
    return given
