"""Reads the tokenizer folder of an engine: the tokenizer, and the tokens that end an output."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, overload

from tokenizers import Tokenizer

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import read_json


@overload
def load_tokenizer(folder: Path, *, required: Literal[True]) -> Tokenizer: ...
@overload
def load_tokenizer(folder: Path) -> Tokenizer | None: ...
def load_tokenizer(folder: Path, *, required: bool = False) -> Tokenizer | None:
    """Load the tokenizer of a folder, or return None if the folder has none.

    Raises UsageError if the file is not a tokenizer, and if the folder has none although it is `required`.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        if required:
            raise UsageError(f"{folder} has no tokenizer.json")
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UsageError(f"{path} is not a tokenizer file: {error}") from None
    tokenizer.no_truncation()  # the file may contain the settings that were in use when it was saved
    tokenizer.no_padding()
    return tokenizer


def end_ids(folder: Path) -> tuple[int, tuple[int, ...]]:
    """Return the first end token of generation_config.json (-1 if it has none), and the other ones."""
    path = folder / "generation_config.json"
    ids: Any = read_json(path).get("eos_token_id") if path.exists() else None
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    return (listed[0] if listed else -1), tuple(listed[1:])
