"""The settings file of a training run, {model, recipe}, and what follows from it for each step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import ModelConfig, read_json, unknown_key

Tokens = np.ndarray[Any, np.dtype[np.uint16]]
Kept = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. A batch has `batch_tokens` tokens, divided into sequences of equal length."""

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
    track_dropout: float = 0.0  # the share of the sequences that lose tracks (see `kept_tracks`)
    precision: str = "bfloat16"  # of the products; weights, residual streams and sums are float32

    def length(self, step: int) -> int:
        """Return the length of the sequences of a step, in tokens."""
        return self.sequence_length if step < self.steps - self.decay_steps else self.decay_sequence_length

    def rate(self, step: int) -> float:
        """Return the learning rate of a step. The length of the plateau can be changed while a run is in progress."""
        rise, fall = (step + 1) / self.warmup_steps, (self.steps - step) / max(1, self.decay_steps)
        return self.learning_rate * min(1.0, rise, fall)


def load(path: Path) -> tuple[ModelConfig, Recipe]:
    """Read a settings file. Raises UsageError for an unknown key, a missing one or an invalid value."""
    data = read_json(path)
    for key in data:
        if key not in ("model", "recipe"):
            raise unknown_key(key, ("model", "recipe"), str(path))
    return ModelConfig.from_json(data.get("model", {})), recipe_of(data.get("recipe", {}))


def recipe_of(data: dict[str, Any]) -> Recipe:
    """Return the recipe of a JSON object. Raises UsageError as `load` does."""
    fields = {field.name: field for field in dataclasses.fields(Recipe)}
    for key in data:
        if key not in fields:
            raise unknown_key(key, fields, "the recipe")
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in data]
    if missing:
        raise UsageError(f"the recipe lacks {', '.join(map(repr, missing))}")
    recipe = Recipe(**(data | {"betas": tuple(data.get("betas", Recipe.betas))}))
    for name in ("steps", "warmup_steps", "batch_tokens", "sequence_length", "decay_sequence_length"):
        value = getattr(recipe, name)
        if not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} ({value!r}) must be a whole number of at least 1")
    for length in (recipe.sequence_length, recipe.decay_sequence_length):
        if recipe.batch_tokens % length:
            raise UsageError(
                f"batch_tokens ({recipe.batch_tokens}) must be a multiple of the sequence length ({length})"
            )
    if not 0 <= recipe.track_dropout <= 1:
        raise UsageError(f"track_dropout ({recipe.track_dropout!r}) must be a number from 0 to 1")
    if recipe.precision not in ("bfloat16", "float32"):
        raise UsageError(f"precision ({recipe.precision!r}) must be 'bfloat16' or 'float32'")
    return recipe


def batch(tokens: Tokens, recipe: Recipe, step: int) -> Tokens:
    """Return the batch of a step, [B, S + 1]: windows of a shuffled pass over `tokens`.

    It is a function of the recipe and the step alone. Each pass has its own order and its own offset of the windows.
    """
    length = recipe.length(step)
    count = recipe.batch_tokens // length
    windows = (len(tokens) - 1) // length - 1
    starts = []
    for index in range(step * count, (step + 1) * count):
        turn, place = divmod(index, windows)
        offset, order = _order(recipe.seed, length, turn, windows)
        starts.append(offset + order[place] * length)
    return np.stack([tokens[s : s + length + 1] for s in starts])


def kept_tracks(recipe: Recipe, tracks: int, step: int) -> Kept | None:
    """Return which tracks count at the block boundaries of a step, [tracks, B, 1], or None if all of them do.

    A sequence that loses tracks keeps a number of them between 1 and tracks - 1, each as likely as the others, and the
    same tracks at every boundary: those that a rank alone has, or those that are left when ranks have died.
    """
    if not recipe.track_dropout:
        return None
    random = np.random.default_rng((recipe.seed, step))
    sequences = recipe.batch_tokens // recipe.length(step)
    count = np.where(random.random(sequences) < recipe.track_dropout, random.integers(1, tracks, sequences), tracks)
    place = random.random((tracks, sequences)).argsort(0).argsort(0)
    kept: Kept = (place < count)[..., None]
    return kept


@lru_cache(maxsize=2)
def _order(seed: int, length: int, turn: int, windows: int) -> tuple[int, Any]:
    random = np.random.default_rng((seed, length, turn))
    return int(random.integers(length)), random.permutation(windows)
