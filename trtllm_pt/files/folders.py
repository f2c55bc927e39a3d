"""Directories and files that appear complete or not at all, and what travels beside the weights."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtllm_pt.errors import RunError, UsageError

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


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A hidden directory beside `output` that becomes `output` at the end; gone after an exception.

    Killed midway, the hidden one (`.NAME.*.partial`) stays, and nothing stands at `output`.
    Raises UsageError where something is already there, RunError where the disk refuses.
    """
    output = output.resolve()  # a link, or `.`: the folder that is meant
    try:
        refuse_existing(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        raise UsageError(f"cannot write to {output.parent}: {error.strerror}") from None
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())  # mkdtemp's is for the owner alone
        partial.rename(output)
    except OSError as error:
        raise RunError(f"writing {output} failed: {error.strerror or error}; nothing was kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(output: Path) -> None:
    """Raises UsageError unless `output` is free, or an empty directory that another can take the place of."""
    if output.is_mount() or output.resolve() == Path.cwd():
        raise UsageError(f"{output} cannot be replaced as a whole; choose a folder inside it")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(f"{output} already exists; remove it or choose another")


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(data, indent=2) + "\n")
    partial.rename(path)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer's files of `source` to `target`, which is made where there are any.

    Older models keep their end token in config.json alone: then a generation config is made of it.
    """
    found = [source / name for name in TOKENIZER_FILES if (source / name).exists()]
    if found:
        target.mkdir(exist_ok=True)
    for path in found:
        shutil.copyfile(path, target / path.name)
    if found and not (target / "generation_config.json").exists() and (source / "config.json").exists():
        config = json.loads((source / "config.json").read_text())
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        tokens = {key: config[key] for key in keys if config.get(key) is not None}
        if tokens:
            write_json(target / "generation_config.json", tokens)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
