"""The backend class of TensorRT engines, which TensorRT-LLM builds and runs. It imports NVIDIA's packages on demand."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trtllm_pt.backends.backend import REBUILD, Backend, BuildReport, RankRuntime
from trtllm_pt.backends.checks import Check
from trtllm_pt.backends.manifest import BuildOptions, EngineManifest
from trtllm_pt.backends.tensorrt_llm.checks import CHECKS
from trtllm_pt.backends.tensorrt_llm.trtllm_build import OPTIONS
from trtllm_pt.errors import INSTALL_TENSORRT_LLM, MPI_OF_TENSORRT_LLM, TENSORRT_LLM_VERSION, UsageError
from trtllm_pt.requests.messages import SamplingParams

_PACKAGE = "TensorRT-LLM"
# Inputs that NVIDIA's Triton backend misreads, counts differently, or ignores for such an engine. 1.2.x passes the
# first three by position, one place too early: num_return_sequences would forbid tokens that occurred before
# (NVIDIA/TensorRT-LLM#13633 repairs this in later versions). And it cannot be told that the presence and frequency
# penalties do not count the tokens of the prompt.
_OMITTED = """
    num_return_sequences len_penalty early_stopping
    presence_penalty frequency_penalty
    beam_search_diversity_rate lora_task_id lora_weights lora_config
    prompt_embedding_table prompt_table_extra_ids prompt_vocab_size
    encoder_input_features encoder_output_lengths decoder_input_ids decoder_input_lengths
    cross_attention_mask skip_cross_attn_blocks mrope_rotary_cos_sin mrope_position_deltas
    draft_input_ids draft_logits draft_acceptance_threshold
    lookahead_window_size lookahead_ngram_size lookahead_verification_set_size
    guided_decoding_guide_type guided_decoding_guide
"""


class TensorRTLLMBackend(Backend):
    """A TensorRT engine per rank, built by TensorRT-LLM's builder and run by its executor."""

    name = "tensorrt_llm"
    title = "a TensorRT engine"
    preference = 10
    options = OPTIONS
    builds_on_hosts = True
    mpi_hint = MPI_OF_TENSORRT_LLM
    start_seconds, stop_seconds = 900.0, 60.0  # loading and freeing many gigabytes on a GPU takes long
    triton_backend = "tensorrtllm"
    triton_omits = frozenset(_OMITTED.split())
    report_name = "TRT"  # the name in trtllm-bench

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("tensorrt_llm") is None:
            return "TensorRT-LLM is not installed"
        return None if self._gpus() else "TensorRT-LLM is installed, but no GPU is visible"

    def available(self) -> str:
        gpus = self._gpus()
        return f"TensorRT-LLM is installed, and {gpus} GPU{'s are' if gpus > 1 else ' is'} visible"

    def _gpus(self) -> int:
        import torch

        return torch.cuda.device_count()

    def checks(self) -> Sequence[Check]:
        return CHECKS

    def build(self, checkpoint: Path, output: Path, options: BuildOptions, progress: bool | None = None) -> BuildReport:
        from trtllm_pt.backends.tensorrt_llm.build import build

        return build(self, checkpoint, output, options, progress)

    def recognises(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Return whether this is a directory that plain trtllm-build has written."""
        return (folder / "rank0.engine").exists()

    def read(self, folder: Path, config: Mapping[str, Any], found: EngineManifest) -> EngineManifest:
        """Return the manifest with the limits that TensorRT-LLM really applies.

        TensorRT-LLM ignores max_input_len when prompts are packed and their attention is fused. It cannot compute a
        prompt in several steps if the layers have different windows, because the chunks would be too small for windowed
        kernels (trtGptModelInflightBatching.cpp names this as work to do).

        Reuse of KV blocks is safe in 1.2.1, and not in other versions that can be installed: there, a prompt that is
        cancelled between two chunks leaves blocks that were never computed (NVIDIA/TensorRT-LLM#12673, which #12770
        brought to 1.2.1). It is not safe where windows differ: each window finds a reusable beginning of its own, and
        1.2.1 skips the one that it finds last instead of the shortest (#10875 is not in 1.2.1).
        """
        plugins = config["build_config"].get("plugin_config") or {}
        paged = bool(plugins.get("use_paged_context_fmha"))
        versions = found.versions or {_PACKAGE: str(config.get("version", "?"))}
        reuses = paged and not found.windows_differ and versions.get(_PACKAGE) == TENSORRT_LLM_VERSION
        found = replace(found, versions=versions, reuses_pages=reuses, chunks_prompts=paged and found.windows is None)
        if not (plugins.get("remove_input_padding") and plugins.get("context_fmha")):
            return found
        capacity = found.options
        step = capacity.max_seq_len if found.chunks_prompts else capacity.max_num_tokens
        return replace(found, options=replace(capacity, max_input_len=min(capacity.max_seq_len - 1, step)))

    def check_versions(self, folder: Path, manifest: EngineManifest) -> None:
        """Raise UsageError unless the installed TensorRT-LLM is the version that built the engine.

        Plain trtllm-build writes this version at the top of config.json.
        """
        try:
            here = version("tensorrt_llm")
        except PackageNotFoundError:
            raise UsageError(f"{folder} holds TensorRT engines: {INSTALL_TENSORRT_LLM}") from None
        if manifest.format not in (None, self.format):  # plain trtllm-build writes no format number
            raise self.other_format(folder, manifest)
        if (built := manifest.versions.get(_PACKAGE)) != here:
            raise UsageError(
                f"{folder} was built with TensorRT-LLM {built}, but {here} is installed: {REBUILD}, "
                f"or {INSTALL_TENSORRT_LLM}"
            )

    def open_rank(
        self, folder: Path, manifest: EngineManifest, *, threads: int | None, kv_tokens: int | None, draft_tokens: int
    ) -> RankRuntime | None:
        from trtllm_pt.backends.tensorrt_llm.runtime import open_rank

        return open_rank(folder, manifest, threads=threads, kv_tokens=kv_tokens)

    def triton_problems(self, sampling: SamplingParams) -> Iterator[str]:
        # Logits come from the backend in C++, which only our own runtime has no way to ask.
        yield from super().triton_problems(replace(sampling, context_logits=False, generation_logits=False))

    def problems(self, sampling: SamplingParams) -> Iterator[str]:
        from trtllm_pt.backends.tensorrt_llm.terms import problems

        return (f"{problem}, on a TensorRT engine" for problem in problems(sampling))

    def triton_parameters(self, manifest: EngineManifest) -> Mapping[str, str]:
        """Ask for log-probs over the whole vocabulary, and not over the tokens that top_k and top_p keep."""
        return {"normalize_log_probs": "false"}


BACKEND = TensorRTLLMBackend()
