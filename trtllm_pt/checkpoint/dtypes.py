"""PyTorch's dtypes by the names that checkpoints use."""

from __future__ import annotations

import torch

from trtllm_pt.checkpoint.manifest import DTYPES

TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}
