"""What the commands share that convert a dense model by distillation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from trtllm_pt.conversion.convert import Report


def print_report(found: Report, output: Path, field: str, as_json: bool) -> None:
    """Print what a conversion did. field: what has grown through the stages, in words."""
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else "\n".join(_page(found, field)))
    click.echo(f"{output}: model directory of schedule {found.schedule} with {found.tracks} tracks", err=True)


def _page(found: Report, field: str) -> Iterator[str]:
    yield f"{found.model} as {found.tracks} tracks of schedule {found.schedule}, products in {found.dtype}"
    yield f"{found.windows} windows of {found.window} tokens, and {found.held_out_windows} held out"
    stages = ", then ".join(f"{field} {value} until step {until}" for value, until in found.stages)
    yield f"Learnt from {found.tokens:,} tokens: {stages}."
    yield ""
    yield f"Perplexity of held-out text: {found.perplexity:.4f}, the dense model's,"
    for perplexity, divergence, when in (
        (found.perplexity_before, found.divergence_before, "before anything was learnt"),
        (found.perplexity_after, found.divergence_after, "at the end"),
    ):
        rise = perplexity / found.perplexity - 1
        yield f"{perplexity:.4f} ({rise:+.2%}) {when}, with a divergence of {divergence:.4f} nats per token"
