"""The compiled op library inside a wheel, which saves an installation the compiler and MPI's header."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent / "compiled"  # only a wheel made by `make wheel` has it
_FACTS = "library.json"


def find(name: str, folder: Path = FOLDER) -> Path | None:
    """The library `name` in `folder`; None where there is none, or it belongs to another torch or to other sources."""
    facts = folder / _FACTS
    if not facts.is_file() or json.loads(facts.read_text()) != _facts():
        return None
    return folder / name


def describe(folder: Path) -> None:
    """Note in `folder` which torch and which sources the library in it was just compiled with."""
    (folder / _FACTS).write_text(json.dumps(_facts(), indent=2) + "\n")


def _facts() -> dict[str, str]:
    """What decides whether a library fits: torch's release without its variant, and the sources with their flags.

    Variants of one release (`2.13.0`, `2.13.0+cpu`) have the same interface for what the ops use: ATen on processors.
    """
    here = Path(__file__).parent
    sources = [here / "build.py", *sorted([*here.glob("*.cpp"), *here.glob("*.h")])]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    return {"torch": torch.__version__.split("+")[0], "sources": digest}
