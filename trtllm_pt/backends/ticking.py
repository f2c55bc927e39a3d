"""Keep the clock of a progress bar going while nothing else moves it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def ticking(bar: tqdm) -> Iterator[None]:
    """Refresh a progress bar every second while the block runs, and close it afterwards."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(1):
            bar.refresh()

    clock = threading.Thread(target=tick, daemon=True)
    clock.start()
    try:
        yield
    finally:
        ended.set()
        clock.join()
        bar.close()
