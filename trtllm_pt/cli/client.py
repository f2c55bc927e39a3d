"""`trtllm-pt client`: a prompt to a server, its text as it comes."""

from __future__ import annotations

import sys
import time

import click

from trtllm_pt.cli.text import duration
from trtllm_pt.errors import UsageError


@click.command("client")
@click.argument("words", metavar="[URL] PROMPT", nargs=-1, required=True)
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True, help="Tokens to write.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: greedy.")
@click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="0: no limit.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Nucleus.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draws.")
@click.option("--stop", multiple=True, metavar="WORD", help="Ends the text, which keeps it. May be repeated.")
def command(
    words: tuple[str, ...],
    max_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    stop: tuple[str, ...],
) -> None:
    """Continue a prompt on a server, streaming.

    URL is that of Triton's HTTP port, http://127.0.0.1:8000 where left out.

    \b
    Examples:
      trtllm-pt client "def binary_search("
      trtllm-pt client http://10.0.0.7:8000 "import os" --max-tokens 32 --temperature 0.8
    """
    from trtllm_pt.serving.client import DEFAULT_URL, stream

    if len(words) > 2:
        raise UsageError(f"client takes one prompt, not {len(words)}: put it in quotes")
    url, prompt = words if len(words) == 2 else (DEFAULT_URL, words[0])
    fields: dict[str, object] = {"text_input": prompt, "max_tokens": max_tokens}
    if temperature > 0:
        fields |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if stop:
        fields["stop_words"] = list(stop)
    began = time.perf_counter()
    times: list[float] = []
    for piece in stream(url, fields):
        if not times:
            click.echo(click.style(prompt, bold=True), nl=False)
        times.append(time.perf_counter())
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()
    if times:
        click.echo(_closing_line(began, times), err=True)


def _closing_line(began: float, times: list[float]) -> str:
    first = f"TTFT {duration(times[0] - began)}"
    if len(times) == 1:
        return first
    rate = (len(times) - 1) / (times[-1] - times[0])
    return f"{len(times)} pieces · {first} · {rate:.1f} a second"
