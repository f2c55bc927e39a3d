"""What is checked when vLLM starts, before it starts ranks or reads weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.model_executor.models.config import VerifyAndUpdateConfig

from trtllm_pt.model.layout import rank_layout

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class Checks(VerifyAndUpdateConfig):
    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Raise UsageError for a model or an option of vLLM that we cannot serve."""
        model = vllm_config.model_config.hf_config.model
        rank_layout(model, vllm_config.parallel_config.tensor_parallel_size)
