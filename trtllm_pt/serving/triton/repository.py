"""Writes the model repository that Triton reads: a folder per model with its config.pbtxt and, for ours, a model.py."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_pt.backends.manifest import EngineManifest
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import new_folder
from trtllm_pt.serving.triton import tensors
from trtllm_pt.serving.triton.config_pbtxt import config_text

DEFAULT_QUEUE = 1024  # requests
# The parameters of each model and, in braces, the names by which TensorRT-LLM's tools fill them in. A parameter for
# which `_values` has no value stays in braces: the server uses its default, and TensorRT-LLM's fill_template.py can
# fill it.
_PARAMETERS = {
    "preprocessing": {
        "tokenizer_dir": "${tokenizer_dir}",
        "add_special_tokens": "${add_special_tokens}",
        "multimodal_model_path": "${multimodal_model_path}",
        "gpt_model_path": "${engine_dir}",
        "max_num_images": "${max_num_images}",
    },
    "postprocessing": {
        "tokenizer_dir": "${tokenizer_dir}",
        "skip_special_tokens": "${skip_special_tokens}",
    },
    tensors.BLS: {
        "accumulate_tokens": "${accumulate_tokens}",
        "tensorrt_llm_model_name": "${tensorrt_llm_model_name}",
        "tensorrt_llm_draft_model_name": "${tensorrt_llm_draft_model_name}",
        "multimodal_encoders_name": "${multimodal_encoders_name}",
    },
    tensors.ENGINE: {
        "max_beam_width": "${max_beam_width}",
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_type": "${batching_strategy}",
        "gpt_model_path": "${engine_dir}",
        "encoder_model_path": "${encoder_engine_dir}",
        **{
            name: f"${{{name}}}"
            for name in """
                max_tokens_in_paged_kv_cache max_attention_window_size sink_token_length batch_scheduler_policy
                kv_cache_free_gpu_mem_fraction cross_kv_cache_fraction kv_cache_host_memory_bytes
                kv_cache_onboard_blocks enable_trt_overlap exclude_input_in_output cancellation_check_period_ms
                stats_check_period_ms iter_stats_max_iterations request_stats_max_iterations enable_kv_cache_reuse
                normalize_log_probs enable_chunked_context gpu_device_ids participant_ids num_nodes
                lora_cache_optimal_adapter_size lora_cache_max_adapter_size lora_cache_gpu_memory_fraction
                lora_cache_host_memory_bytes lora_prefetch_dir decoding_mode lookahead_window_size
                lookahead_ngram_size lookahead_verification_set_size medusa_choices eagle_choices
                gpu_weights_percent enable_context_fmha_fp32_acc multi_block_mode cuda_graph_mode
                cuda_graph_cache_size speculative_decoding_fast_logits tokenizer_dir guided_decoding_backend
                xgrammar_tokenizer_info_path
            """.split()
        },
        "executor_worker_path": "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
    },
}
_CODE = '''"""Made by `trtllm-pt repo`."""

from trtllm_pt.serving.triton.models.{module} import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The facts about an engine directory that its repository contains."""

    manifest: EngineManifest
    engine_path: str  # the path of the engine directory; a relative path starts at a model's folder
    max_queue_size: int
    speculative: str | None

    @property
    def in_python(self) -> bool:
        """Whether our Python model runs the engine. Otherwise a Triton backend in C++ does."""
        return self.manifest.backend.triton_backend == "python"

    @property
    def omitted(self) -> Collection[str]:
        """The inputs that `tensorrt_llm` does not have."""
        return self.manifest.backend.triton_omits

    @property
    def max_batch_size(self) -> int:
        return self.manifest.options.max_batch_size


def write_repository(
    engines: Path,
    output: Path,
    *,
    engine_path: str | None = None,
    max_queue_size: int = DEFAULT_QUEUE,
    speculative: str | None = None,
) -> Served:
    """Write the model repository of an engine directory.

    engine_path: the path of the engines on the machine that serves them; a relative path starts at a model's folder.
    None: their present path, which is written as a relative path if our Python model runs the engine, so that the
    repository and the engines can move together. max_queue_size: the number of requests that can wait for a slot;
    further requests are refused. speculative: as for LLM. Raises UsageError if `engines` is not an engine directory, or
    if `output` exists.
    """
    manifest = read_engine(engines)
    if engine_path is None:
        engine_path = str(engines.resolve())
        if manifest.backend.triton_backend == "python":
            engine_path = os.path.relpath(engine_path, output.resolve() / tensors.ENGINE)
    elif manifest.backend.triton_backend != "python" and not Path(engine_path).is_absolute():
        raise UsageError(f"engine_path ({engine_path!r}) must be absolute for {manifest.backend.title}")
    manifest.backend.draft_tokens(speculative)  # raises UsageError
    served = Served(manifest=manifest, engine_path=engine_path, max_queue_size=max_queue_size, speculative=speculative)
    with new_folder(output) as folder:
        for model in tensors.MODELS:
            _write_model(folder / model, model, served)
    return served


def _write_model(folder: Path, model: str, served: Served) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config_text(_config(model, served)))
    module = _module(model, served)
    if module is None:
        (folder / "1" / ".gitkeep").touch()  # Triton requires the folder, and git does not keep an empty one
    else:
        (folder / "1" / "model.py").write_text(_CODE.format(module=module))


