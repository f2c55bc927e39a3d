"""Checkpoint to engines, by whichever engine is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trtllm_pt.engine.manifest import BuildOptions
from trtllm_pt.errors import INSTALL_EMBEDDED, UsageError

if TYPE_CHECKING:
    from trtllm_pt.engine.embedded import BuildReport

ENGINES = ("auto", "embedded")


def build(
    checkpoint: str | Path,
    output: str | Path,
    engine: str = "auto",
    options: BuildOptions | None = None,
    progress: bool | None = None,
) -> BuildReport:
    """Builds an engine per rank of the directory `checkpoint` into the new directory `output`.

    progress: a bar on stderr; None: where that is a terminal. Raises UsageError for what cannot be built, before
    anything slow; then, and after any failure, nothing stands at `output`.
    """
    if engine not in ENGINES:
        raise UsageError(f"engine ({engine!r}): this version builds {' or '.join(map(repr, ENGINES))}")
    try:
        from trtllm_pt.engine import embedded
    except ModuleNotFoundError as error:
        raise UsageError(f"the embedded engine needs {error.name}: `{INSTALL_EMBEDDED}`") from None
    return embedded.build(Path(checkpoint), Path(output), options or BuildOptions(), progress)
