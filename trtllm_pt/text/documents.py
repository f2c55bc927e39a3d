"""Read texts from files, and their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from trtllm_pt.errors import UsageError


@dataclass(frozen=True, slots=True)
class Text:
    """One text: its tokens, of which the first only begins it and is not predicted, and its size in UTF-8."""

    name: str
    tokens: tuple[int, ...]
    bytes: int


def read_texts(tokenizer: Tokenizer | None, end_id: int, paths: Iterable[Path]) -> list[Text]:
    """Read the texts of files, and of all files in folders. Empty files are left out.

    Every text begins with the tokens that the tokenizer puts before a text or, if it puts none, with the end token:
    models are trained on documents that follow an end token. end_id: the end token, or -1 if there is none.
    Raises UsageError for a file that is not UTF-8, if there is no text, and if there is no tokenizer or no token to
    begin with.
    """
    if tokenizer is None:
        raise UsageError("--text: the model has no tokenizer, which texts need")
    beginning = _beginning(tokenizer, end_id)
    texts = [_text(tokenizer, beginning, path) for path in _files(paths)]
    found = [text for text in texts if text.bytes]
    if not found:
        raise UsageError("--text has no text: every file is empty")
    return found


def _text(tokenizer: Tokenizer, beginning: list[int], path: Path) -> Text:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"--text: {path} is not UTF-8: byte {error.start} is {error.object[error.start]:#x}") from None
    except OSError as error:
        raise UsageError(f"--text: {path}: {error.strerror}") from None
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    return Text(str(path), (*beginning, *tokens), len(text.encode()))


def _beginning(tokenizer: Tokenizer, end_id: int) -> list[int]:
    """Return the token that begins a text."""
    special: list[int] = tokenizer.encode("").ids[:1]
    if special:
        return special
    if end_id < 0:
        raise UsageError("--text: no token begins a text: the model's tokenizer adds none, and has no end token")
    return [end_id]


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        inside = (one for one in path.rglob("*") if one.is_file())
        visible = [one for one in inside if not any(part.startswith(".") for part in one.relative_to(path).parts)]
        if not visible:
            raise UsageError(f"--text: {path} has no files")
        yield from sorted(visible)
