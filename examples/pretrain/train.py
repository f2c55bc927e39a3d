"""Train the model of a settings file on the tokens of data.py. A run that was stopped goes on from its last state.

    python examples/pretrain/train.py examples/pretrain/stdlib-pt.json --data DATA -o RUN --threads 2
    torchrun --nproc-per-node 2 examples/pretrain/train.py examples/pretrain/stdlib-pt.json --data DATA -o RUN

One process computes the whole model. Several processes divide it, a track or more each (or heads and FFN rows, if the
schedule has one track), and all-reduce where the schedule says. The batch and the learning rate of a step follow from
the settings alone. So a run repeats bit for bit on one machine with the same number of processes and threads, and a
resumed run gives the same weights as an uninterrupted one.

RUN/log.jsonl gets a line with the settings, and one for each measurement on the held-out tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from network import TrainingModel
from parts import is_divided
from ranks import Ranks
from recipe import Kept, Recipe, Tokens, batch, kept_tracks, load
from state import restore, save
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import new_file
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.cost import active_parameters, parameters
from trtllm_pt.model.layout import rank_layout
from trtllm_pt.model.tensors import tensors

SAMPLE = 64  # windows of the held-out tokens that are measured while a run is in progress


class Data:
    """The token files of data.py, and how many bytes of text each token of the vocabulary stands for."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "tokenizer.json").exists():
            raise UsageError(
                f"--data: {folder} holds no tokens; `python examples/pretrain/data.py -o {folder}` makes them"
            )
        self.train: Tokens = np.memmap(folder / "train.bin", np.uint16, "r")
        self.held_out: Tokens = np.memmap(folder / "heldout.bin", np.uint16, "r")
        vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
        # Each character of a byte-level token stands for one byte. <|endoftext|>, token 0, is not text.
        lengths = {index: len(token) if index else 0 for token, index in vocabulary.items()}
        self.bytes = torch.tensor([lengths[index] for index in range(len(lengths))])


class Training:
    """A model in training: its weights, its optimizer, and the step that comes next."""

    def __init__(self, config: ModelConfig, recipe: Recipe, data: Data, ranks: Ranks) -> None:
        if config.vocab_size < len(data.bytes):
            raise UsageError(f"vocab_size ({config.vocab_size}) must be at least that of the data ({len(data.bytes)})")
        if recipe.track_dropout and (config.schedule != "pt" or config.combine != "mean" or config.tracks < 2):
            raise UsageError(f"track_dropout ({recipe.track_dropout}) needs several tracks that schedule 'pt' averages")
        for name, tokens in (("train", data.train), ("heldout", data.held_out)):
            if len(tokens) <= recipe.batch_tokens:
                raise UsageError(
                    f"{name}.bin has {len(tokens)} tokens; it must have more than batch_tokens ({recipe.batch_tokens})"
                )
        self.config, self.recipe, self.data, self.ranks = config, recipe, data, ranks
        self.model = TrainingModel(config, ranks, recipe.seed).to(ranks.device)
        layout, specs = rank_layout(config, ranks.size, ranks.rank), {spec.name: spec for spec in tensors(config)}
        named = dict(self.model.share.named_parameters())
        self.alike = [p for name, p in named.items() if not is_divided(specs[name], config, layout)]
        self.divided = [p for name, p in named.items() if is_divided(specs[name], config, layout)]
        decayed = [p for name, p in named.items() if specs[name].kind not in ("norm", "bias")]
        kept = [p for name, p in named.items() if specs[name].kind in ("norm", "bias")]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
        self.next = 0
        self.mean_loss = 0.0  # recent steps count most

    def step(self) -> float:
        """Run one training step. Returns its loss, the mean cross-entropy of the batch in nats."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.next)
        kept = kept_tracks(self.recipe, self.config.tracks, self.next)
        nats, _ = self._nats(batch(self.data.train, self.recipe, self.next), kept)
        share = nats.sum() / self.recipe.batch_tokens
        share.backward()  # type: ignore[no-untyped-call]
        loss = share.detach().clone()
        self._sum_and_clip_gradients(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.mean_loss = loss.item() if self.next == 0 else 0.98 * self.mean_loss + 0.02 * loss.item()
        self.next += 1
        return loss.item()

    @torch.no_grad()
    def held_out(self, length: int, sample: int | None = None) -> dict[str, float]:
        """Return nats per token and bits per byte of the held-out text, in windows of `length` tokens.

        sample: the number of windows that are measured, evenly spaced; None for all of them that fill whole batches.
        """
        size = self.recipe.batch_tokens // length
        windows = (len(self.data.held_out) - 1) // length // size * size
        chosen = range(windows) if sample is None else np.linspace(0, windows - 1, min(sample, windows)).astype(int)
        rows = np.stack([self.data.held_out[w * length : (w + 1) * length + 1] for w in chosen])
        total = torch.zeros(3, dtype=torch.float64, device=self.ranks.device)  # nats, tokens, bytes
        for first in range(0, len(rows), size):
            nats, targets = self._nats(rows[first : first + size])
            width = self.data.bytes.to(targets.device)[targets]
            text = width > 0
            total += torch.stack([nats[text].double().sum(), text.sum().double(), width.sum().double()])
        self.ranks.sum_([total])
        nats_sum, tokens, size_in_bytes = total.tolist()
        return {"nats_per_token": nats_sum / tokens, "bits_per_byte": nats_sum / math.log(2) / size_in_bytes}

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.share.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "mean_loss": self.mean_loss,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.model.share.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mean_loss, self.next = state["mean_loss"], state["step"]

    def _nats(self, rows: Tokens, kept: Kept | None = None) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of this rank's part of the tokens that `rows` [B, S + 1] predict, and the tokens."""
        tokens = torch.from_numpy(rows.astype(np.int64)).to(self.ranks.device)
        weights = None if kept is None else torch.from_numpy(kept).to(self.ranks.device, torch.float32)
        with self._products():
            hidden = self.model(tokens[:, :-1], weights).flatten(0, 1).tensor_split(self.ranks.size)[self.ranks.rank]
            targets = tokens[:, 1:].flatten().tensor_split(self.ranks.size)[self.ranks.rank]
            return self.model.nats(hidden, targets), targets

    def _products(self) -> AbstractContextManager[None]:
        if self.recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self.ranks.device.type, torch.bfloat16)

    @torch.no_grad()
    def _sum_and_clip_gradients(self, loss: Tensor) -> None:
        """Sum over the ranks what they hold alike, and `loss`. Scale all gradients to a norm of at most `clip`."""
        alike, divided = ([p.grad for p in part if p.grad is not None] for part in (self.alike, self.divided))
        square = torch.stack([grad.square().sum() for grad in divided]).sum() if divided else torch.zeros_like(loss)
        self.ranks.sum_([*alike, loss, square])
        norm = (square + torch.stack([grad.square().sum() for grad in alike]).sum()).sqrt()
        torch._foreach_mul_([*alike, *divided], (self.recipe.clip / (norm + 1e-6)).clamp(max=1.0))


