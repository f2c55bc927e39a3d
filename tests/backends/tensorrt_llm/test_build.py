"""TensorRT engines: what is refused before TensorRT-LLM is needed, the folder that a build leaves, what is read of it.

With TRTLLM_CHECKOUT set, builds run through TensorRT-LLM's own Python, up to the network that TensorRT would compile.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import configs
from trtllm_pt.backends import BuildOptions, build, choose, inspect
from trtllm_pt.backends.manifest import Capacity
from trtllm_pt.backends.registry import read_engine
from trtllm_pt.backends.tensorrt_llm import shim
from trtllm_pt.backends.tensorrt_llm.build_rank import check_messages
from trtllm_pt.backends.tensorrt_llm.options import KNOWN, build_fields, check, plugin_fields
from trtllm_pt.backends.tensorrt_llm.trtllm_build import OPTIONS
from trtllm_pt.checkpoint.init import init
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import INSTALL_TENSORRT_LLM, MPI_OF_TENSORRT_LLM, RunError, UsageError
from trtllm_pt.job.launchers import LAUNCHERS
from trtllm_pt.job.mpirun import find_mpirun
from trtllm_pt.model.presets import preset
from trtllm_pt.model.quantization import PER_CHANNEL, QUANT_ALGOS

ROOT = Path(__file__).parents[3]
CHECKOUT = os.environ.get("TRTLLM_CHECKOUT")
needs_checkout = pytest.mark.skipif(not CHECKOUT, reason="TRTLLM_CHECKOUT does not name TensorRT-LLM's sources")
SMALL = configs.SMALL.replace(head_size=32)  # the least that TensorRT-LLM's attention has kernels for
DENSE = SMALL.replace(schedule="tp", tracks=1, block_depth=None)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 tracks on 2 ranks, 5 layers in blocks of 2: three boundaries."""
    folder = init(SMALL, tmp_path_factory.mktemp("tensorrt") / "checkpoint", ranks=2, dtype="bfloat16")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "generation_config.json").write_text("{}")
    return folder


def tensorrt_llm(**values: Any) -> BuildOptions:
    return BuildOptions(extra=values)


# --- before TensorRT-LLM is needed


