"""A machine without TensorRT-LLM stays one: the definition says what is missing, and the stand-in leaves nothing."""

from __future__ import annotations

import importlib
import importlib.util
import sys

import pytest
import torch

from tests.backends.tensorrt_llm.standin.install import DEFINITION, installed
from trtllm_pt.backends import tensorrt_llm as backend
from trtllm_pt.errors import UsageError


def test_it_goes_away_again() -> None:
    before = {name: module for name, module in sys.modules.items() if name.startswith(("tensorrt", DEFINITION))}
    with installed() as definition:
        assert definition.__name__ == DEFINITION and "tensorrt_llm" in sys.modules
        assert hasattr(torch.ops.trtllm, "preprocess_weights_for_mixed_gemm")
    after = {name: module for name, module in sys.modules.items() if name.startswith(("tensorrt", DEFINITION))}
    assert after == before
    assert DEFINITION in after or not hasattr(backend, "network")
    assert not hasattr(torch.ops.trtllm, "preprocess_weights_for_mixed_gemm")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_llm") is not None, reason="TensorRT-LLM is installed")
def test_without_tensorrt_llm_it_imports_and_says_what_is_missing() -> None:
    definition = importlib.import_module(DEFINITION)
    for use in (
        lambda: definition.ParallelTrackConfig(parallel_track={}),
        lambda: definition.ParallelTrackConfig.from_checkpoint("checkpoint"),
        lambda: definition.ParallelTrackForCausalLM.from_checkpoint("checkpoint"),
    ):
        with pytest.raises(UsageError, match=r"tensorrt-llm==1\.2\.1") as error:
            use()
        assert "\n" not in str(error.value) and "nvcr.io/nvidia/" in str(error.value)
