"""The command `trtllm-pt convert`, which writes a trained model as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from trtllm_pt.checkpoint.manifest import GPUS_PER_NODE
from trtllm_pt.cli.options import (
    dtype_option,
    embedding_option,
    kv_cache_option,
    output_option,
    quantize_option,
    ranks_option,
)


@click.command("convert")
@click.argument("model_dir", metavar="MODEL_DIR", type=click.Path(path_type=Path))
@output_option("CKPT")
@ranks_option
@dtype_option("auto", "bfloat16", "float32", default="auto")
@quantize_option
@embedding_option
@kv_cache_option
@click.option(
    "--calibrate",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File from which the ranges of FP8 values are measured: text or token ids (.json: a list of lists, .jsonl: "
    "one list per line). The first 128 sequences of 512 tokens are run, with the whole model in memory in float32. "
    "Required for FP8 matrices; an FP8 KV cache has scale 1 without it.",
)
@click.option(
    "--gpus-per-node",
    type=click.IntRange(min=1),
    default=GPUS_PER_NODE,
    show_default=True,
    help="GPUs of each machine, for a TensorRT engine on several machines.",
)
def command(
    model_dir: Path,
    output: Path,
    ranks: int,
    dtype: str,
    quantize: str | None,
    embedding: str | None,
    kv_cache: str | None,
    calibrate: Path | None,
    gpus_per_node: int,
) -> None:
    """Convert a trained model to a checkpoint with one file per rank.

    MODEL_DIR is a folder in Hugging Face's layout (config.json, *.safetensors, tokenizer files) with a Parallel Track
    model, a dense model of the Llama family, also one that GPTQ, AWQ or compressed-tensors has quantised, or a model of
    Apple's tamm package.

    \b
    Examples:
      trtllm-pt convert pretrained/stdlib-pt -o build/stdlib-pt --ranks 2
      trtllm-pt convert ~/models/llama-1b -o build/llama --ranks 4 --dtype float32
      trtllm-pt convert ~/models/llama-1b -o build/llama-int8 --ranks 4 --quantize W8A16
      trtllm-pt convert ~/models/llama-1b -o build/llama-fp8 --quantize FP8 --kv-cache FP8 --calibrate text.txt
    """
    from trtllm_pt.checkpoint.convert import convert

    path = convert(
        model_dir,
        output,
        ranks=ranks,
        dtype=dtype,
        quantize=quantize,
        embedding=embedding,
        kv_cache=kv_cache,
        calibrate=calibrate,
        gpus_per_node=gpus_per_node,
    )
    chosen = {"weights": quantize, "embedding": embedding, "KV cache": kv_cache}
    kinds = "".join(f", {what} in {algo}" for what, algo in chosen.items() if algo)
    click.echo(f"{path}: checkpoint for {ranks} rank{'s' if ranks > 1 else ''}{kinds}", err=True)
