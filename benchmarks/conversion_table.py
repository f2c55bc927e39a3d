"""How near a dense model comes to itself as a model of Parallel Track or delayed tensor parallelism.

    python benchmarks/conversion_table.py MODEL_DIR --tracks 4 --train texts --test held-out [--steps 400] [--json]
    python benchmarks/conversion_table.py --show results.json

Each row is a model with tracks. The columns of the start, before anything is learnt: heads and neurons where the dense
model has them, and rearranged; for Parallel Track also with the outputs of the tracks that `convert-to-pt` starts with,
instead of n times their own parts. Then after distillation on --train, and a model of the same config with random
weights that has learnt the text itself, with the same recipe and as many tokens. All figures are rises of perplexity
above the dense model's on --test.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trtllm_pt.checkpoint.formats import open_source
from trtllm_pt.checkpoint.init import RandomWeights
from trtllm_pt.checkpoint.load import load_reference, reference_of
from trtllm_pt.checkpoint.source import Source
from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.conversion.convert import to_dtp, to_pt
from trtllm_pt.conversion.start import STRENGTH, start
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.layout import over_tracks
from trtllm_pt.network.reference import ReferenceModel
from trtllm_pt.spd.blocks import batches
from trtllm_pt.spd.learning import Lesson, Recipe, learn
from trtllm_pt.spd.windows import read_windows

PARTS = 1e9  # a strength with which the tracks write n times their own parts


def nats(model: ReferenceModel, windows: Tensor) -> float:
    """Return the mean nats per token, with products in bfloat16."""
    with torch.no_grad():
        parts = [windows[some] for some in batches(len(windows), windows.shape[1] - 1)]
        return sum(loss(model, rows).item() * len(rows) for rows in parts) / len(windows)


def loss(model: ReferenceModel, rows: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def narrow(model: ReferenceModel, sample: Tensor, width: int) -> ReferenceModel:
    """Let a dense model keep only the `width` principal components of its residual streams, over all sub-layers.

    Tracks of that width share one such stream, so it bounds what they could start as.
    """
    transformer = model.transformer
    sub_layers = [part for layer in transformer.layers for part in (layer.attention_out, layer.ffn_out)]

    def streams(x: Tensor, kept: Tensor) -> Iterator[Tensor]:
        yield (x := x @ kept)
        for part in sub_layers:
            x = (x + part(x[None])[0]) @ kept
            yield x

    with torch.no_grad():
        whole = streams(F.embedding(sample, transformer.vocab_embedding.weight), torch.eye(model.config.hidden_size))
        read = torch.cat([F.normalize(x.flatten(0, 1)) for x in whole])  # norms read a stream without its length
        basis = torch.linalg.eigh(read.mT @ read).eigenvectors[:, -width:]
    transformer.streams = lambda x: list(streams(x, basis @ basis.mT))[-1]
    return model


def from_scratch(config: ModelConfig, windows: Tensor, recipe: Recipe, folder: Path) -> ReferenceModel:
    """Return a model that had random weights and has learnt from the text itself."""
    model = reference_of(RandomWeights(config, recipe.seed), torch.float32)

    def of(step: int, drawn: Sequence[int]) -> Tensor:
        return loss(model, windows[list(drawn)])

    lesson = Lesson("from scratch", len(windows), windows.shape[1] - 1, 0, of, lambda: math.nan, folder / "state")
    learn(model, recipe, lesson, None)
    return model


def measure(args: argparse.Namespace) -> dict[str, Any]:
    dense = open_source(args.model_dir)
    test = read_windows(dense, [args.test], args.window, args.test_tokens)
    train = read_windows(dense, [args.train], args.window, args.tokens)
    base = nats(reference_of(dense, torch.float32), test)
    recipe = Recipe(args.steps, args.learning_rate, args.batch_tokens)
    sample = train[: max(1, 4096 // args.window), :-1]
    narrowed = {}
    for width in (dense.config.hidden_size // 2, dense.config.hidden_size * 3 // 4):
        narrowed[width] = math.expm1(nats(narrow(reference_of(dense, torch.float32), sample, width), test) - base)
    rows = []
    for field, value in [("block_depth", depth) for depth in args.block_depths] + [("delay", d) for d in args.delays]:
        schedule = "pt" if field == "block_depth" else "dtp"
        config = over_tracks(dense.config, args.tracks, schedule=schedule, **{field: value})
        row: dict[str, Any] = {"schedule": schedule, field: value}

        def rise(model: ReferenceModel | Source) -> float:
            own = model if isinstance(model, ReferenceModel) else reference_of(model, torch.float32)
            return math.expm1(nats(own, test) - base)

        ways = {"as it is": (False, PARTS), "rearranged": (True, PARTS)}
        if schedule == "pt":
            ways["guesses"] = (True, STRENGTH)
        for way, (arranged, strength) in ways.items():
            row[way] = rise(start(dense, config, sample, arranged=arranged, strength=strength))
        with tempfile.TemporaryDirectory() as folder:
            output, convert = Path(folder) / "model", to_pt if schedule == "pt" else to_dtp
            done = convert(
                args.model_dir,
                output,
                args.tracks,
                value,
                [args.train],
                recipe=recipe,
                window=args.window,
                tokens=args.tokens,
            )
            row["distilled"], row["tokens"] = rise(load_reference(output)), done.tokens
            row["from scratch"] = rise(from_scratch(config, train, recipe, Path(folder)))
        rows.append(row)
    command = shlex.join(["python", "benchmarks/conversion_table.py", *sys.argv[1:]])
    return {"command": command, "tracks": args.tracks, "perplexity": math.exp(base), "rows": rows, "narrowed": narrowed}


COLUMNS = ("as it is", "rearranged", "guesses", "distilled", "from scratch")


def page(report: dict[str, Any]) -> str:
    rows = []
    for row in report["rows"]:
        name = f"PT, D = {row['block_depth']}" if row["schedule"] == "pt" else f"DTP, delay {row['delay']}"
        rows.append([name, *(f"{row[each]:+.1%}" if each in row else "" for each in COLUMNS), f"{row['tokens']:,}"])
    head = f"{report['tracks']} tracks: perplexity {report['perplexity']:.4f}"
    widths = ", ".join(f"{width}: {rise:+.1%}" for width, rise in report["narrowed"].items())
    tail = f"The dense model itself with only so many principal components of its stream: {widths}"
    return f"{head}\n\n{table(rows, ['model', *COLUMNS, 'tokens'])}\n\n{tail}"


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path, nargs="?")
    parser.add_argument("--tracks", type=int)
    parser.add_argument("--train", type=Path, help="texts to learn from")
    parser.add_argument("--test", type=Path, help="texts that measure")
    parser.add_argument("--block-depths", type=numbers, default=[1, 2], help="of PT, such as 1,2")
    parser.add_argument("--delays", type=numbers, default=[1], help="of DTP, such as 1,2")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=262144, help="of --train")
    parser.add_argument("--test-tokens", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print the table of what --json has printed")
    args = parser.parse_args()
    if args.show:
        report = json.loads(args.show.read_text())
    elif None in (args.model_dir, args.tracks, args.train, args.test):
        parser.error("MODEL_DIR, --tracks, --train and --test are required")
    else:
        report = measure(args)
    print(json.dumps(report, indent=2) if args.json else page(report))


if __name__ == "__main__":
    run_script(main)
