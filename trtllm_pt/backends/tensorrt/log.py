"""Read TensorRT's log: why it refuses something, and which collectives the compiled plan has."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from types import ModuleType
from typing import Any

# A description of a compiled layer, such as "Name: lm_head.all_gather.363 [profile 1]_myl1_104, LayerType:
# comm_allgather, …". The first profile has no mark. The compiler adds the last part to our name.
_COLLECTIVE = re.compile(
    r"^Name: (?P<name>\S+?)(?: \[profile (?P<profile>\d+)\])?(?:_myl\d+_\d+)?, LayerType: (?P<kind>comm_\w+)",
    re.MULTILINE,
)
# Places in TensorRT's sources, such as "[graphShapeAnalyzer.cpp::analyzeShapes::2084] Error Code 4: ".
_PLACE = re.compile(
    r"\w+::\w+: |\[[\w.]+:+ ?\w+:+ ?\w+\] |Error Code \d+: | ?In \w+ at /\S+:\d+|\w+\.(?:cpp|h):\d+: |\(\w+ Error in "
)


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective of a compiled plan."""

    name: str  # the name of our layer
    kind: str  # the compiler's word, such as comm_allreduce
    profile: int


class Log:
    """What TensorRT logs while a network is defined and compiled."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.collectives: list[Collective] = []  # in the order in which the log has them

    def listen(self, trt: ModuleType) -> Any:
        """Return TensorRT's logger, which writes here from now on.

        TensorRT uses the first logger of a process for all that follow, so a process has only one.
        """
        logger = _logger(trt)
        logger.log_of_now = self
        return logger

    def take(self, severity: str, message: str) -> None:
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(message)
        for found in _COLLECTIVE.finditer(message):
            self.collectives.append(Collective(found["name"], found["kind"], int(found["profile"] or 0)))

    def reason(self) -> str:
        """Return the first error on one line, without its place in TensorRT's sources."""
        if not self.errors:
            return "it gives no reason"
        return _PLACE.sub("", " ".join(self.errors[0].split())).strip()


@functools.cache
def _logger(trt: ModuleType) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # the bindings have no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.log_of_now = Log()

        def log(self, severity: Any, message: str) -> None:
            self.log_of_now.take(severity.name, message)

    return Logger()
