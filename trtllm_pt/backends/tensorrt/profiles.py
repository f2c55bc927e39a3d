"""The two shapes of a step: a decode step of all slots, and a chunk of one sequence's prompt.

Each is an optimization profile of its own, because TensorRT's attention reads the KV cache in place only where the
number of tokens is fixed at 1. Both share the weights of the plan.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trtllm_pt.backends.manifest import Capacity

_TYPICAL_CHUNK = 512  # the number of tokens for which the kernels of a prefill are chosen
Sizes = tuple[int, int, int]  # the least, the typical and the most


@dataclass(frozen=True, slots=True)
class Profile:
    """The sizes of a step's inputs. A step has one row of logits for each slot."""

    name: str
    slots: Sizes
    each: Sizes  # tokens of each slot

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def profiles_of(capacity: Capacity) -> tuple[Profile, Profile]:
    """Return the profiles of an engine, in the order of their numbers in the plan."""
    chunk, slots = min(capacity.max_num_tokens, capacity.max_seq_len), capacity.max_batch_size
    return (
        Profile("decode", slots=(1, slots, slots), each=(1, 1, 1)),
        Profile("prefill", slots=(1, 1, 1), each=(1, min(_TYPICAL_CHUNK, chunk), chunk)),
    )


def add_profile(builder: Any, network: Any, config: Any, profile: Profile) -> None:
    """Add an optimization profile to TensorRT's config. Every dynamic axis of an input has the name of its size."""
    sizes = {"slots": profile.slots, "each": profile.each, "rows": profile.slots}
    made = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        tensor = network.get_input(number)
        axes = [
            sizes[tensor.get_dimension_name(axis)] if size == -1 else (size,) * 3
            for axis, size in enumerate(tuple(tensor.shape))
        ]
        made.set_shape(tensor.name, *zip(*axes, strict=True))
    config.add_optimization_profile(made)
