"""Compare how well trtllm_pt and other engines ("peers") predict text with weights in 16, 8 or 4 bits.

    python benchmarks/peers_quality.py MODEL_DIR --text trtllm_pt/model --bits 8 [--peers NAME …] [--windows 16]

MODEL_DIR is a model of the Llama family in bfloat16. Every engine converts it as `python benchmarks/peers.py` does, and
predicts each token of the same windows from those before it in the window. The table shows bits per byte, and the
difference to that of our engine in bfloat16. The weights of quantised models and, in some engines, the rounding of
activations to 8 bits make up the difference.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from peers import FOLDER, PEERS, PYTHONS, QUANTIZE, Bench, of_bits, python_for
from transformers import AutoTokenizer

from trtllm_pt.cli import run_script
from trtllm_pt.cli.text import table
from trtllm_pt.errors import UsageError


def windows_of(model: Path, text: Path, length: int, count: int) -> tuple[list[list[int]], int]:
    """Return the first windows of a text, or of all Python files of a folder, and the bytes that are predicted."""
    files = sorted(text.rglob("*.py")) if text.is_dir() else [text]
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokens = tokenizer("\n".join(file.read_text() for file in files))["input_ids"][: length * count]
    windows = [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]
    if not windows:
        raise UsageError(f"--text ({text}) has {len(tokens)} tokens, fewer than --window ({length})")
    return windows, sum(len(tokenizer.decode(window[1:]).encode()) for window in windows)


def bits_per_byte(nats: Sequence[float], count: int) -> float:
    return sum(nats) / math.log(2) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="a Llama in bfloat16")
    parser.add_argument("--text", type=Path, required=True, help="a file, or a folder of Python files")
    parser.add_argument("--bits", type=int, default=8, choices=QUANTIZE, help="bits of the weights of all engines [8]")
    parser.add_argument("--peers", nargs="+", choices=PEERS, metavar="NAME", help="[all installed ones in these bits]")
    parser.add_argument("--window", type=int, default=256, help="tokens of a window [256]")
    parser.add_argument("--windows", type=int, default=16, help="windows [16]")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pythons", type=Path, nargs="+", default=PYTHONS, help="other Pythons that may have peers")
    args = parser.parse_args()
    if not (args.model / "config.json").is_file():
        raise UsageError(f"{args.model} has no config.json, so it is no model directory")
    windows, count = windows_of(args.model, args.text, args.window, args.windows)
    FOLDER.mkdir(parents=True, exist_ok=True)
    name, pythons = args.model.resolve().name, tuple(args.pythons)
    if not (hf := FOLDER / f"{name}.hf").exists():
        hf.symlink_to(args.model.resolve())
    rows, plain = [], 0.0
    for bits in dict.fromkeys((16, args.bits)):
        with Bench(args.threads, pythons, bits).ours(name) as side:
            found = bits_per_byte(side.nats(windows), count)
        plain = plain or found
        rows.append([f"trtllm_pt {QUANTIZE[bits] or 'bfloat16'}", f"{found:.4f}", f"{found - plain:+.4f}"])
    for peer in args.peers or of_bits(args.bits):
        if python_for(PEERS[peer].needs, pythons) is None:
            print(f"{peer} is left out: no Python has {PEERS[peer].needs}", file=sys.stderr)
            continue
        with Bench(args.threads, pythons, args.bits).peer(peer, name) as side:
            found = bits_per_byte(side.nats(windows), count)
        rows.append([peer, f"{found:.4f}", f"{found - plain:+.4f}"])
    print(f"{len(windows)} windows of {args.window} tokens, {count} bytes")
    print(table(rows, ["engine", "bits per byte", "difference"]))


if __name__ == "__main__":
    run_script(main)
