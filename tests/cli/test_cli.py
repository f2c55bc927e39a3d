"""Help, listings and JSON: what needs no engine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.cli.conftest import Run
from trtllm_pt.backends import backends
from trtllm_pt.cli.app import COMMANDS, cli
from trtllm_pt.cli.bench import COMMANDS as BENCHMARKS
from trtllm_pt.cli.inspect import schedule_line
from trtllm_pt.cli.text import count, duration, memory, table
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.presets import PRESETS
from trtllm_pt.model.schedule import schedule_of, to_json

# The flags of tensorrt_llm 1.2.1's commands/build.py that need no counterpart: `build` has its own for them.
TRTLLM_BUILD = """
    checkpoint_dir output_dir
    max_batch_size max_input_len max_seq_len max_decoder_seq_len max_beam_width max_num_tokens opt_num_tokens
    max_encoder_input_len max_prompt_embedding_table_size max_multimodal_len kv_cache_type paged_kv_cache
    input_timing_cache output_timing_cache profiling_verbosity strip_plan weight_sparsity weight_streaming fast_build
    workers log_level enable_debug_output visualize_network dry_run monitor_memory logits_dtype gather_context_logits
    gather_generation_logits gather_all_token_logits lora_dir lora_ckpt_source lora_target_modules max_lora_rank
    speculative_decoding_mode max_draft_len model_config build_config model_cls_file model_cls_name
    bert_attention_plugin gpt_attention_plugin gemm_plugin gemm_swiglu_plugin fp8_rowwise_gemm_plugin lora_plugin
    dora_plugin moe_plugin mamba_conv1d_plugin nccl_plugin low_latency_gemm_plugin low_latency_gemm_swiglu_plugin
    gemm_allreduce_plugin context_fmha bert_context_fmha_fp32_acc remove_input_padding tokens_per_block
    use_paged_context_fmha use_fp8_context_fmha fuse_fp4_quant multiple_profiles paged_state streamingllm
    norm_quant_fusion reduce_fusion user_buffer use_fused_mlp pp_reduce_scatter
"""


def test_help_imports_nothing_heavy() -> None:
    """The list of commands does not even import the commands."""
    show = "cli.main(['--help'], standalone_mode=False); print(*sys.modules)"
    code = f"import sys; from trtllm_pt.cli.app import cli; {show}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    modules = set(done.stdout.splitlines()[-1].split())
    assert not {"torch", "numpy", "mpi4py", "tokenizers", "trtllm_pt.backends", "trtllm_pt.cli.build"} & modules


@pytest.mark.parametrize("name", COMMANDS)
def test_summaries_are_those_of_the_commands(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.help is not None
    assert command.help.startswith(COMMANDS[name])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["presets"],
        *([name, "--help"] for name in COMMANDS),
        *(["bench", name, "--help"] for name in BENCHMARKS),
    ],
)
def test_nothing_heavy_is_imported_for_help(arguments: list[str]) -> None:
    code = f"""
import sys
from trtllm_pt.cli.app import cli
cli.main({arguments!r}, standalone_mode=False)
heavy = {{"torch", "numpy", "mpi4py", "safetensors", "tokenizers"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_docs_are_fresh() -> None:
    written = Path(__file__).parents[2] / "docs" / "cli.md"
    made = subprocess.run([sys.executable, "-m", "trtllm_pt.cli.docs"], check=True, capture_output=True, text=True)
    assert written.read_text() == made.stdout, "run `python -m trtllm_pt.cli.docs > docs/cli.md`"


def test_every_command_has_examples_that_parse() -> None:
    """Each example in a help text names options that exist."""
    context = cli.make_context("trtllm-pt", [], resilient_parsing=True)
    for name, command in commands(cli, context, ""):
        examples = re.findall(rf"trtllm-pt{name}\b([^\n|>#]*)", command.help or "")
        assert examples, name
        below = [command, *(other for _, other in commands(command, context, ""))]
        flags = {flag for each in below for option in each.params for flag in option.opts}
        for example in examples:
            assert set(re.findall(r"(?<!\S)--?[a-z][\w-]*", example)) <= flags, example


def commands(group: click.Command, context: click.Context, title: str) -> Iterator[tuple[str, click.Command]]:
    """All below a group, with the words that call them."""
    if not isinstance(group, click.Group):
        return
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{title} {name}", command
        yield from commands(command, context, f"{title} {name}")


def test_presets(run: Run) -> None:
    listing = run("presets")
    assert listing.returncode == 0
    assert all(re.search(rf"^{name} ", listing.stdout, re.MULTILINE) for name in PRESETS)
    (row,) = (row for row in json.loads(run("presets", "--json").stdout) if row["name"] == "pt-6b-d8")
    assert (row["tracks"], row["block_depth"], row["sync_points"], row["tensor_parallel_sync_points"]) == (8, 8, 4, 64)
    assert ModelConfig.from_json(json.loads(run("presets", "pt-6b").stdout)) == PRESETS["pt-6b"]


def test_inspect_names_the_types(run: Run) -> None:
    made = run("init", "pt-tiny", "-o", "checkpoint", "--quantize", "W8A16", "--kv-cache", "FP8")
    assert made.stderr == "checkpoint: checkpoint for 1 rank, random weights in W8A16, KV cache in FP8\n"
    assert "\n  types     bfloat16, matrices W8A16, KV cache FP8\n" in run("inspect", "checkpoint").stdout


def test_version_and_bare_call(run: Run) -> None:
    assert re.fullmatch(r"trtllm-pt, version \d+\.\d+\.\d+\S*\n", run("--version").stdout)
    bare = run()
    assert bare.returncode == 0
    assert "trtllm-pt convert" in bare.stdout


def test_trtllm_build_options_are_all_there() -> None:
    command = cli.get_command(click.Context(cli), "build")
    assert command is not None
    flags = {flag for option in command.params for flag in option.opts}
    assert {f"--{name}" for name in TRTLLM_BUILD.split()} <= flags
    added = {option.name for option in backends()["tensorrt_llm"].options} - {"all_reduce_strategy", "gpus_per_node"}
    assert added <= set(TRTLLM_BUILD.split())


def test_schedule_line_folds_what_repeats() -> None:
    pt, dense = PRESETS["pt-tiny-d2"], PRESETS["dense-tiny"]
    for config, line in (
        (pt, "((attention ffn) x2 [stream mean]) x2"),
        (pt.replace(block_depth=3), "(attention ffn) x3 [stream mean] attention ffn [stream mean]"),
        (dense, "(attention [partial sum] ffn [partial sum]) x4"),
        (dense.replace(schedule="parallel"), "(attention* ffn* [partial sum]) x4"),
        (dense.replace(schedule="ladder", num_layers=1), "attention* [partial sum ffn* ] [partial sum]"),
    ):
        assert schedule_line(to_json(schedule_of(config))) == line


def test_words_and_numbers() -> None:
    assert [count(n) for n in (999, 1500, 6.1e9)] == ["999", "1.5K", "6.1B"]
    assert [memory(n) for n in (512, 1536, 3 << 30)] == ["512 B", "1.5 KiB", "3.0 GiB"]
    assert [duration(s) for s in (0.0123, 4.56)] == ["12 ms", "4.6 s"]
    assert table([("a", 1), ("bb", 22)], ("x", "n")) == "x    n\na    1\nbb  22"
