"""Parallel Track and the other schedules as a plugin of vLLM. vLLM calls `register` in each of its processes."""

from __future__ import annotations

TESTED = ("0.32", "0.33")  # docs/vllm.md says how


def register() -> None:
    """Tell transformers and vLLM of our models.

    With another release of vLLM than the tested ones, our models are refused in one line, and others are served.
    """
    import vllm
    from transformers import AutoConfig

    from trtllm_pt.model.config import HF_KEYS
    from trtllm_pt.vllm_plugin.config import ParallelTrackConfig, refusing

    tested = vllm.__version__.startswith(tuple(f"{release}." for release in TESTED))
    message = f"vLLM {vllm.__version__} is not supported for models of trtllm_pt; tested releases: {', '.join(TESTED)}"
    config = ParallelTrackConfig if tested else refusing(message)
    AutoConfig.register(HF_KEYS["model_type"], config, exist_ok=True)
    if tested:
        _register_model()


def _register_model() -> None:
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from trtllm_pt.model.config import HF_KEYS
    from trtllm_pt.vllm_plugin.checks import Checks

    for architecture in HF_KEYS["architectures"]:
        # By its name, so that processes without a model do not import the network.
        ModelRegistry.register_model(architecture, "trtllm_pt.vllm_plugin.model:ParallelTrackForCausalLM")
        MODELS_CONFIG_MAP[architecture] = Checks
