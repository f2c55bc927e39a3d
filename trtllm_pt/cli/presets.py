"""The command `trtllm-pt presets`, which lists the model sizes that come with the project."""

from __future__ import annotations

import json
from typing import Any

import click

from trtllm_pt.cli.options import json_option
from trtllm_pt.cli.text import count, table
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.cost import parameters
from trtllm_pt.model.presets import PRESETS, preset
from trtllm_pt.model.schedule import schedule_of, sync_points, tensor_parallel_sync_points


@click.command("presets")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the presets, or print one of them as a model config.

    \b
    Examples:
      trtllm-pt presets
      trtllm-pt presets pt-6b-d8
      trtllm-pt presets pt-150m > mine.json     # edit it, then `trtllm-pt init mine.json -o …`
    """
    if name is not None:
        click.echo(json.dumps(preset(name).to_json(), indent=2))
        return
    rows = [_row(name, config) for name, config in PRESETS.items()]
    click.echo(json.dumps(rows, indent=2) if as_json else _table(rows))


def _row(name: str, config: ModelConfig) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": parameters(config),
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "tracks": config.tracks,
        "schedule": config.schedule,
        "block_depth": config.block_depth,
        "sync_points": sync_points(schedule_of(config)),
        "tensor_parallel_sync_points": tensor_parallel_sync_points(config),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    header = ("name", "schedule", "parameters", "layers", "width", "tracks", "D", "syncs", "syncs of TP")
    cells = [
        (
            row["name"],
            row["schedule"],
            count(row["parameters"]),
            row["layers"],
            row["hidden_size"],
            row["tracks"],
            row["block_depth"] or "-",
            row["sync_points"],
            row["tensor_parallel_sync_points"],
        )
        for row in rows
    ]
    return table(cells, header, left=2)
