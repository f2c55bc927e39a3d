"""What every plot needs: matplotlib without a screen, and a check of the file before a long measurement starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtllm_pt.errors import UsageError

ENDINGS = (".png", ".svg")
BLUE, GREEN, ORANGE, GREY = "#4878a8", "#6aa35a", "#d9843b", "#888888"


def check_plot(path: Path) -> None:
    """Check that a plot can be written to `path`, without writing it.

    Raises UsageError if the ending is unknown, if the folder does not exist, or if matplotlib is not installed.
    """
    if path.suffix not in ENDINGS:
        raise UsageError(f"--plot ({path}) must end in {' or '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise UsageError(f"--plot ({path}): the folder {path.parent} does not exist")
    pyplot()


def pyplot() -> Any:
    """Import matplotlib.pyplot with a backend that needs no screen. Raises UsageError if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install -e '.[plot]'") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: Path) -> None:
    """Write the figure as PNG or SVG, as the file's ending says, and free it."""
    figure.savefig(path)
    pyplot().close(figure)