def test_without_tensorrt_llm_there_is_one_clear_error(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(UsageError, match=re.escape(INSTALL_TENSORRT_LLM)):
        build(checkpoint, output, "tensorrt_llm")
    assert not list(tmp_path.iterdir())
    for part in ("tensorrt-llm==1.2.1", "TensorRT 10.14", "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"):
        assert part in INSTALL_TENSORRT_LLM


REFUSED = [
    ("max_beam_width", 4, "beam search"),
    ("max_encoder_input_len", 8, "no encoder"),
    ("max_prompt_embedding_table_size", 8, "prompt embeddings"),
    ("kv_cache_type", "continuous", "paged KV cache"),
    ("paged_kv_cache", "disable", "paged KV cache"),
    ("remove_input_padding", "disable", "packs its tokens"),
    ("gpt_attention_plugin", "disable", "the network has it, in bfloat16"),
    ("moe_plugin", "float16", "the network has it, in bfloat16"),
    ("gemm_plugin", "float16", "the network has it, in bfloat16"),
    ("strip_plan", True, "trtllm-refit"),
    ("fast_build", True, "untested"),
    ("lora_plugin", "auto", "adapters"),
    ("lora_dir", "x", "adapters"),
    ("speculative_decoding_mode", "medusa", "draft tokens"),
    ("max_draft_len", 3, "draft tokens"),
    ("reduce_fusion", "enable", "fuses all-reduces"),
    ("user_buffer", "enable", "fuses all-reduces"),
    ("gemm_allreduce_plugin", "bfloat16", "fuses all-reduces"),
    ("pp_reduce_scatter", "enable", "no pipeline"),
    ("streamingllm", "enable", "no longer"),
    ("build_config", "x.json", "by name"),
    ("model_config", "x.json", "trtllm-pt init"),
    ("model_cls_file", "x.py", "brings its own"),
    ("all_reduce_strategy", "UB", "must be one of NCCL, AUTO, ONESHOT, TWOSHOT"),
    ("workers", -1, "at least 1"),
    ("gpus_per_node", 0, "at least 1"),
    # What TensorRT-LLM would accept and ignore
    ("gemm_plugin", "fp8", "no effect: .* in FP8"),
    ("low_latency_gemm_plugin", "fp8", "no effect: .* in FP8"),
    ("fp8_rowwise_gemm_plugin", "auto", "per token and row"),
    ("use_fp8_context_fmha", "enable", "no effect: .* FP8 KV cache"),
    ("bert_attention_plugin", "bfloat16", "no attention of an encoder"),
    ("mamba_conv1d_plugin", "bfloat16", "no convolutions"),
    ("enable_debug_output", True, "marks no tensors"),
    ("tokens_per_block", "48", "a power of two"),
    ("tokens_per_block", "many", "a power of two"),
    ("tokens_per_block", 1, "a power of two"),
    ("input_timing_cache", "nowhere.cache", "does not exist"),
]


@pytest.mark.parametrize(("name", "value", "why"), REFUSED, ids=[f"{name} {value}" for name, value, _ in REFUSED])
def test_options_that_cannot_be_honoured(checkpoint: Path, tmp_path: Path, name: str, value: Any, why: str) -> None:
    with pytest.raises(UsageError, match=rf"^--{name} \({value}\).*{why}"):
        build(checkpoint, tmp_path / "out", "tensorrt_llm", tensorrt_llm(**{name: value}))


@pytest.mark.parametrize(
    "values",
    [
        {"max_beam_width": 1, "kv_cache_type": "paged", "remove_input_padding": "enable", "max_draft_len": 0},
        {"lora_plugin": "disable", "reduce_fusion": "disable", "moe_plugin": "auto", "gpt_attention_plugin": "auto"},
        {"gemm_plugin": "auto", "tokens_per_block": "64", "multiple_profiles": "enable", "use_fused_mlp": "disable"},
        {"all_reduce_strategy": "twoshot", "workers": 8, "log_level": "info", "logits_dtype": "float16"},
        {"weight_streaming": True, "gemm_plugin": "disable", "use_fp8_context_fmha": "disable"},
        {"bert_attention_plugin": "auto", "mamba_conv1d_plugin": "disable", "fp8_rowwise_gemm_plugin": "disable"},
    ],
)
def test_options_that_are_honoured(checkpoint: Path, values: dict[str, Any]) -> None:
    check(tensorrt_llm(**values), CheckpointManifest.from_dir(checkpoint))


FP8, FP8_CACHE = {"quant_algo": "FP8"}, {"kv_cache_quant_algo": "FP8"}
FP8_ATTENTION = {"use_fp8_context_fmha": "enable"}
NO_FP8_ATTENTION = {"use_fp8_context_fmha": "disable"}


@pytest.mark.parametrize(
    ("algos", "values", "ignored"),
    [
        (FP8, {"gemm_plugin": "fp8"}, None),
        (FP8, {"low_latency_gemm_plugin": "fp8"}, None),
        ({"quant_algo": "W8A16"}, {"gemm_plugin": "fp8"}, "gemm_plugin"),
        (FP8 | FP8_CACHE, FP8_ATTENTION, None),
        (FP8, FP8_ATTENTION, "use_fp8_context_fmha"),
        (FP8_CACHE, FP8_ATTENTION, "use_fp8_context_fmha"),
        (FP8 | FP8_CACHE, NO_FP8_ATTENTION, "use_fp8_context_fmha"),
        (FP8 | FP8_CACHE, NO_FP8_ATTENTION | {"use_paged_context_fmha": "disable"}, None),
        (FP8, NO_FP8_ATTENTION, None),
        (FP8_CACHE, {"use_paged_context_fmha": "enable"}, "use_paged_context_fmha"),
        (FP8 | FP8_CACHE, {"use_paged_context_fmha": "enable"}, None),
        ({}, {"use_paged_context_fmha": "enable"}, None),
        ({}, {"weight_streaming": True}, None),
        ({}, {"weight_streaming": True, "gemm_plugin": "auto"}, "weight_streaming"),
        (FP8, {"weight_streaming": True, "low_latency_gemm_plugin": "fp8"}, "weight_streaming"),
        ({"quant_algo": "W4A16"}, {"weight_streaming": True}, "weight_streaming"),
        ({}, {"multiple_profiles": "enable", "opt_num_tokens": 8}, "opt_num_tokens"),
    ],
    ids=str,
)
def test_an_option_that_would_be_ignored_is_refused(
    algos: dict[str, str], values: dict[str, Any], ignored: str | None
) -> None:
    """As TensorRT-LLM's builder decides it, by the checkpoint's quantisation and the other options."""
    wide = SMALL.replace(hidden_size=64, num_heads=4, num_kv_heads=4, intermediate_size=64)
    manifest = CheckpointManifest(model=wide, ranks=2, dtype="bfloat16", **algos)
    refused = pytest.raises(UsageError, match=rf"^--{ignored} \(.*\) would have no effect: ")
    with contextlib.nullcontext() if ignored is None else refused:
        check(tensorrt_llm(**values), manifest)


def test_every_option_of_trtllm_build_is_known_and_no_other(checkpoint: Path) -> None:
    assert {option.name for option in OPTIONS} == KNOWN
    with pytest.raises(UsageError, match=r"unknown key 'gem_plugin' in .* trtllm-build; did you mean 'gemm_plugin'\?"):
        check(tensorrt_llm(gem_plugin="auto"), CheckpointManifest.from_dir(checkpoint))


def test_sizes_and_ranks_that_do_not_fit() -> None:
    manifest = CheckpointManifest(model=SMALL.replace(tracks=3), ranks=3, dtype="bfloat16")
    with pytest.raises(UsageError, match=r"\(ONESHOT\) has kernels for 2, 4, 6, 8, 16 ranks, not 3"):
        check(tensorrt_llm(all_reduce_strategy="ONESHOT"), manifest)
    with pytest.raises(UsageError, match=r"max_seq_len \(129\) must be between 2 and max_position_embeddings \(128\)"):
        check(BuildOptions(max_seq_len=129), manifest)


@pytest.mark.parametrize(
    ("stored", "given", "fits"), [(8, None, False), (16, None, True), (8, 16, True), (16, 4, False)], ids=str
)
def test_own_all_reduces_stay_within_one_machine(stored: int, given: int | None, fits: bool) -> None:
    model = SMALL.replace(tracks=16, block_depth=5)
    manifest = CheckpointManifest(model=model, ranks=16, dtype="bfloat16", gpus_per_node=stored)
    values = {"all_reduce_strategy": "ONESHOT"} | ({} if given is None else {"gpus_per_node": given})
    message = rf"\(ONESHOT\) works within one machine, .* {given or stored} GPUs \(gpus_per_node\)"
    with contextlib.nullcontext() if fits else pytest.raises(UsageError, match=message):
        check(tensorrt_llm(**values), manifest)
    check(tensorrt_llm(**values | {"all_reduce_strategy": "AUTO"}), manifest)


def test_what_no_gpu_has_kernels_for() -> None:
    manifest = CheckpointManifest(model=SMALL.replace(head_size=16), ranks=2, dtype="bfloat16")
    with pytest.raises(UsageError, match=r"head_size \(16\) must be one of 32, 48, .*, 256"):
        check(BuildOptions(), manifest)
    wide = SMALL.replace(hidden_size=64, num_heads=4, num_kv_heads=4, intermediate_size=64)
    for dtype, fits in (("float32", False), ("bfloat16", True)):
        manifest = CheckpointManifest(model=wide, ranks=2, dtype=dtype, quant_algo="W8A16")
        with contextlib.nullcontext() if fits else pytest.raises(UsageError, match=r"dtype \(float32\) must be"):
            check(BuildOptions(), manifest)


@pytest.mark.parametrize("algo", QUANT_ALGOS)
def test_weights_with_a_scale_per_group_are_refused(algo: str) -> None:
    model = SMALL.replace(hidden_size=128, head_size=128, intermediate_size=512)
    manifest = CheckpointManifest(model=model, ranks=2, dtype="bfloat16", quant_algo=algo)
    message = rf"^quant_algo \('{algo}'\) must be W8A16 or W4A16 for the TensorRT-LLM engine, .* --engine embedded$"
    with contextlib.nullcontext() if algo in (*PER_CHANNEL, "FP8") else pytest.raises(UsageError, match=message):
        check(BuildOptions(), manifest)


def test_an_int8_embedding_is_refused() -> None:
    model = SMALL.replace(hidden_size=64, head_size=64)
    manifest = CheckpointManifest(model=model, ranks=2, dtype="bfloat16", embedding_quant_algo="W8A16")
    with pytest.raises(UsageError, match=r"^embedding_quant_algo \('W8A16'\) must be null for the TensorRT-LLM engine"):
        check(BuildOptions(), manifest)


def test_an_int8_cache_with_our_scales_is_refused() -> None:
    manifest = CheckpointManifest(model=SMALL, ranks=2, dtype="bfloat16", kv_cache_quant_algo="INT8")
    with pytest.raises(UsageError, match=r"^kv_cache_quant_algo \('INT8'\) must be null or FP8 for the TensorRT-LLM"):
        check(BuildOptions(), manifest)


def test_only_what_is_given_is_handed_on(checkpoint: Path) -> None:
    manifest = CheckpointManifest.from_dir(checkpoint)
    options = tensorrt_llm(gemm_plugin="auto", max_beam_width=1, opt_num_tokens=8, gather_all_token_logits=True)
    assert plugin_fields(options) == {"gemm_plugin": "auto"}
    sizes = {"max_batch_size": 2048, "max_num_tokens": 8192, "max_seq_len": 128, "max_input_len": 127}
    gathers = {"gather_context_logits": True, "gather_generation_logits": True}
    assert build_fields(options, manifest) == sizes | gathers | {"opt_num_tokens": 8}


def _drop(weights: dict[str, torch.Tensor]) -> None:
    del weights["transformer.ln_f.weight"]


def _reshape(weights: dict[str, torch.Tensor]) -> None:
    weights["transformer.ln_f.weight"] = torch.zeros(3, dtype=torch.bfloat16)


def _retype(weights: dict[str, torch.Tensor]) -> None:
    weights["transformer.ln_f.weight"] = weights["transformer.ln_f.weight"].float()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop, "transformer.ln_f.weight"),
        (_reshape, r"transformer.ln_f.weight is BF16 \[3\], expected torch.bfloat16 \[48\]"),
        (_retype, r"transformer.ln_f.weight is F32 \[48\], expected torch.bfloat16 \[48\]"),
    ],
)
def test_a_damaged_checkpoint_is_refused_first(
    checkpoint: Path, tmp_path: Path, damage: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in checkpoint.glob("*.*"):
        (damaged / path.name).write_bytes(path.read_bytes())
    weights = load_file(damaged / "rank1.safetensors")
    damage(weights)
    save_file(weights, damaged / "rank1.safetensors")
    with pytest.raises(UsageError, match=rf"rank1.safetensors does not fit .*{message}"):
        build(damaged, tmp_path / "out", "tensorrt_llm")


def test_auto_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(engine: str) -> tuple[str, str]:
        backend, why = choose(engine)
        return backend.name, why or ""

    name, why = chosen("auto")
    assert name == "embedded" and "TensorRT-LLM is not installed" in why
    (tmp_path / "tensorrt_llm").mkdir()
    (tmp_path / "tensorrt_llm" / "__init__.py").write_text("raise ImportError('asking must not import it')")
    monkeypatch.syspath_prepend(tmp_path)
    name, why = chosen("auto")
    assert name == "embedded" and "no GPU is visible" in why
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    name, why = chosen("auto")
    assert name == "tensorrt_llm" and "2 GPUs" in why
    assert chosen("embedded") == ("embedded", "")


# --- while building


@pytest.mark.parametrize(
    "recorded",
    [
        {"AllReduce": 2, "AllGather": 1},
        {"AllReduce": 4, "AllGather": 1},
        {"AllReduce": 3},
        {"AllReduce": 3, "AllGather": 1, "ReduceScatter": 1},
        {},
    ],
)
def test_a_network_with_other_messages_is_not_compiled(recorded: dict[str, int]) -> None:
    manifest = CheckpointManifest(model=SMALL, ranks=2, dtype="bfloat16")
    with pytest.raises(RunError, match=r"network of rank 1 sends .*, but its schedule has 3 AllReduce, 1 AllGather"):
        check_messages(recorded, manifest, 1)


def test_a_network_with_the_schedules_messages_is() -> None:
    model = {"AllReduce": 3, "AllGather": 1, "GPTAttention": 5, "Gemm": 30}
    check_messages(model, CheckpointManifest(model=SMALL, ranks=2, dtype="bfloat16"), 0)
    check_messages({"GPTAttention": 5}, CheckpointManifest(model=SMALL, ranks=1, dtype="bfloat16"), 0)
    dense = CheckpointManifest(model=DENSE, ranks=2, dtype="bfloat16")
    check_messages({"AllReduce": 10, "AllGather": 1}, dense, 1)


# Four ranks by two processes. What TensorRT-LLM would do to a rank is a file with its name.
TOGETHER = """
import json, os, sys
from pathlib import Path
from trtllm_pt.backends.tensorrt_llm import build as tensorrt_llm
from trtllm_pt.backends.tensorrt_llm.backend import BACKEND
from trtllm_pt.backends.manifest import BuildOptions
from trtllm_pt.backends.tensorrt_llm.build_rank import BuiltRank
from trtllm_pt.errors import RunError, TrtllmPtError

checkpoint, output, broken = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def build_ranks(job, report):
    for rank in job.ranks:
        if rank == broken:
            raise RunError(f"rank {rank} is broken")
        (job.folder / f"rank{rank}.engine").write_text(f"by device {job.device}")
        if rank == 0:
            config = {"version": "1.2.1", "build_config": {"output_timing_cache": "/a/model.cache"}}
            (job.folder / "config.json").write_text(json.dumps(config))
        report(BuiltRank(rank=rank, seconds=1.0, bytes=8, plugins={"AllReduce": 3}))

tensorrt_llm.build_ranks = build_ranks
tensorrt_llm._check_machine = lambda manifest: "1.2.1"
tensorrt_llm.torch.cuda.device_count = lambda: 2
try:
    report = tensorrt_llm.build(BACKEND, checkpoint, output, BuildOptions())
except TrtllmPtError as error:
    said = f"refused: {error}"
else:
    said = f"whole: {sorted(path.name for path in output.iterdir())}"
os.write(1, f"{said}\\n".encode())  # in one piece, or two processes' words may come mixed
"""


@pytest.fixture
def four_ranks(tmp_path: Path) -> Path:
    return init(SMALL, tmp_path / "four", ranks=4, dtype="bfloat16")


def together(processes: int, *arguments: object) -> list[str]:
    launcher = [find_mpirun(MPI_OF_TENSORRT_LLM), "-n", str(processes)] if processes > 1 else []
    command = [*launcher, sys.executable, "-c", TOGETHER, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_ranks_and_one_folder(four_ranks: Path, tmp_path: Path, processes: int) -> None:
    output = tmp_path / "engines"
    said = together(processes, four_ranks, output, -1)
    files = ["config.json", *(f"rank{rank}.engine" for rank in range(4))]
    assert said == [f"whole: {files}"] * processes
    devices = [(output / f"rank{rank}.engine").read_text() for rank in range(4)]
    assert devices == [f"by device {rank % processes % 2}" for rank in range(4)]
    config = json.loads((output / "config.json").read_text())
    assert config == {
        "version": "1.2.1",
        "build_config": {"output_timing_cache": "model.cache"},
        "recorded_plugins": {"AllReduce": 3},
        "engine": {"backend": "tensorrt_llm", "format": 1, "versions": {"TensorRT-LLM": "1.2.1"}},
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_a_rank_that_fails_leaves_nothing_and_all_know(four_ranks: Path, tmp_path: Path, processes: int) -> None:
    assert together(processes, four_ranks, tmp_path / "engines", 3) == ["refused: rank 3 is broken"] * processes
    assert sorted(tmp_path.iterdir()) == [four_ranks]


def test_a_folder_that_cannot_be_made_is_known_to_all(four_ranks: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = together(2, four_ranks, tmp_path / "file" / "engines", -1)
    assert len(said) == 2 and said[0] == said[1] and said[0].startswith("refused: ")


def test_another_mpis_launcher(four_ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHERS["Open MPI's mpirun"], "2")
    (said,) = together(1, four_ranks, tmp_path / "engines", -1)
    assert said.startswith("refused: Open MPI's mpirun started 2 ranks, but mpi4py here uses MPICH")


# --- what is read of an engine folder


def engine_folder(folder: Path, manifest: CheckpointManifest, **changes: Any) -> Path:
    """As `trtllm-build` leaves it, with what the C++ runtime and we read of it."""
    plugins = {"context_fmha": True, "remove_input_padding": True, "use_paged_context_fmha": True}
    build_config = {"max_input_len": 1024, "max_seq_len": 128, "max_batch_size": 64, "max_num_tokens": 96}
    build_config |= {"max_beam_width": 1, "kv_cache_type": "paged", "plugin_config": plugins} | changes
    mapping = manifest.to_json()["mapping"] | {"moe_tp_size": manifest.ranks, "cp_config": {}}
    added = {"mapping": mapping, "rotary_embedding_dim": 16, "all_reduce_strategy": "NCCL"}
    config = {"version": "1.2.1", "pretrained_config": manifest.to_json() | added, "build_config": build_config}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(manifest.ranks):
        (folder / f"rank{rank}.engine").touch()
    return folder


@pytest.mark.parametrize(
    ("plugins", "most"),
    [
        ({"context_fmha": True, "remove_input_padding": True, "use_paged_context_fmha": True}, 127),
        ({"context_fmha": True, "remove_input_padding": True, "use_paged_context_fmha": False}, 96),
        ({"context_fmha": False, "remove_input_padding": True, "use_paged_context_fmha": False}, 40),
    ],
    ids=["in chunks", "in one step", "as built"],
)
def test_the_longest_prompt_is_what_the_runtime_takes(tmp_path: Path, plugins: dict[str, bool], most: int) -> None:
    manifest = CheckpointManifest(model=SMALL, ranks=2, dtype="bfloat16")
    folder = engine_folder(tmp_path / "engines", manifest, plugin_config=plugins, max_input_len=40)
    found = read_engine(folder)
    assert (found.backend.name, found.checkpoint) == ("tensorrt_llm", manifest)
    assert found.options == Capacity(max_batch_size=64, max_input_len=most, max_seq_len=128, max_num_tokens=96)


def test_quantised_engines_are_read(tmp_path: Path) -> None:
    model = SMALL.replace(hidden_size=64, num_heads=4, num_kv_heads=4)
    manifest = CheckpointManifest(model=model, ranks=2, dtype="bfloat16", quant_algo="W8A16", kv_cache_quant_algo="FP8")
    found = inspect(engine_folder(tmp_path / "engines", manifest))
    assert (found["quant_algo"], found["kv_cache_quant_algo"]) == ("W8A16", "FP8")
    heads, tracks = 4, 2
    assert found["kv_bytes_per_token"] == 2 * model.num_layers * tracks * heads * model.head_size  # a byte each


def test_inspect_counts_what_the_engine_sends(tmp_path: Path) -> None:
    manifest = CheckpointManifest(model=SMALL, ranks=2, dtype="bfloat16")
    found = inspect(engine_folder(tmp_path / "engines", manifest))
    *boundaries, logits = found["collectives"]
    assert [c["layer"] for c in boundaries] == [1, 3, 4] and found["sync_points"] == 3
    assert {(c["kind"], c["op"], c["dtype"], c["bytes_per_token"]) for c in boundaries} == {
        ("all_reduce", "mean", "bfloat16", 2 * SMALL.hidden_size)
    }
    assert (logits["kind"], logits["dtype"], logits["bytes_per_token"]) == ("gather", "bfloat16", 2 * 51)  # 101 rows


def test_a_tied_head_is_held_beside_the_embedding(tmp_path: Path) -> None:
    model = SMALL.replace(tie_embeddings=True)
    checkpoint = init(model, tmp_path / "tied", ranks=2, dtype="bfloat16")
    weights = load_file(checkpoint / "rank0.safetensors")
    assert inspect(checkpoint)["bytes_per_rank"] == sum(tensor.nbytes for tensor in weights.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_batch_size": None}, "build_config must have a whole number for max_batch_size"),
        ({"max_seq_len": "128"}, "build_config must have a whole number for max_seq_len"),
    ],
)
def test_a_damaged_engine_folder(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    manifest = CheckpointManifest(model=SMALL, ranks=2, dtype="bfloat16")
    with pytest.raises(UsageError, match=message):
        read_engine(engine_folder(tmp_path / "engines", manifest, **change))


# --- through TensorRT-LLM's own sources

# Every Python that starts finds TensorRT-LLM, and two GPUs.
SITE = """
import os
from pathlib import Path
from tests.backends.tensorrt_llm.checkout.stubs import install
install(Path(os.environ["TRTLLM_CHECKOUT"]))
import torch
torch.cuda.device_count = lambda: 2
"""


def run(folder: Path, *arguments: object, prelude: str = "") -> subprocess.CompletedProcess[str]:
    """A Python module with arguments, in `folder`, where TensorRT-LLM is installed."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(SITE + prelude)
    environment = os.environ | {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@needs_checkout
@pytest.mark.parametrize("workers", [1, 2])
def test_our_build_through_the_real_builder(checkpoint: Path, tmp_path: Path, workers: int) -> None:
    options = ("--max_batch_size", 8, "--gemm_plugin", "auto", "--logits_dtype", "float16", "--workers", workers)
    options += ("--gpus_per_node", 4)
    done = run(tmp_path, "trtllm_pt", "build", checkpoint, "-o", "engines", *options, "--all_reduce_strategy", "AUTO")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "engine: tensorrt_llm, because TensorRT-LLM is installed, and 2 GPUs are visible" in lines
    assert len([line for line in lines if re.fullmatch(r"rank [01]: \S+ GiB in \S+ s", line)]) == 2, lines
    engines = tmp_path / "engines"
    assert names(engines) == {"config.json", "rank0.engine", "rank1.engine", "model.cache", "tokenizer"}
    assert names(tmp_path) == {"engines", "site"}
    config = json.loads((engines / "config.json").read_text())
    assert config["pretrained_config"]["all_reduce_strategy"] == "AUTO"
    assert config["pretrained_config"]["logits_dtype"] == "float16"
    assert config["pretrained_config"]["mapping"]["gpus_per_node"] == 4
    assert config["build_config"]["plugin_config"]["gemm_plugin"] in ("auto", "bfloat16")
    assert str(tmp_path) not in json.dumps(config)
    assert read_engine(engines).options.max_batch_size == 8
    recorded = inspect(engines)["recorded"]
    assert (recorded["AllReduce"], recorded["AllGather"], recorded["GPTAttention"]) == (3, 1, SMALL.num_layers)


@needs_checkout
def test_plain_trtllm_build_with_our_shim(checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("--checkpoint_dir", checkpoint, "--output_dir", tmp_path / "engines", "--max_batch_size", 8)
    model_class = ("--model_cls_file", shim.__file__, "--model_cls_name", "ParallelTrackForCausalLM")
    done = run(tmp_path, "tensorrt_llm.commands.build", *arguments, *model_class, "--log_level", "error")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "engines") == {"config.json", "rank0.engine", "rank1.engine"}
    found = read_engine(tmp_path / "engines")
    assert (found.backend.name, found.checkpoint) == ("tensorrt_llm", CheckpointManifest.from_dir(checkpoint))
    assert inspect(tmp_path / "engines")["recorded"] is None  # nobody counted


@needs_checkout
def test_stock_llama_from_our_files_is_read_as_ours(tmp_path: Path) -> None:
    """What gpu_check sets beside our tensor parallelism, and runs on our runtime."""
    checkpoint = init(preset("dense-tiny"), tmp_path / "dense", ranks=2, dtype="bfloat16")
    prepare = f"stock_checkpoint(Path({str(checkpoint)!r}), Path({str(tmp_path / 'stock')!r}))"
    script = f"from pathlib import Path\nfrom benchmarks.gpu_check import stock_checkpoint\n{prepare}"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
    arguments = ("--checkpoint_dir", tmp_path / "stock", "--output_dir", tmp_path / "engines", "--log_level", "error")
    done = run(tmp_path, "tensorrt_llm.commands.build", *arguments, "--reduce_fusion", "enable")
    assert done.returncode == 0, done.stderr
    found = read_engine(tmp_path / "engines")
    assert (found.backend.name, found.checkpoint) == ("tensorrt_llm", CheckpointManifest.from_dir(checkpoint))
    config = json.loads((tmp_path / "engines" / "config.json").read_text())
    assert config["pretrained_config"]["architecture"] == "LlamaForCausalLM"
    assert config["build_config"]["plugin_config"]["reduce_fusion"] is True


@needs_checkout
def test_a_dry_run_builds_the_networks_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "trtllm_pt", "build", checkpoint, "-o", "engines", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "dry run: all 2 ranks can be built" in done.stderr
    assert names(tmp_path) == {"site"}


DROPPED = """
from trtllm_pt.backends.tensorrt_llm.network import TrackOps
real, seen = TrackOps.all_reduce, []
def all_reduce(self, x, op):
    seen.append(op)
    return x if len(seen) == 2 else real(self, x, op)
TrackOps.all_reduce = all_reduce
"""


@needs_checkout
@pytest.mark.parametrize("workers", [1, 2])
def test_a_dropped_all_reduce_ends_the_build(checkpoint: Path, tmp_path: Path, workers: int) -> None:
    arguments = ("build", checkpoint, "-o", "engines", "--workers", workers)
    done = run(tmp_path, "trtllm_pt", *arguments, prelude=DROPPED)
    assert done.returncode == 1, done.stderr
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("Error"))
    assert re.search(r"rank \d sends 2 AllReduce, 1 AllGather, but its schedule has 3 AllReduce, 1 AllGather", error), (
        error
    )
    assert names(tmp_path) == {"site"}


@needs_checkout
def test_a_worker_that_is_killed_is_told(checkpoint: Path, tmp_path: Path) -> None:
    prelude = "import sys\nif 'trtllm_pt.backends.tensorrt_llm.build_rank' in sys.orig_argv: os.kill(os.getpid(), 9)\n"
    done = run(tmp_path, "trtllm_pt", "build", checkpoint, "-o", "engines", "--workers", 2, prelude=prelude)
    assert done.returncode == 1
    assert re.search(r"the worker that built the ranks [01] was killed by signal 9", done.stderr.splitlines()[-1])
    assert names(tmp_path) == {"site"}


@needs_checkout
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--low_latency_gemm_plugin", "float8"), r"--low_latency_gemm_plugin \(float8\): Input should be 'fp8'"),
        (("--multiple_profiles", "many"), r"--multiple_profiles \(many\): Input should be a valid boolean"),
    ],
)
def test_values_that_tensorrt_llm_refuses(checkpoint: Path, tmp_path: Path, option: Any, message: str) -> None:
    done = run(tmp_path, "trtllm_pt", "build", checkpoint, "-o", "engines", *option)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr.splitlines()[-1])
    assert names(tmp_path) == {"site"}
