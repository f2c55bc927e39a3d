"""How well an engine uses a machine: its efficiencies, the time of its host code, and its collectives."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import read_json

_ENGINES = Path(__file__).parent / "engines.json"  # with the source of each number
CALIBRATION = Path(__file__).parent / "calibration.json"


@dataclass(frozen=True, slots=True)
class Engine:
    """Shares of a machine's peak rates, and seconds on the host.

    The last five numbers are fitted by validation/calibrate.py. The others are published.
    """

    name: str
    collectives: tuple[str, ...]  # algorithms of `Machine.all_reduce` that the engine has
    max_num_tokens: int | None  # the largest chunk of a prompt; None if prompts are never split
    wire_dtype: str | None  # type that boundaries send; None for the model's dtype
    attention_efficiency: float  # share of the matrix rate in prefill attention
    memory_efficiency: float  # share of the memory bandwidth for weights and activations
    cache_fraction: float  # share of the memory beside the weights that the KV cache gets
    overlapped_kernels: float = 1.0  # how many times longer kernels take while an all-reduce is under way
    overlapped_bytes: float = 1.0  # how many times longer the bytes of an all-reduce take while kernels run
    # Whether rank 0 sends a step plan before each step. In the other runtimes, `step_seconds` contains that time.
    announces_steps: bool = False

    matrix_efficiency: float = 0.6  # share of the matrix rate in matrix products
    stream_efficiency: float = 0.3  # share of the memory bandwidth for one sequence and KV head
    step_seconds: float = 0.0  # on the host, per forward
    request_seconds: float = 0.0  # on the host, per request before its first token
    token_seconds: float = 0.0  # on the host, per step and sequence after the first


def _unfitted() -> dict[str, Engine]:
    given = read_json(_ENGINES)["engines"]
    return {each["name"]: Engine(**{**each, "collectives": tuple(each["collectives"])}) for each in given}


PLAIN = _unfitted()  # with the defaults instead of fitted numbers
DEFAULT = next(iter(PLAIN))


def engines(path: Path = CALIBRATION) -> dict[str, Engine]:
    """Return all engines with the fitted numbers of a calibration file."""
    fitted = read_json(path)["engines"]
    return {name: replace(engine, **fitted.get(name, {})) for name, engine in PLAIN.items()}


def load_engine(name: str) -> Engine:
    """Return an engine by name. Raises UsageError if the name is unknown."""
    found = engines()
    if name not in found:
        near = difflib.get_close_matches(name, found, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"the engines are {', '.join(found)}"
        raise UsageError(f"unknown engine {name!r}; {hint}")
    return found[name]
