"""Measure what some tracks of a Parallel Track model know without the others.

    python examples/pretrain/tracks.py pretrained/stdlib-pt --ranks 2

The first table has the bits per byte on held-out text when tracks are lost, other ones for each window: the boundaries
average those that are left.

The second one is for drafts. A rank drafts k tokens with its own tracks alone, without an all-reduce, from a text that
the whole model has read except for its last token. Then the whole model computes the k tokens in one step, and accepts
those before the first that it would not have chosen itself (greedily), as in speculative decoding. A drafted token
takes the computation C of a step, the verification C and the all-reduces S of one. So with A accepted tokens in the
mean, (1 + A) (C + S) against (k + 1) C + S, drafts pay if S / C is larger than (k - A) / A. The last column has that.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import END, collect, is_held_out
from evaluate import load_model, rows
from network import TrainingModel
from ranks import Ranks
from torch import Tensor
from tqdm import tqdm

from trtllm_pt.cli.text import table

BATCH = 16  # windows that are computed at a time


class Texts:
    """Windows of the held-out text: inputs and the tokens to predict or -1, both [N, S], and the bytes of the text."""

    def __init__(self, model_dir: Path, every: int, length: int) -> None:
        reference, tokenizer = load_model(model_dir)
        self.config = reference.config
        self.model = TrainingModel(reference.config, Ranks(), seed=0)
        self.model.share.load_state_dict(reference.state_dict())
        texts = collect(Path(sysconfig.get_path("stdlib")))
        chosen = [texts[name] for name in texts if is_held_out(name)][::every]
        parts = [rows(tokenizer.encode(END + text).ids, length) for text in chosen]
        self.inputs, self.wanted = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        self.bytes = sum(len(text.encode()) for text in chosen)

    @torch.no_grad()
    def logits(self, tokens: Tensor, kept: Tensor | None) -> Tensor:
        """Return the logits [B, S, V] of `tokens` [B, S]; `kept` as in TrainingModel."""
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model(tokens, kept)
            head = self.model.share.lm_head or self.model.share.transformer.vocab_embedding
            return (hidden @ head.weight.mT).float()

    def bits_per_byte(self, lost: int, seed: int) -> float:
        """Return bits per byte when each window loses some tracks, drawn at random."""
        random, nats = np.random.default_rng(seed), 0.0
        for tokens, wanted in zip(self.inputs.split(BATCH), self.wanted.split(BATCH), strict=True):
            place = random.random((self.config.tracks, len(tokens))).argsort(0).argsort(0)
            kept = torch.from_numpy(place >= lost).float()[..., None]
            logits = self.logits(tokens, kept if lost else None).flatten(0, 1)
            nats += torch.nn.functional.cross_entropy(logits, wanted.flatten(), ignore_index=-1, reduction="sum").item()
        return nats / math.log(2) / self.bytes

    def accepted(self, ranks: int, k: int, seed: int) -> Tensor:
        """Return how many of k drafted tokens the whole model accepts, [N], for a place in each full window."""
        full = self.inputs[(self.wanted >= 0).sum(1) > self.inputs.shape[1] // 4]
        random = torch.Generator().manual_seed(seed)
        found = []
        for tokens in full.split(BATCH):
            last = torch.randint(tokens.shape[1] // 4, tokens.shape[1] - k, (len(tokens),), generator=random)
            found.append(self._accepted(tokens.clone(), last, ranks, k))
        return torch.cat(found)

    def _accepted(self, tokens: Tensor, last: Tensor, ranks: int, k: int) -> Tensor:
        """As above; `last` [B] is the place of each text's last token. Overwrites the k tokens after it."""
        batch, place = torch.arange(len(tokens)), torch.arange(tokens.shape[1])
        owner = torch.arange(self.config.tracks) // (self.config.tracks // ranks)
        own = owner[:, None] == batch % ranks  # each row is drafted by another rank, [n, B]
        kept = (own[..., None] | (place < last[:, None])).float()
        for ahead in range(k):
            choice = self.logits(tokens, kept)[batch, last + ahead].argmax(-1)
            tokens[batch, last + ahead + 1] = choice
        places = last[:, None] + torch.arange(k)
        verified = self.logits(tokens, None)[batch[:, None], places].argmax(-1)
        drafted = tokens[batch[:, None], places + 1]
        return (verified == drafted).cumprod(1).sum(1)


def measure(texts: Texts, args: argparse.Namespace) -> dict[str, Any]:
    lost = [n for n in (0, 1, 2, 4) if n < texts.config.tracks]
    bits = {n: [texts.bits_per_byte(n, seed) for seed in range(args.seeds if n else 1)] for n in tqdm(lost)}
    drafts = []
    for k in tqdm([1, 2, 4]):
        found = torch.cat([texts.accepted(args.ranks, k, seed) for seed in range(args.seeds)]).double()
        mean, error = found.mean().item(), found.std().item() / math.sqrt(len(found))
        drafts.append({"k": k, "accepted": mean, "standard_error": error, "drafts": len(found)})
    return {"model": str(args.model), "ranks": args.ranks, "bits_per_byte": bits, "drafts": drafts}


def _pays(draft: dict[str, Any]) -> str:
    k, accepted = draft["k"], draft["accepted"]
    return f"{(k - accepted) / accepted:.2f}" if accepted else "never"


def show(report: dict[str, Any]) -> str:
    bits = {n: sum(each) / len(each) for n, each in report["bits_per_byte"].items()}
    lost = table(
        [(n, f"{each:.3f}", f"{100 * (each / bits[0] - 1):.1f} %") for n, each in bits.items()],
        ("tracks lost", "bits per byte", "rise"),
    )
    drafts = table(
        [(d["k"], f"{d['accepted']:.3f} ± {d['standard_error']:.3f}", _pays(d)) for d in report["drafts"]],
        ("k", "accepted", "pays if S / C is above"),
    )
    return f"{lost}\n\nDrafts of one of {report['ranks']} ranks\n\n{drafts}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a MODEL_DIR, as export.py writes it")
    parser.add_argument("--ranks", type=int, default=2, help="the tracks are divided over so many ranks")
    parser.add_argument("--every", type=int, default=1, help="use only every n-th file of the held-out text")
    parser.add_argument("--length", type=int, default=256, help="tokens of a window")
    parser.add_argument("--seeds", type=int, default=3, help="choices of tracks, and of places for drafts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    texts = Texts(args.model, args.every, args.length)
    if texts.config.schedule != "pt" or texts.config.tracks % args.ranks:
        sys.exit(f"tracks.py: {args.model} must be a Parallel Track model whose tracks ({texts.config.tracks}) "
                 f"--ranks ({args.ranks}) divides")  # fmt: skip
    report = measure(texts, args)
    print(json.dumps(report, indent=1) if args.json else show(report))


if __name__ == "__main__":
    main()
