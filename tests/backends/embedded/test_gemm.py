"""`build --gemm`: which checkpoints can have products of integers."""

from __future__ import annotations

import pytest
import torch

from trtllm_pt.backends.embedded.engine import _storage
from trtllm_pt.backends.embedded.form import Form
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError
from trtllm_pt.model.presets import PRESETS

MODEL = PRESETS["dense-150m"]
EXPERTS = MODEL.replace(num_experts=4, experts_per_token=2, moe_intermediate_size=64)
QUANTISED = CheckpointManifest(
    model=MODEL, ranks=1, dtype="bfloat16", quant_algo="W4A16-G32", embedding_quant_algo="W8A16"
)


def test_layers_multiply_integers_and_the_head_does_not() -> None:
    storage = _storage(QUANTISED, "int8")
    assert storage.form(64) == Form(4, 2, integer=True)
    assert storage.embedding_form == Form(8, 1)
    assert _storage(QUANTISED, None).form(64) == Form(4, 2)
    assert storage.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("manifest", "gemm", "message"),
    [
        (QUANTISED, "fp8", r"gemm \('fp8'\) must be 'int8', or left out"),
        (
            CheckpointManifest(model=MODEL, ranks=1, dtype="bfloat16"),
            "int8",
            r"gemm \('int8'\) needs quantised weights; convert with --quantize W8A16 or another form",
        ),
        (
            CheckpointManifest(model=EXPERTS, ranks=1, dtype="bfloat16", quant_algo="W8A16"),
            "int8",
            r"gemm \('int8'\) is not available for models with experts",
        ),
    ],
)
def test_refused(manifest: CheckpointManifest, gemm: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}$"):
        _storage(manifest, gemm)
