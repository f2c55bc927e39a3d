"""The loop in which weights learn on windows of text: repeatable, and resumed where a killed process has stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from trtllm_pt.files.atomic import new_file

_REPORTS = 10  # of the held-out loss; the state is saved as often
_CLIP = 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How weights learn: AdamW without weight decay, a short warm-up and a linear decay of the learning rate."""

    steps: int = 400
    learning_rate: float = 1e-3
    batch_tokens: int = 2048
    seed: int = 0

    def rate(self, step: int) -> float:
        return self.learning_rate * min(1.0, (step + 1) / (0.05 * self.steps + 1), (self.steps - step) / self.steps)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a module learns.

    windows, length: the windows that it learns from, and the tokens of one. stream: the random stream of their order.
    loss: of the windows with these numbers at this step. held_out: the loss on windows that it does not learn from.
    state: the file that keeps the state until the lesson is over.
    """

    name: str
    windows: int
    length: int
    stream: int
    loss: Callable[[int, Sequence[int]], Tensor]
    held_out: Callable[[], float]
    state: Path


def learn(module: nn.Module, recipe: Recipe, lesson: Lesson, hide_bar: bool | None) -> None:
    """Train all parameters of a module, from the saved state if there is one.

    The windows of a step depend on the seed, the stream and the step alone, so a process that was killed in between
    changes nothing: the weights are the same bits on one machine with one number of threads.
    hide_bar: None shows the progress bar on a terminal.
    """
    module.requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    first = _resume(module, optimizer, lesson.state)
    count = max(1, recipe.batch_tokens // lesson.length)
    steps = range(first, recipe.steps)
    with tqdm(steps, lesson.name, recipe.steps, False, initial=first, disable=hide_bar, unit="step") as bar:
        for step in bar:
            order = np.random.default_rng((recipe.seed, lesson.stream, step)).permutation(lesson.windows)
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(step)
            loss = lesson.loss(step, sorted(order[:count].tolist()))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(module.parameters(), _CLIP)
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % max(1, recipe.steps // _REPORTS) == 0:
                if not bar.disable:  # the held-out loss takes as long as many steps
                    bar.set_postfix(loss=f"{loss.item():.4f}", held_out=f"{lesson.held_out():.4f}")
                _save(module, optimizer, step + 1, lesson.state)
    module.requires_grad_(False)


def _resume(module: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> int:
    """Load the state, and return the step that comes next."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    step: int = state["step"]
    return step


def _save(module: nn.Module, optimizer: torch.optim.Optimizer, step: int, path: Path) -> None:
    with new_file(path) as new:
        torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, new)
