"""`trtllm-pt eval`: measures how well engines predict text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_pt.cli.options import json_option
from trtllm_pt.cli.text import table
from trtllm_pt.errors import UsageError
from trtllm_pt.job.launchers import launched_ranks

if TYPE_CHECKING:
    from trtllm_pt.evaluation.evaluate import Predictions


@click.command("eval")
@click.argument("engines", metavar="ENGINES", type=click.Path(path_type=Path))
@click.option(
    "--text",
    "texts",
    metavar="FILE|DIR",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    help="Text to predict: a UTF-8 file, or all files in a folder, each of them a text. Can be repeated.",
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    help="Most tokens of context.  [default: what the engine takes]",
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    help="Tokens that each further window predicts; fewer give more context.  [default: --window]",
)
@click.option(
    "--against",
    metavar="ENGINES",
    type=click.Path(path_type=Path),
    help="Other engines with the same tokenizer, to compare with.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads per rank.  [default: cores / ranks]")
@json_option
def command(
    engines: Path,
    texts: tuple[Path, ...],
    window: int | None,
    stride: int | None,
    against: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure how well engines predict text: bits per byte, perplexity and top-1 accuracy.

    Every token is predicted once, from the tokens before it in a window. Bits per byte do not depend on the tokenizer,
    so they can be compared between models; perplexity can only be compared between models with the same tokenizer.
    Each text begins with the tokenizer's first token or else with the end token, which is not predicted.

    \b
    Examples:
      trtllm-pt eval engines/demo --text README.md
      trtllm-pt eval engines/demo --text docs --window 256 --stride 128 --json
      trtllm-pt eval engines/bfloat16 --against engines/float32 --text docs
    """
    if against is not None and launched_ranks() is not None:
        raise UsageError("--against cannot be used under mpirun: start the command alone, and it starts all ranks")
    ours, used = _predictions(engines, texts, window, stride, threads)
    report: dict[str, Any] = {"engine": str(engines), **used, **ours.summary()}
    if against is not None:
        from trtllm_pt.evaluation.compare import compare

        other, _ = _predictions(against, texts, used["window"], used["stride"], threads)
        report["against"] = {"engine": str(against), **other.summary()}
        report["difference"] = compare(ours, other)
    click.echo(json.dumps(report, indent=2) if as_json else _page(report))


def _predictions(
    engines: Path, paths: tuple[Path, ...], window: int | None, stride: int | None, threads: int | None
) -> tuple[Predictions, dict[str, int]]:
    """Return an engine's predictions, and the texts, window and stride that were used."""
    from tqdm import tqdm

    from trtllm_pt.evaluation.evaluate import predict
    from trtllm_pt.evaluation.windows import check_windows
    from trtllm_pt.runtime.llm import LLM
    from trtllm_pt.text.documents import read_texts

    with LLM(engines, threads=threads) as llm:
        limits = llm.manifest.limits
        longest = min(limits.max_input_len, limits.max_seq_len - 1)
        window = window or longest - 1
        stride = stride or window
        check_windows(window, stride, longest)
        texts = read_texts(llm.tokenizer, llm.end_id, paths)
        total = sum(len(text.tokens) - 1 for text in texts)
        with tqdm(total=total, desc=engines.name, unit="token", disable=None) as bar:
            found = predict(llm, texts, window, stride, bar.update)
    return found, {"texts": len(texts), "window": window, "stride": stride}


def _page(report: Mapping[str, Any]) -> str:
    columns = ("tokens", "bytes", "nats_per_token", "perplexity", "bits_per_byte", "top1_accuracy")
    shown = [report, *([report["against"]] if "against" in report else [])]
    rows = [[one["engine"], *(_shown(one[name]) for name in columns)] for one in shown]
    page = table(rows, ["engine", *(name.replace("_", " ") for name in columns)])
    if "difference" not in report:
        return page
    d = report["difference"]
    return (
        f"{page}\n\ndifference: {d['bits_per_byte']:+.5f} bits per byte "
        f"(95 % interval {d['bits_per_byte_low']:+.5f} to {d['bits_per_byte_high']:+.5f}); "
        f"both choose the same token for {d['top1_agreement']:.2%} of the tokens"
    )


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"
