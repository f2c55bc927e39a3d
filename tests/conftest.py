"""Small models that many tests share."""

from __future__ import annotations

import signal

import pytest
import torch

from trtllm_pt.model.config import ModelConfig

# A shell that starts the tests in the background has them ignore interruptions, and so what they start; some send one.
signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL = ModelConfig(
    num_layers=5,
    hidden_size=48,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    intermediate_size=64,
    vocab_size=101,
    max_position_embeddings=128,
    tracks=4,
    schedule="pt",
    block_depth=2,
)


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
