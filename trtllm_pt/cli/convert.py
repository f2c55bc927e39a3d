"""`trtllm-pt convert`: a trained model to a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from trtllm_pt.cli.options import dtype_option, output_option, quantize_option, ranks_option


@click.command("convert")
@click.argument("model_dir", metavar="MODEL_DIR", type=click.Path(path_type=Path))
@output_option("CKPT")
@ranks_option
@dtype_option("auto", "bfloat16", "float32", default="auto")
@quantize_option
def command(model_dir: Path, output: Path, ranks: int, dtype: str, quantize: str | None) -> None:
    """Convert a trained model to a checkpoint, one file per rank.

    MODEL_DIR is a folder in Hugging Face's layout (config.json, *.safetensors, tokenizer files): a Parallel Track
    model, a dense model of the Llama family, or Apple's tamm.

    \b
    Examples:
      trtllm-pt convert pretrained/stdlib-pt -o build/stdlib-pt --ranks 2
      trtllm-pt convert ~/models/llama-1b -o build/llama --ranks 4 --dtype float32
      trtllm-pt convert ~/models/llama-1b -o build/llama-int8 --ranks 4 --quantize W8A16
    """
    from trtllm_pt.checkpoint.convert import convert

    path = convert(model_dir, output, ranks=ranks, dtype=dtype, quantize=quantize)
    kind = f", weights in {quantize}" if quantize else ""
    click.echo(f"{path}: checkpoint for {ranks} rank{'s' if ranks > 1 else ''}{kind}", err=True)
