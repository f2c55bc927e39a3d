"""Checkpoints and engines that the tests of native TensorRT engines share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backends.tensorrt.standin.plans import Command, build
from tests.backends.tensorrt_llm.conftest import checkpoints
from tests.configs import EVERYTHING, LLAMA, PRETRAINED
from trtllm_pt.checkpoint.convert import convert
from trtllm_pt.checkpoint.init import init

__all__ = ["checkpoints"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small products take longer on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MODELS: dict[str, Any] = {"pretrained": PRETRAINED, "everything": EVERYTHING, "llama": LLAMA}
SIZES = {"max_batch_size": 4, "max_seq_len": 128, "max_num_tokens": 48}
Engines = Callable[..., Path]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """A model of MODELS in float32, for so many ranks and a package of NVIDIA's; checkpoint-… lies beside it."""
    root = tmp_path_factory.mktemp("stand-in")

    def engine(model: str, ranks: int, builder: str = "tensorrt") -> Path:
        folder, checkpoint = root / f"{model}-{ranks}-{builder}", root / f"checkpoint-{model}-{ranks}"
        if not checkpoint.exists():
            source = MODELS[model]
            make = convert if isinstance(source, Path) else init
            make(source, checkpoint, ranks, dtype="float32")
        return folder if folder.exists() else build(checkpoint, folder, builder, **SIZES)

    return engine


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    return Command(tmp_path_factory.mktemp("environment"))