def _module(model: str, served: Served) -> str | None:
    """Return the module of a Python model, or None if Triton itself or a C++ backend runs the model."""
    if model == tensors.ENGINE:
        return "engine" if served.in_python else None
    return None if model == "ensemble" else model.removeprefix(f"{tensors.ENGINE}_")


def _config(model: str, served: Served) -> Mapping[str, Any]:
    """Return the fields of one model's config.pbtxt."""
    config: dict[str, Any] = {
        "name": model,
        "max_batch_size": served.max_batch_size,
        "input": [_tensor(t) for t in tensors.inputs(model, served.omitted)],
        "output": [_tensor(t) for t in tensors.outputs(model, in_python=served.in_python)],
        **_scheduling(model, served),
    }
    if model == "ensemble":
        return {**config, "platform": "ensemble", "ensemble_scheduling": {"step": _steps(served.omitted)}}
    backend = served.manifest.backend.triton_backend if model == tensors.ENGINE else "python"
    instances = [{"count": 1, "kind": "KIND_CPU"}]
    return {**config, "backend": backend, "instance_group": instances, "parameters": _parameters(model, served)}


def _tensor(t: tensors.Tensor) -> Mapping[str, Any]:
    fields: dict[str, Any] = {"name": t.name, "data_type": f"TYPE_{t.type}", "dims": list(t.dims)}
    if t.scalar:
        fields["reshape"] = {"shape": []}
    if t.optional:
        fields["optional"] = True
    if t.ragged:
        fields["allow_ragged_batch"] = True
    return fields


def _scheduling(model: str, served: Served) -> Mapping[str, Any]:
    decoupled: Mapping[str, Any] = {"model_transaction_policy": {"decoupled": True}}
    queue: Mapping[str, Any] = {
        "dynamic_batching": {
            "preferred_batch_size": [served.max_batch_size],
            "max_queue_delay_microseconds": 0,
            "default_queue_policy": {"max_queue_size": served.max_queue_size},
        }
    }
    each: dict[str, Mapping[str, Any]] = {
        "preprocessing": queue,
        tensors.ENGINE: {**queue, **decoupled},
        "postprocessing": {"dynamic_batching": {}},
        "ensemble": {},
        tensors.BLS: decoupled,
    }
    return each[model]


def _steps(omitted: Collection[str]) -> Sequence[Mapping[str, Any]]:
    """Return the steps of the ensemble. Tensors between steps have names with `_`; the others are its own.

    omitted: the inputs that `tensorrt_llm` does not have.
    """
    to_engine = {name: f"_{key}" for key, name in tensors.FROM_PREPROCESSING.items() if name not in omitted}
    to_engine |= {"end_id": "_PREPROCESSOR_END_ID", "pad_id": "_PREPROCESSOR_PAD_ID"}
    outputs = {"output_ids": "_TOKENS_BATCH", "sequence_length": "_SEQUENCE_LENGTH"}
    return [
        _step(
            "preprocessing",
            {name: own for own, name in tensors.TO_PREPROCESSING.items()},
            {key: to_engine[name] for key, name in tensors.FROM_PREPROCESSING.items() if name in to_engine},
        ),
        _step(
            tensors.ENGINE,
            {**to_engine, **{name: own for own, name in tensors.PASSED_ON.items() if name not in omitted}},
            {**outputs, **{name: name for name in tensors.RESULTS}},
        ),
        _step(
            "postprocessing",
            {"TOKENS_BATCH": "_TOKENS_BATCH", "SEQUENCE_LENGTH": "_SEQUENCE_LENGTH"},
            {"OUTPUT": "text_output"},
        ),
    ]


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> Mapping[str, Any]:
    return {"model_name": model, "model_version": -1, "input_map": inputs, "output_map": outputs}


def _parameters(model: str, served: Served) -> Mapping[str, Any]:
    filled = _values(served)
    parameters = _PARAMETERS[model]
    if model == tensors.ENGINE and served.speculative is not None:
        parameters = {**parameters, "speculative": served.speculative}
    return {
        key: {"string_value": filled.get(value.removeprefix("${").removesuffix("}"), value)}
        for key, value in parameters.items()
    }


def _values(served: Served) -> Mapping[str, str]:
    """Return the values of the parameters that `repo` fills in, by the names that stand in braces in _PARAMETERS."""
    manifest = served.manifest
    return {
        "engine_dir": served.engine_path,
        "tokenizer_dir": f"{served.engine_path}/tokenizer",
        "add_special_tokens": "true",
        "skip_special_tokens": "true",
        "accumulate_tokens": "true",
        "tensorrt_llm_model_name": tensors.ENGINE,
        "max_beam_width": "1",
        "batching_strategy": "inflight_fused_batching",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "exclude_input_in_output": "true",
        "enable_kv_cache_reuse": _bool(manifest.reuses_pages),
        "enable_chunked_context": _bool(manifest.chunks_prompts),
        **({"max_attention_window_size": ",".join(map(str, manifest.windows))} if manifest.windows else {}),
        **manifest.backend.triton_parameters(manifest),
    }


def _bool(value: bool) -> str:
    return "true" if value else "false"
