"""Parallel Track and the other schedules as a plugin of vLLM. vLLM calls `register` in each of its processes."""

from __future__ import annotations

TESTED = ("0.32.0", "0.33.0")  # the releases of vLLM that docs/vllm.md says how each was checked


def register() -> None:
    """Tell transformers and vLLM of our models. Nothing heavy is imported before vLLM opens one of them."""
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from trtllm_pt.model.config import HF_KEYS
    from trtllm_pt.vllm_plugin.checks import Checks
    from trtllm_pt.vllm_plugin.config import ParallelTrackConfig

    AutoConfig.register(HF_KEYS["model_type"], ParallelTrackConfig, exist_ok=True)
    for architecture in HF_KEYS["architectures"]:
        ModelRegistry.register_model(architecture, "trtllm_pt.vllm_plugin.model:ParallelTrackForCausalLM")
        MODELS_CONFIG_MAP[architecture] = Checks
