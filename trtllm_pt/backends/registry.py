"""Find the backends: the folders of this package that have a `backend.py`, and the entry points of other packages.

Another package adds a backend with an entry point in the group `trtllm_pt.backends` that names a subclass of `Backend`.
An entry point needs no call, so every process finds the backend, including the ranks of a job.
"""

from __future__ import annotations

import functools
import importlib.util
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from trtllm_pt.backends.backend import Backend
from trtllm_pt.backends.manifest import ENGINE_KEY, Capacity, EngineManifest, whole_numbers
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import read_json

GROUP = "trtllm_pt.backends"
AUTO = "auto"


@functools.cache
def backends() -> Mapping[str, Backend]:
    """Return every backend by name, in the order in which `--engine auto` prefers them.

    Raises UsageError for an entry point that does not load, or for two backends of the same name.
    """
    found: dict[str, Backend] = {}
    for backend in sorted([*_own(), *_of_other_packages()], key=lambda backend: -backend.preference):
        if backend.name in found or backend.name == AUTO:
            raise UsageError(f"there are two backends with the name {backend.name!r}; uninstall one of their packages")
        found[backend.name] = backend
    return found


def _named(name: str) -> Backend | None:
    """Return the backend of this name, or None if it is not installed.

    A backend of this package is imported alone: to look for all backends takes each rank 10 ms of its start.
    """
    return _own_backend(name) if name in _own_names() else backends().get(name)


def _own() -> list[Backend]:
    return [_own_backend(name) for name in _own_names()]


def _own_names() -> list[str]:
    """Return the names of this package's backends, which are those of their folders."""
    folders = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg)
    return [name for name in folders if importlib.util.find_spec(f"{__package__}.{name}.backend")]


def _own_backend(name: str) -> Backend:
    backend: Backend = import_module(f"{__package__}.{name}.backend").BACKEND
    assert backend.name == name
    return backend


def _of_other_packages() -> list[Backend]:
    made = []
    for entry in entry_points(group=GROUP):
        try:
            backend = entry.load()()
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UsageError(f"the backend {entry.name!r} ({entry.value}) does not load: {reason}") from error
        if not isinstance(backend, Backend):
            raise UsageError(f"the backend {entry.name!r} ({entry.value}) must be a subclass of Backend")
        made.append(backend)
    return made


def choose(engine: str) -> tuple[Backend, str | None]:
    """Return the backend that `engine` names and, if `engine` is "auto", the reason for the choice.

    Raises UsageError for an unknown name, or if no backend can run on this machine.
    """
    known = backends()
    if engine in known:
        return known[engine], None
    if engine != AUTO:
        raise UsageError(f"engine ({engine!r}) must be one of {', '.join(map(repr, (AUTO, *known)))}")
    reasons: list[str] = []
    for backend in known.values():
        reason = backend.unavailable()
        if reason is None:
            return backend, "; ".join([*reasons, backend.available()])
        reasons.append(reason)
    raise UsageError(f"no backend can run on this machine: {'; '.join(reasons)}")


def read_engine(folder: str | Path) -> EngineManifest:
    """Read the manifest of an engine directory. Raises UsageError if `folder` is not one that this version can read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"there is no engine directory at {folder}")
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config.get("pretrained_config"), dict) or not isinstance(config.get("build_config"), dict):
        hint = ": it is a checkpoint; run `trtllm-pt build` on it" if "parallel_track" in config else ""
        raise UsageError(f"{folder} is not an engine directory{hint}")
    backend, own = _backend_of(folder, config)
    try:
        found = EngineManifest(
            backend=backend,
            checkpoint=CheckpointManifest.from_json(config["pretrained_config"], strict=False),
            options=Capacity(**whole_numbers(config["build_config"])),
            versions=_object(own, "versions"),
            format=own.get("format"),
        )
        return backend.read(folder, config, found)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _backend_of(folder: Path, config: Mapping[str, Any]) -> tuple[Backend, Mapping[str, Any]]:
    """Return the backend that config.json names or that recognises the files, and the value of the key `engine`."""
    try:
        own = _object(config, ENGINE_KEY)
    except UsageError as error:
        raise UsageError(f"{folder / 'config.json'}: {error}") from None
    if (name := own.get("backend")) is not None:
        if (named := _named(name)) is None:
            raise UsageError(f"{folder} needs the backend {name!r}, which is not installed; {_installed()}")
        return named, own
    for backend in backends().values():
        if backend.recognises(folder, config):
            return backend, own
    raise UsageError(f"{folder} is incomplete: no backend recognises its files ({_installed()}); build it again")


def _installed() -> str:
    return f"the installed backends are {', '.join(backends())}"


def _object(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise UsageError(f"{key} ({value!r}) must be an object")
    return value
