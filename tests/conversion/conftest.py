"""A small dense model and a text for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.spd.conftest import _one_thread, _own_cache, text  # noqa: F401  # the same fixtures
from tests.spd.models import DENSE, save_dense


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_dense(tmp_path_factory.mktemp("models") / "dense", DENSE.replace(output_bias=False))
