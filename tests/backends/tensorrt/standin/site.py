"""Puts the stand-in where imports look first."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
FILES = {
    "tensorrt": "trt.py",
    "tensorrt_rtx": "trt.py",
    "trtllm_pt.backends.tensorrt.gpu": "cuda.py",
    "trtllm_pt.backends.tensorrt.nccl": "collectives.py",
}


class Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        file = FILES.get(fullname)
        return None if file is None else spec_from_file_location(fullname, HERE / file)


_AGAIN = (*FILES, *(f"trtllm_pt.backends.tensorrt.{name}" for name in ("engine", "session", "runtime")))


@contextmanager
def installed() -> Iterator[None]:
    """The modules that run plans, imported anew over the stand-in. Afterwards the process is as it was."""
    finder, before = Finder(), _forgotten()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _forgotten()
        for name, module in before.items():
            sys.modules[name] = module
            _set(name, module)


def _forgotten() -> dict[str, ModuleType]:
    """The modules that are imported already, gone from where imports look."""
    found = {name: sys.modules.pop(name) for name in _AGAIN if name in sys.modules}
    for name in found:
        _set(name, None)
    return found


def _set(name: str, module: ModuleType | None) -> None:
    """Set or delete a module in its package."""
    package, _, own = name.rpartition(".")
    if package and module is not None:
        setattr(sys.modules[package], own, module)
    elif package and hasattr(sys.modules[package], own):
        delattr(sys.modules[package], own)
