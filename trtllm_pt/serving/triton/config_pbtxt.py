"""Reads and writes Triton's config.pbtxt files, with the protobuf schema that Triton's Python client contains.

`repo` and `serve` use this module, and so does the model `tensorrt_llm_bls` inside Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtllm_pt.errors import UsageError


def config_text(fields: Mapping[str, Any]) -> str:
    """Return a model configuration as protobuf text. Raises UsageError if tritonclient is not installed."""
    config_type = _config_type()  # first, because its error names the package to install
    from google.protobuf import json_format, text_format

    config = json_format.ParseDict(fields, config_type())
    return str(text_format.MessageToString(config, use_short_repeated_primitives=True))


def read_config(path: Path) -> Any:
    """Return the ModelConfig message in a file. Fields of other Triton versions are ignored.

    Raises UsageError if tritonclient is not installed or the file is not a model configuration.
    """
    config_type = _config_type()
    from google.protobuf import text_format

    try:
        return text_format.Parse(path.read_text(), config_type(), allow_unknown_field=True)
    except text_format.ParseError as error:
        raise UsageError(f"{path} is not a Triton model configuration: {error}") from None


def parameter(config: Any, key: str) -> str | None:
    """Return the string value of one parameter, or None if the configuration does not have it."""
    return str(config.parameters[key].string_value) if key in config.parameters else None


def _config_type() -> Any:
    try:
        from tritonclient.grpc.model_config_pb2 import ModelConfig
    except (ImportError, RuntimeError):  # tritonclient raises RuntimeError without its extra `grpc`
        raise UsageError(
            "a model repository needs tritonclient, which has the schema of config.pbtxt: "
            "pip install 'tritonclient[grpc]'"
        ) from None
    return ModelConfig