class Log:
    """RUN/log.jsonl, which only the first rank writes. Lines after the step that a run goes on from are dropped."""

    def __init__(self, run: Path, step: int, first: dict[str, Any], writes: bool) -> None:
        self.path, self.writes = run / "log.jsonl", writes
        if not writes:
            return
        lines = self.path.read_text().splitlines() if self.path.exists() and step else []
        kept = [line for line in lines[1:] if _step_of(line) <= step]
        with new_file(self.path) as path:
            path.write_text("".join(f"{line}\n" for line in [json.dumps(first), *kept]))

    def add(self, line: dict[str, Any]) -> None:
        if self.writes:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def _step_of(line: str) -> float:
    """Return the step of a line in a log. A line that was cut off when the run was killed is of no step."""
    try:
        return int(json.loads(line)["step"])
    except ValueError:
        return math.inf


def train(
    config: ModelConfig, recipe: Recipe, data: Data, run: Path, ranks: Ranks, save_every: int = 100,
    eval_every: int = 250, stop: int | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """Train to the end of a recipe, or to the step `stop`. Returns the last line of the log if the run is complete."""
    torch.compiler.reset()  # a study trains many models, and what was compiled for one does not serve the next
    training = Training(config, recipe, data, ranks)
    run.mkdir(parents=True, exist_ok=True)
    if (state := restore(run, ranks)) is not None:
        training.load(state)
    first, last = training.next, min(recipe.steps, stop or recipe.steps)
    counts = {"parameters": parameters(config), "active_parameters": active_parameters(config)}
    settings = {"model": config.to_json(), "recipe": asdict(recipe)}
    facts = {**settings, **counts, "processes": ranks.size, "torch": torch.__version__}
    log = Log(run, first, facts, ranks.rank == 0)
    bar = tqdm(range(first, last), initial=first, total=recipe.steps, mininterval=10, disable=ranks.rank > 0)
    began, line = time.perf_counter(), None
    for _ in bar:
        training.step()
        bar.set_postfix(loss=f"{training.mean_loss:.3f}", refresh=False)
        done = training.next
        if done % eval_every == 0 or done == recipe.steps:
            length = recipe.length(done - 1)
            line = {"step": done, "train_loss": training.mean_loss}
            line["tokens_per_s"] = round(recipe.batch_tokens * (done - first) / (time.perf_counter() - began))
            line["held_out"] = training.held_out(length, None if done == recipe.steps else SAMPLE)
            log.add(line)
        if done % save_every == 0 or done == last:
            save(run, training.state(), done, ranks)
    return line if training.next == recipe.steps else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path, help="JSON: {model, recipe}")
    parser.add_argument("--data", type=Path, required=True, help="the folder that data.py wrote")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="RUN", help="the folder of the run")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--stop", type=int, help="stop before this step, as if the run were interrupted")
    parser.add_argument("--save-every", type=int, default=100, help="steps between two states on disk")
    parser.add_argument("--eval-every", type=int, default=250, help="steps between two measurements")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        config, recipe = load(args.settings)
        data, ranks = Data(args.data), Ranks()
        train(config, recipe, data, args.out, ranks, args.save_every, args.eval_every, args.stop)
        ranks.close()
    except UsageError as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
