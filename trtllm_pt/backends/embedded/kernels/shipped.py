"""The compiled op library in a wheel, with which an installation needs neither a compiler nor MPI's header."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parent / "compiled"  # only a wheel made by `make wheel` has it
_FACTS = "library.json"


def find(name: str, folder: Path = FOLDER) -> Path | None:
    """Return the path of the library `name` in `folder`, or None if it is missing or was compiled for another torch or
    from other sources."""
    facts = folder / _FACTS
    if not facts.is_file() or json.loads(facts.read_text()) != _facts():
        return None
    return folder / name


def describe(folder: Path) -> None:
    """Record in `folder` for which torch and from which sources the library in it was compiled."""
    (folder / _FACTS).write_text(json.dumps(_facts(), indent=2) + "\n")


def _facts() -> dict[str, str]:
    """Return what a library must match: torch's release without its variant, and the sources with their flags.

    All variants of a release (`2.13.0`, `2.13.0+cpu`) have the same ABI for ATen on CPUs, which is all the ops use.
    """
    here = Path(__file__).parent
    sources = [here / "build.py", *sorted([*here.glob("*.cpp"), *here.glob("*.h")])]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()
    return {"torch": torch.__version__.split("+")[0], "sources": digest}
