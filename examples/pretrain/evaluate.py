"""Measure the bits per byte of a MODEL_DIR on held-out (or training) files of the running Python's standard library.

    python examples/pretrain/evaluate.py pretrained/stdlib-pt

<|endoftext|> precedes every file. A file is evaluated in the windows of `trtllm-pt eval`: they predict --length tokens
each, so the context of a token is half a window on average. All bytes of a file count; <|endoftext|> is not predicted.
--write DIR only writes the files to a folder, for `trtllm-pt eval ENGINES --text DIR --window 256`.
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

from trtllm_pt.evaluation.windows import windows
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.network.reference import ReferenceModel


def load_model(path: Path) -> tuple[ReferenceModel, Tokenizer]:
    """Return the reference model in float32 with the weights of a MODEL_DIR, and the tokenizer."""
    model = ReferenceModel(ModelConfig.from_file(path / "config.json"))
    model.load_state_dict({name: weight.float() for name, weight in load_file(path / "model.safetensors").items()})
    return model, Tokenizer.from_file(str(path / "tokenizer.json"))


def rows(ids: list[int], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs of a text's windows, and the tokens to predict or -1, both [N, length]."""
    inputs, wanted = [], []
    for begin, end, predicted in windows(len(ids), length, length):
        own = ids[begin:end]
        padding = length - (len(own) - 1)
        inputs.append(own[:-1] + [0] * padding)
        wanted.append([-1] * (len(own) - 1 - predicted) + own[-predicted:] + [-1] * padding)
    return torch.tensor(inputs), torch.tensor(wanted)


@torch.no_grad()
def nats(model: ReferenceModel, inputs: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the summed cross-entropy of windows, in nats."""
    with torch.autocast("cpu", torch.bfloat16):  # products in bfloat16, as in training; three times faster than float32
        logits = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=-1, reduction="sum").item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--split", choices=("heldout", "train"), default="heldout")
    parser.add_argument("--every", type=int, default=1, help="use only every n-th file of the split")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write the files, and evaluate nothing")
    args = parser.parse_args()
    texts = collect(Path(sysconfig.get_path("stdlib")))
    names = [name for name in texts if is_held_out(name) == (args.split == "heldout")][:: args.every]
    if args.write:
        for name in names:
            (args.write / name).parent.mkdir(parents=True, exist_ok=True)
            (args.write / name).write_text(texts[name])
        return
    torch.set_num_threads(args.threads)
    model, tokenizer = load_model(args.model)
    chosen = [texts[name] for name in names]
    total, tokens, size = 0.0, 0, 0
    for text in tqdm(chosen):
        ids = tokenizer.encode(END + text).ids
        parts = zip(*(part.split(8) for part in rows(ids, args.length)), strict=True)
        total += sum(nats(model, *part) for part in parts)
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
