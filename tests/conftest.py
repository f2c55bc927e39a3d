"""What many tests share: small models, engines that are built once, and how a test run ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engines import built, locked
from tests.interruption import end_processes_on_interruption

end_processes_on_interruption()


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this test run have in common."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if own.name.startswith("popen-") else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def library(shared: Path) -> Path:
    """The compiled ops. Two processes do not compile them at the same time: it takes minutes."""
    from trtllm_pt.backends.embedded.kernels.build import build_library

    with locked(shared / "library.lock"):
        return build_library(shared / "library")


@pytest.fixture(scope="session")
def engine(shared: Path, library: Path) -> Callable[[str], Path]:
    """The folder of an engine by its name in tests.engines.RECIPES."""
    return lambda name: built(shared, name)
