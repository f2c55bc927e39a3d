"""Build the engines of a checkpoint with a backend."""

from __future__ import annotations

from pathlib import Path

from trtllm_pt.backends.backend import BuildReport
from trtllm_pt.backends.manifest import BuildOptions
from trtllm_pt.backends.registry import choose


def build(
    checkpoint: str | Path,
    output: str | Path,
    engine: str = "auto",
    options: BuildOptions | None = None,
    progress: bool | None = None,
) -> BuildReport:
    """Build an engine for every rank of the directory `checkpoint` into the new directory `output`.

    engine: the name of a backend, or "auto" for the preferred one that can run on this machine.
    progress: whether to show a bar on stderr; None shows it on a terminal.
    Raises UsageError for a checkpoint or options that cannot be built, before anything slow begins. `output` does not
    exist after a failure.
    """
    backend, _ = choose(engine)
    return backend.build(Path(checkpoint), Path(output), options or BuildOptions(), progress)
