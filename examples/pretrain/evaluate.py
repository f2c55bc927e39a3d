"""Measure the bits per byte of a MODEL_DIR on held-out (or training) files of the running Python's standard library.

    python examples/pretrain/evaluate.py pretrained/stdlib-pt

<|endoftext|> precedes every file. A file is evaluated in windows of --length tokens that do not overlap, so the context
of a token is half a window on average. All bytes of a file count; <|endoftext|> is not predicted.
"""

from __future__ import annotations

import argparse
import json
import math
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from data import END, collect, is_held_out
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tqdm import tqdm

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.network.reference import ReferenceModel


def load_model(path: Path) -> tuple[ReferenceModel, Tokenizer]:
    """Return the reference model in float32 with the weights of a MODEL_DIR, and the tokenizer."""
    model = ReferenceModel(ModelConfig.from_file(path / "config.json"))
    model.load_state_dict({name: weight.float() for name, weight in load_file(path / "model.safetensors").items()})
    return model, Tokenizer.from_file(str(path / "tokenizer.json"))


def windows(ids: list[int], length: int) -> torch.Tensor:
    """Return windows of tokens, [N, length + 1], padded with -1. A window starts with the previous one's last token."""
    rows = [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]
    return torch.tensor([row + [-1] * (length + 1 - len(row)) for row in rows])


@torch.no_grad()
def nats(model: ReferenceModel, rows: torch.Tensor) -> float:
    """Return the summed cross-entropy of windows, in nats. rows: [N, length + 1], padded with -1."""
    with torch.autocast("cpu", torch.bfloat16):  # products in bfloat16, as in training; three times faster than float32
        logits = model(rows[:, :-1].clamp(min=0))
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), ignore_index=-1, reduction="sum").item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--split", choices=("heldout", "train"), default="heldout")
    parser.add_argument("--every", type=int, default=1, help="use only every n-th file of the split")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_model(args.model)
    texts = collect(Path(sysconfig.get_path("stdlib")))
    chosen = [text for name, text in texts.items() if is_held_out(name) == (args.split == "heldout")][:: args.every]
    total, tokens, size = 0.0, 0, 0
    for text in tqdm(chosen):
        ids = tokenizer.encode(END + text).ids
        total += sum(nats(model, part) for part in windows(ids, args.length).split(8))
        tokens += len(ids) - 1
        size += len(text.encode())
    report = {
        "split": args.split,
        "files": len(chosen),
        "bytes": size,
        "tokens": tokens,
        "window": args.length,
        "nats_per_token": round(total / tokens, 4),
        "bits_per_byte": round(total / math.log(2) / size, 4),
    }
    print(json.dumps(report) if args.json else "\n".join(f"{name:15}{value}" for name, value in report.items()))


if __name__ == "__main__":
    main()
