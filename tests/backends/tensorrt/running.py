"""An engine of one rank that runs in this process, on the stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.backends.tensorrt.standin import site
from trtllm_pt.runtime.llm import LLM


@contextmanager
def running(folder: Path, **options: Any) -> Iterator[LLM]:
    with site.installed(), LLM(folder, **options) as llm:
        yield llm
