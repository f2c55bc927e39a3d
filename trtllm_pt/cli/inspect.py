"""The command `trtllm-pt inspect`, which shows the model, the memory per rank and every message between ranks."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from trtllm_pt.cli.options import json_option
from trtllm_pt.cli.text import count, memory, table


@click.command("inspect")
@click.argument("folder", metavar="CKPT|ENGINES", type=click.Path(path_type=Path))
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Show the model in a checkpoint or an engine directory, and every message between its ranks.

    \b
    Examples:
      trtllm-pt inspect engines/demo
      trtllm-pt inspect build/demo --json | jq .sync_points
    """
    from trtllm_pt.backends import inspect

    found = inspect(folder)
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(_page(folder, found)))


def _page(folder: Path, found: dict[str, Any]) -> Iterable[str]:
    depth = f", D {found['block_depth']}" if found["block_depth"] else ""
    parameters = count(found["parameters"])
    yield f"{folder}"
    yield f"  model     {parameters} parameters, {found['layers']} layers, {found['tracks']} tracks{depth}"
    yield f"  types     {_types(found)}"
    yield f"  ranks     {found['ranks']}, {memory(found['bytes_per_rank'])} of weights each"
    yield f"  syncs     {_syncs(found['sync_points'], found['tensor_parallel_sync_points'])}"
    if found["recorded"]:
        yield f"  recorded  {_recorded(found['recorded'])}, counted in rank 0's network when it was built"
    if found["compiled"]:
        yield from _compiled(found["compiled"])
    if "schedule" in found:
        yield f"  schedule  {schedule_line(found['schedule'])}"
    yield ""
    if found["collectives"]:
        yield table(_rows(found["collectives"]), ("message", "after", "op", "type", "bytes per token", "ranks"), left=4)
    else:
        yield "A single rank sends no messages."


def _types(found: dict[str, Any]) -> str:
    fields = {
        "matrices": "quant_algo",
        "embedding": "embedding_quant_algo",
        "KV cache": "kv_cache_quant_algo",
        "products": "gemm",
    }
    quantized = ((what, found[field]) for what, field in fields.items())
    return ", ".join([found["dtype"], *(f"{what} {algo}" for what, algo in quantized if algo)])


def _recorded(plugins: dict[str, int]) -> str:
    return ", ".join(f"{plugins.get(name, 0)} {name}" for name in ("AllReduce", "AllGather"))


def _compiled(compiled: dict[str, Any]) -> Iterable[str]:
    """Yield the lines on what was compiled: by what, for which GPUs, and what each profile of the plans sends."""
    builders = ", ".join(f"{name} {version}" for name, version in compiled["versions"].items())
    yield f"  compiled  by {builders}, for {', '.join(compiled['targets'])}"
    yield f"  plans     {', '.join(memory(plan['bytes']) for plan in compiled['plans'])}"
    for profile in compiled["profiles"]:
        sends = compiled["collectives"][profile["name"]]
        counts = ", ".join(f"{number} {kind}" for kind, number in sends.items()) or "no collectives"
        slots, each = profile["slots"][2], profile["each"][2]
        yield f"  {profile['name']:<9} {counts}; up to {slots} x {each} tokens"


def _syncs(own: int, tensor_parallel: int) -> str:
    fewer = f", {tensor_parallel / own:.3g} times fewer" if own < tensor_parallel else ""
    return f"{own} per forward, {tensor_parallel} under tensor parallelism{fewer}"


def _rows(collectives: list[dict[str, Any]]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for c in collectives:
        after = c["place"] if c["layer"] is None else f"layer {c['layer']} {c['place']}"
        rows.append((c["kind"], after, c["op"] or "-", c["dtype"], c["bytes_per_token"], len(c["group"])))
    return rows


def schedule_line(steps: list[dict[str, Any]]) -> str:
    """Return a schedule on one line, with repetitions folded: `((attention ffn) x4 [stream mean]) x8`.

    `[` marks the start of an all-reduce, `]` the place where its result enters the shared stream, and `*` a sub-layer
    that reads only the shared stream.
    """
    line = " ".join(_fold([_word(step) for step in steps]))
    return line.replace("> ]", "]").replace(">", "")


def _word(step: dict[str, Any]) -> str:
    if step["step"] == "run":
        return str(step["place"]) + ("" if step["reads"] == "local" else "*")
    return f"[{step['payload']} {step['op']}>" if step["step"] == "start" else "]"


def _fold(words: list[str]) -> list[str]:
    """Fold repetitions: `a b a b c` -> `(a b) x2 c`. At each word, the repetition that covers most words is folded."""
    folded, place = [], 0
    while place < len(words):
        length, times = _best_repeat(words[place:])
        if times == 1:
            folded.append(words[place])
        else:
            inner = " ".join(_fold(words[place : place + length]))
            folded.append(f"({inner}) x{times}" if " " in inner else f"{inner} x{times}")
        place += length * times
    return folded


def _best_repeat(words: list[str]) -> tuple[int, int]:
    """Return the length of the repeated words at the start and how often they occur, or (1, 1) without a repetition."""
    best = (1, 1)
    for length in range(1, len(words) // 2 + 1):
        times = 1
        while words[times * length : (times + 1) * length] == words[:length]:
            times += 1
        if times > 1 and length * times > best[0] * best[1]:
            best = (length, times)
    return best
