"""`trtllm-pt client`: sends a prompt to a server and prints the text as it arrives."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from trtllm_pt.cli.options import sampling_options
from trtllm_pt.cli.text import duration
from trtllm_pt.errors import UsageError
from trtllm_pt.requests.fields import NUMBERS, given_numbers
from trtllm_pt.requests.messages import SamplingParams


@click.command("client")
@click.argument("words", metavar="[URL] PROMPT", nargs=-1, required=True)
@click.option(
    "--serve",
    "folder",
    metavar="ENGINES|REPO",
    type=click.Path(path_type=Path),
    help="Start a server for this one prompt, on free ports, and stop it afterwards.",
)
@sampling_options(field for field in NUMBERS if field.text_input)
@click.option("--stop", multiple=True, metavar="WORD", help="Stop at this text, which is included. Repeatable.")
def command(words: tuple[str, ...], folder: Path | None, stop: tuple[str, ...], **sampling_fields: Any) -> None:
    """Send a prompt to a server and print the answer as it arrives.

    URL is the address of Triton's HTTP port. The default is http://127.0.0.1:8000.

    \b
    Examples:
      trtllm-pt client "def binary_search("
      trtllm-pt client http://10.0.0.7:8000 "import os" --max-tokens 32 --temperature 0.8
      trtllm-pt client --serve engines/demo "def binary_search("
    """
    from trtllm_pt.serving.client import DEFAULT_URL

    if len(words) > 2:
        raise UsageError(f"client takes one PROMPT, not {len(words)} arguments: put the prompt in quotes")
    if folder is not None and len(words) == 2:
        raise UsageError(f"--serve ({folder}) and URL ({words[0]}) cannot be combined")
    url, prompt = words if len(words) == 2 else (DEFAULT_URL, words[0])
    fields: dict[str, object] = {"text_input": prompt}
    for field, value in given_numbers(SamplingParams(**sampling_fields)):
        assert field.text_input is not None
        fields[field.text_input] = value
    if stop:
        fields["stop_words"] = list(stop)
    if folder is None:
        _show(url, prompt, fields)
    else:
        _show_own_server(folder, prompt, fields)


def _show_own_server(folder: Path, prompt: str, fields: Mapping[str, object]) -> None:
    from trtllm_pt.cli.serve import short_lived

    with short_lived(folder) as (address, engines):
        click.echo(f"Triton answers at {address.url}\n{_schedule(engines)}\n", err=True)
        _show(address.url, prompt, fields)
    click.echo("the server and its ranks have exited", err=True)


def _schedule(engines: Path) -> str:
    """Return one line that shows the sync schedule: A for attention, F for feed-forward, ● for an all-reduce."""
    from trtllm_pt.backends import inspect

    model = inspect(engines)
    letters = {"attention": "A", "ffn": "F"}
    steps = [{"run": letters.get(step.get("place")), "start": "●"}.get(step["step"]) for step in model["schedule"]]
    return (
        f"{model['tracks']} tracks on {model['ranks']} ranks: {'─'.join(filter(None, steps))}, {model['sync_points']} "
        f"all-reduces per token, {model['tensor_parallel_sync_points']} with tensor parallelism"
    )


def _show(url: str, prompt: str, fields: Mapping[str, object]) -> None:
    from trtllm_pt.serving.client import stream

    began = time.perf_counter()
    arrived: list[tuple[float, int]] = []
    for number, piece in enumerate(stream(url, fields)):
        if not number:
            click.echo(click.style(prompt, bold=True), nl=False)
        if piece.tokens:
            arrived.append((time.perf_counter(), piece.tokens))
        click.echo(piece.text, nl=False)
        sys.stdout.flush()
    click.echo()
    if arrived:
        click.echo(closing_line(began, arrived), err=True)


def closing_line(began: float, arrived: Sequence[tuple[float, int]]) -> str:
    """Return tokens, TTFT and rate. arrived: when tokens came, and how many. Tokens that came at once have no rate."""
    (first, with_first), (last, _) = arrived[0], arrived[-1]
    tokens = sum(count for _, count in arrived)
    line = f"{tokens} tokens · TTFT {duration(first - began)}"
    return f"{line} · {(tokens - with_first) / (last - first):.1f} tokens/s" if last > first else line
