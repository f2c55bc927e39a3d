"""What an engine makes of a machine: its efficiencies, its host's time, its collectives."""

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
    """Shares of a machine's peaks, and seconds of its host. The last five are fitted (calibrate.py), others public."""

    name: str
    collectives: tuple[str, ...]  # algorithms of `Machine.all_reduce` that it can choose from
    max_num_tokens: int | None  # prompts are cut into chunks of so many tokens; None: never cut
    wire_dtype: str | None  # what boundaries send; None: the model's own
    attention_efficiency: float  # of the matrix rate, in prefill attention
    memory_efficiency: float  # of the memory bandwidth, reading weights and activations
    cache_fraction: float  # of the memory that weights leave, for the KV cache
    announces_steps: bool = False  # by a message of rank 0 before each; of other runtimes `step_seconds` has that, too

    matrix_efficiency: float = 0.6  # of the matrix rate, in matrix products
    stream_efficiency: float = 0.3  # of the memory bandwidth, in decode attention of one sequence and KV head
    step_seconds: float = 0.0  # host, per forward
    request_seconds: float = 0.0  # host, per request, before its first token
    token_seconds: float = 0.0  # host, per sequence and step beyond the first sequence


def _unfitted() -> dict[str, Engine]:
    given = read_json(_ENGINES)["engines"]
    return {each["name"]: Engine(**{**each, "collectives": tuple(each["collectives"])}) for each in given}


PLAIN = _unfitted()  # before anything is fitted
DEFAULT = next(iter(PLAIN))


def engines(path: Path = CALIBRATION) -> dict[str, Engine]:
    """Every engine, with the fitted numbers of the calibration file."""
    fitted = read_json(path)["engines"]
    return {name: replace(engine, **fitted.get(name, {})) for name, engine in PLAIN.items()}


def load_engine(name: str) -> Engine:
    """Raises UsageError for an unknown name."""
    found = engines()
    if name not in found:
        near = difflib.get_close_matches(name, found, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(found)}"
        raise UsageError(f"unknown engine {name!r}; {hint}")
    return found[name]
