"""`trtllm-pt eval`: measures how well engines predict text."""

from __future__ import annotations

import contextlib
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
    from trtllm_pt.runtime.llm import LLM


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
    help="Other engines with the same tokenizer, to compare with. Both are loaded at the same time.",
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
    report = _report(engines, against, texts, window, stride, threads)
    click.echo(json.dumps(report, indent=2) if as_json else _page(report))


def _report(
    engines: Path,
    against: Path | None,
    paths: tuple[Path, ...],
    window: int | None,
    stride: int | None,
    threads: int | None,
) -> dict[str, Any]:
    """Return what is known of the engines, and how they differ from others if there are any."""
    from tqdm import tqdm

    from trtllm_pt.evaluation.compare import check_same_tokens, compare
    from trtllm_pt.evaluation.evaluate import predict, predict_both
    from trtllm_pt.evaluation.windows import check_windows
    from trtllm_pt.runtime.llm import LLM
    from trtllm_pt.text.documents import read_texts

    with contextlib.ExitStack() as stack:
        llms = [
            stack.enter_context(LLM(folder, threads=threads)) for folder in (engines, against) if folder is not None
        ]
        longest = min(_longest(llm, whole=against is not None) for llm in llms)
        window = window or longest - 1
        stride = stride or window
        check_windows(window, stride, longest)
        texts, *others = (read_texts(llm.tokenizer, llm.end_id, paths) for llm in llms)
        report: dict[str, Any] = {"engine": str(engines), "texts": len(texts), "window": window, "stride": stride}
        total = sum(len(text.tokens) - 1 for text in texts)
        with tqdm(total=total, desc=engines.name, unit="token", disable=None) as bar:
            if against is None:
                return {**report, **predict(llms[0], texts, window, stride, bar.update).summary()}
            check_same_tokens(texts, *others)
            ours, other, divergences = predict_both(llms[0], llms[1], texts, window, stride, bar.update)
    report = {**report, **ours.summary()}
    report["against"] = {"engine": str(against), **other.summary()}
    report["difference"] = compare(ours, other, divergences)
    return report


def _longest(llm: LLM, whole: bool) -> int:
    """Return the most tokens of a prompt. whole: whether all its logits are wanted."""
    from trtllm_pt.requests.limits import MOST_LOGITS_BYTES

    limits = llm.manifest.limits
    longest = min(limits.max_input_len, limits.max_seq_len - 1)
    return min(longest, MOST_LOGITS_BYTES // 4 // limits.vocab_size) if whole else longest


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
        f"KL divergence {d['kl_divergence']:.3g} nats per token; "
        f"both choose the same token for {d['top1_agreement']:.2%} of the tokens"
    )


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4f}"
