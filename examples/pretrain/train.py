"""Train the model of a config on the tokens of data.py. A run that was stopped resumes from its last checkpoint.

    torchrun --nproc-per-node 2 examples/pretrain/train.py examples/pretrain/stdlib-pt.json --data DATA -o RUN

Processes of one thread share every batch. On a busy machine, processes wait for each other once per step, but threads
would wait in every operation. The batch and the learning rate of step i are functions of the recipe and i alone. So a
run repeats bit for bit on one machine with the same number of processes, and a resumed run produces the same weights as
an uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.tensors import tensors
from trtllm_pt.network.reference import ReferenceModel


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run. A batch has `batch_tokens` tokens, divided into sequences of equal length."""

    steps: int
    decay_steps: int  # the last steps, in which the learning rate falls linearly to 0
    warmup_steps: int
    learning_rate: float
    batch_tokens: int
    sequence_length: int
    decay_sequence_length: int  # in the last decay_steps steps, which are enough to learn longer contexts
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    seed: int = 0

    def length(self, step: int) -> int:
        """Return the length of the sequences of a step, in tokens."""
        return self.sequence_length if step < self.steps - self.decay_steps else self.decay_sequence_length

    def rate(self, step: int) -> float:
        """Return the learning rate of a step. The length of the plateau can be changed while a run is in progress."""
        rise, fall = (step + 1) / self.warmup_steps, (self.steps - step) / max(1, self.decay_steps)
        return self.learning_rate * min(1.0, rise, fall)


def load(path: Path) -> tuple[ModelConfig, Recipe]:
    """Read a JSON file {model, recipe}."""
    data = json.loads(path.read_text())
    return ModelConfig.from_json(data["model"]), Recipe(**data["recipe"])


def batch(tokens: np.ndarray[Any, Any], recipe: Recipe, step: int) -> Tensor:
    """Return the batch of a step, [B, S + 1]: windows of a shuffled pass over `tokens`.

    Each pass has its own order, and its own offset of the windows.
    """
    length = recipe.length(step)
    count = recipe.batch_tokens // length
    windows = (len(tokens) - 1) // length - 1
    starts = []
    for index in range(step * count, (step + 1) * count):
        turn, place = divmod(index, windows)
        random = np.random.default_rng((recipe.seed, length, turn))
        starts.append(random.integers(length) + random.permutation(windows)[place] * length)
    return torch.from_numpy(np.stack([tokens[s : s + length + 1] for s in starts]).astype(np.int64))


def initialise(model: ReferenceModel, seed: int) -> None:
    """Draw normally distributed weights, different ones for every track.

    The weights of output projections are larger by sqrt(tracks) if the mean of a boundary divides them by tracks.
    """
    config, values = model.config, dict(model.named_parameters())
    random = torch.Generator().manual_seed(seed)
    boost = math.sqrt(config.tracks) if config.schedule == "pt" and config.combine == "mean" else 1.0
    for spec in tensors(config):
        value = values[spec.name]
        with torch.no_grad():
            if spec.kind == "norm":
                value.fill_(1.0)
            elif spec.kind == "bias":
                value.zero_()
            else:
                deviation = 0.05 if spec.kind == "embedding" else spec.fan_in**-0.5
                if spec.kind == "output":
                    deviation *= boost / math.sqrt(2 * config.num_layers)
                value.normal_(0.0, deviation, generator=random)


def optimizer_of(model: ReferenceModel, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW with weight decay for all parameters except norms and biases."""
    kinds = {spec.name: spec.kind for spec in tensors(model.config)}
    decayed = [p for name, p in model.named_parameters() if kinds[name] not in ("norm", "bias")]
    kept = [p for name, p in model.named_parameters() if kinds[name] in ("norm", "bias")]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def loss_of(model: ReferenceModel, rows: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats. Products are in bfloat16; the residual streams and sums are in float32."""
    # For short sequences on a CPU, unfused attention is faster than the fused kernel, whose backward pass is slow.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        logits = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def average_gradients(model: ReferenceModel) -> None:
    """Average the gradients over all processes with one all-reduce."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


@torch.no_grad()
def held_out_loss(model: ReferenceModel, tokens: np.ndarray[Any, Any], length: int, windows: int = 64) -> float:
    """Return nats per token over a fixed sample of windows, to report progress. evaluate.py measures all files."""
    starts = np.linspace(0, len(tokens) - length - 1, windows).astype(int)
    rows = torch.from_numpy(np.stack([tokens[s : s + length + 1] for s in starts]).astype(np.int64))
    return sum(loss_of(model, part).item() for part in rows.split(8)) / math.ceil(windows / 8)


def save(path: Path, state: dict[str, Any]) -> None:
    """Replace a checkpoint atomically: a run that is killed meanwhile keeps the previous checkpoint."""
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="JSON: {model, recipe}")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="threads of each process")
    parser.add_argument("--stop", type=int, help="stop before this step, as if the run were interrupted")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--eval-every", type=int, default=250)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # despite its name, the setting also applies to CPUs
    config, recipe = load(args.config)
    train = np.memmap(args.data / "train.bin", np.uint16, "r")
    held_out = np.memmap(args.data / "heldout.bin", np.uint16, "r")

    model = ReferenceModel(config)
    initialise(model, recipe.seed)
    optimizer = optimizer_of(model, recipe)
    args.out.mkdir(parents=True, exist_ok=True)
    path, first = args.out / "state.pt", 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    last = min(recipe.steps, args.stop or recipe.steps)
    compiled_loss = torch.compile(loss_of, dynamic=False)  # makes fewer passes over memory, and is cached on disk
    bar, mean = tqdm(range(first, last), initial=first, total=recipe.steps, mininterval=10, disable=rank > 0), 0.0
    began = time.perf_counter()
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        loss = compiled_loss(model, batch(train, recipe, step).chunk(ranks)[rank])
        loss.backward()
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.item() if step == first else 0.98 * mean + 0.02 * loss.item()
        bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
        done = step + 1
        if rank > 0:
            continue
        if done % args.save_every == 0 or done == last:
            save(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done})
        if done % args.eval_every == 0 or done == recipe.steps:
            rate = recipe.batch_tokens * (done - first) / (time.perf_counter() - began)
            report = {"step": done, "train_loss": mean, "tokens_per_s": rate}
            report["held_out_loss"] = held_out_loss(model, held_out, recipe.sequence_length)
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(report) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
