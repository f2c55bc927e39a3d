"""The command `trtllm-pt init`, which writes a checkpoint of random weights."""

from __future__ import annotations

from pathlib import Path

import click

from trtllm_pt.cli.options import (
    dtype_option,
    embedding_option,
    kv_cache_option,
    output_option,
    quantize_option,
    ranks_option,
)
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.model.presets import preset


@click.command("init")
@click.argument("model", metavar="PRESET|CONFIG.json")
@output_option("CKPT")
@ranks_option
@click.option("--rank", type=int, help="Write only this rank's file.  [default: all ranks]")
@dtype_option("bfloat16", "float32", default="bfloat16")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed. A model does not depend on --ranks.")
@quantize_option
@embedding_option
@kv_cache_option
def command(
    model: str,
    output: Path,
    ranks: int,
    rank: int | None,
    dtype: str,
    seed: int,
    quantize: str | None,
    embedding: str | None,
    kv_cache: str | None,
) -> None:
    """Write a checkpoint of random weights for a preset or a config file.

    The whole model is never held in memory. With FP8, the scales of activations and the KV cache are set to 1/16, which
    is enough to measure speed.

    \b
    Examples:
      trtllm-pt init pt-150m -o build/pt-150m --ranks 2
      trtllm-pt init pt-30b -o build/pt-30b --ranks 8 --rank 3      # one rank of eight
      trtllm-pt init mine.json -o build/mine --seed 7
    """
    config = ModelConfig.from_file(Path(model)) if _is_path(model) else preset(model)
    rank_layout(config, ranks, rank or 0)  # report a model that cannot be divided before torch is imported
    from trtllm_pt.checkpoint.init import init

    path = init(
        config,
        output,
        ranks=ranks,
        rank=rank,
        dtype=dtype,
        seed=seed,
        quantize=quantize,
        embedding=embedding,
        kv_cache=kv_cache,
    )
    chosen = {"embedding": embedding, "KV cache": kv_cache}
    weights = f"random weights in {quantize or dtype}" + "".join(f", {k} in {v}" for k, v in chosen.items() if v)
    click.echo(f"{path}: checkpoint for {ranks} rank{'s' if ranks > 1 else ''}, {weights}", err=True)


def _is_path(model: str) -> bool:
    return model.endswith(".json") or "/" in model
