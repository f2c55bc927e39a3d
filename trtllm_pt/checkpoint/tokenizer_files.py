"""Check the tokenizer's files of a model, and copy them to a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import write_json
from trtllm_pt.files.git_lfs import refuse_pointer
from trtllm_pt.model.config import read_json
from trtllm_pt.text.tokenizer import load_tokenizer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def check_tokenizer(folder: Path, vocab_size: int) -> None:
    """Raise UsageError, naming the file, for what would make every request to the model's engine fail.

    These are files that git-lfs did not download, a tokenizer that cannot be read, and tokens that do not exist.
    """
    found = _found(folder)
    for path in found:
        refuse_pointer(path)
    if found:
        tokenizer = load_tokenizer(folder)
        _check_end_tokens(folder, tokenizer, vocab_size)
        for token in tokenizer.encode("").ids if tokenizer is not None else ():
            if token >= vocab_size:
                file = folder / "tokenizer.json"
                raise UsageError(f"{file} adds token {token} to every text, outside the vocabulary of {vocab_size}")


def _check_end_tokens(folder: Path, tokenizer: Tokenizer | None, vocab_size: int) -> None:
    source, tokens = _special_tokens(folder)
    ends = tokens.get("eos_token_id", [])
    for token in ends if isinstance(ends, list) else [ends]:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise UsageError(f"{source}: eos_token_id ({token!r}) must be a token id between 0 and {vocab_size - 1}")
        if tokenizer is not None and tokenizer.id_to_token(token) is None:
            raise UsageError(f"{source}: eos_token_id ({token}) must be a token of the tokenizer, which has no such id")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files from the folder `source` to the folder `target`, which is created if there are any.

    Older models name their end token only in config.json; its token ids are then written to generation_config.json.
    """
    found = _found(source)
    if not found:
        return
    target.mkdir(exist_ok=True)
    for path in found:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    origin, tokens = _special_tokens(source)
    if origin.name == "config.json" and tokens:
        write_json(target / "generation_config.json", tokens)


def _found(folder: Path) -> list[Path]:
    files = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    return files + sorted((folder / "additional_chat_templates").glob("*.jinja"))


def _special_tokens(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the ids of special tokens, and the file that has them: config.json without a generation_config.json."""
    path = folder / "generation_config.json"
    if not path.exists():
        path = folder / "config.json"
    config = read_json(path) if path.exists() else {}
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    return path, {key: config[key] for key in keys if config.get(key) is not None}
