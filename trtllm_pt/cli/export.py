"""The command `trtllm-pt export`, which writes a model directory for transformers and `convert`."""

from __future__ import annotations

from pathlib import Path

import click

from trtllm_pt.cli.options import output_option


@click.command("export")
@click.argument("source", metavar="CKPT|ENGINES|MODEL_DIR", type=click.Path(path_type=Path))
@output_option("DIR")
def command(source: Path, output: Path) -> None:
    """Write a checkpoint, engines or a model as a directory for transformers and convert.

    DIR has the weights of all ranks bit for bit, config.json, the tokenizer's files, and the file
    modeling_parallel_track.py, with which AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True) runs the
    model in Hugging Face's transformers. Of engines only those of the embedded engine are read.

    \b
    Examples:
      trtllm-pt export build/demo -o exported
      trtllm-pt export engines/demo -o exported
    """
    from trtllm_pt.backends.export import export

    path = export(source, output)
    click.echo(f"{path}: model directory for transformers and trtllm-pt convert", err=True)
