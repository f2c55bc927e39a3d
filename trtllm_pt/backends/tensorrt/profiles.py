"""The two shapes of a step: a decode step of all slots, and a chunk of one sequence's prompt.

Each is an optimization profile of its own, because TensorRT's attention reads the KV cache in place only where the
number of tokens is fixed at 1. Both share the weights of the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trtllm_pt.backends.manifest import Capacity

_TYPICAL_CHUNK = 512  # the number of tokens for which the kernels of a prefill are chosen
_SCORED_ROWS = 64  # the most tokens of a prompt whose logits are computed in a step, for their log-probs
_SLOT_MULTIPLE = 64  # positions; see slot_size_of
DECODE, PREFILL = 0, 1  # the numbers of the profiles in a plan
Sizes = tuple[int, int, int]  # the least, the typical and the most


@dataclass(frozen=True, slots=True)
class Profile:
    """The sizes of a step's inputs."""

    name: str
    slots: Sizes
    each: Sizes  # tokens of each slot
    rows: Sizes  # tokens whose logits are computed

    def shapes(self, shape: Sequence[int], names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the least, the typical and the most shape of an input. names: of the sizes of its axes of size -1."""
        sizes = {"slots": self.slots, "each": self.each, "rows": self.rows}
        axes = [sizes[name] if size == -1 else (size,) * 3 for size, name in zip(shape, names, strict=True)]
        return tuple(zip(*axes, strict=True))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def profiles_of(capacity: Capacity) -> tuple[Profile, Profile]:
    """Return the profiles of an engine, in the order of their numbers in the plan.

    A prefill step has one row of logits, for the next token, or more if log-probs of the prompt are wanted.
    """
    chunk, slots = min(capacity.max_num_tokens, capacity.max_seq_len), capacity.max_batch_size
    many = (1, slots, slots)
    return (
        Profile("decode", slots=many, each=(1, 1, 1), rows=many),
        Profile(
            "prefill",
            slots=(1, 1, 1),
            each=(1, min(_TYPICAL_CHUNK, chunk), chunk),
            rows=(1, 1, min(_SCORED_ROWS, chunk)),
        ),
    )


def slot_size_of(max_seq_len: int) -> int:
    """Return the positions of a slot of the KV cache: max_seq_len, rounded up.

    The memory of a slot has to begin at a multiple of 256 bytes, as TensorRT demands it of the address of an input.
    """
    return -(-max_seq_len // _SLOT_MULTIPLE) * _SLOT_MULTIPLE


def add_profile(builder: Any, network: Any, config: Any, profile: Profile) -> None:
    """Add an optimization profile to TensorRT's config. Every dynamic axis of an input has the name of its size."""
    made = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
        made.set_shape(tensor.name, *profile.shapes(tuple(tensor.shape), names))
    config.add_optimization_profile(made)
