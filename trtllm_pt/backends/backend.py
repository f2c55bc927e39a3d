"""What a backend is: one way to build engines from checkpoints and to run them.

A backend is a class in a folder of its own. Everything else in the package asks the backend of an engine directory,
and never which backend it is. `registry.py` finds backends, those of other packages too; docs/extending.md shows how to
write one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from trtllm_pt.backends.checks import Check
from trtllm_pt.backends.manifest import BuildOptions, Capacity, EngineManifest
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError
from trtllm_pt.model import cost
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.requests.messages import Runtime, SamplingParams

if TYPE_CHECKING:
    from mpi4py import MPI

REBUILD = "run `trtllm-pt build` again"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did."""

    path: Path
    ranks: int
    seconds: float
    cache: str | None = None  # "hit" or "miss" of the compiled graph's cache; None: this backend has no such cache


@dataclass(frozen=True, slots=True)
class BuildOption:
    """One option of `trtllm-pt build` that a backend adds to the common ones.

    type: int, str, bool for a flag without a value, or the values to choose from. help: None leaves the
    option out of the help's list; its name then stands in the help's last lines.
    """

    name: str
    type: type[int] | type[str] | type[bool] | tuple[str, ...] = str
    aliases: tuple[str, ...] = ()
    help: str | None = None


class RankRuntime(Runtime, Protocol):
    """The runtime protocol on rank 0 of a running engine."""

    pids: list[int]  # the process of every rank

    @property
    def busy(self) -> bool:
        """Whether requests are in flight or messages wait for `poll`."""
        ...

    def release(self) -> None:
        """End the other ranks when a script exits without `close`, or after a failure."""


class Follower(Protocol):
    """What the ranks other than 0 do for rank 0: an engine's steps, or another series of orders."""

    @property
    def waiting(self) -> bool:
        """Whether an order of rank 0 has arrived."""
        ...

    def run_next(self) -> bool:
        """Carry out the next order of rank 0. Returns False once rank 0 has stopped."""
        ...


class Channel(Follower, Protocol):
    """Orders of rank 0 to the other ranks, beside those of engines that run in the same processes."""

    def order(self) -> None:
        """On rank 0: have the other ranks do their part now."""

    def stop(self) -> None:
        """On rank 0: the other ranks stop following this channel."""


class SharedRanks(Protocol):
    """What a backend offers whose engines can run several at a time in the same processes, for comparisons.

    Several engines in one process see the same machine at the same moment, which no two jobs do.
    """

    def load(self, comm: MPI.Intracomm, folder: Path | None = None) -> None:
        """Load the backend's native code into the process of every rank, from an engine directory or built anew."""

    def open(
        self, folders: Sequence[Path], threads: int | None, kv_tokens: int, beside: Sequence[Follower] = ()
    ) -> list[Runtime] | None:
        """Open engines of equally many ranks in the ranks of this job.

        On rank 0: their runtimes. The other ranks follow them and what is `beside` them until rank 0 has closed all,
        and then get None.
        """

    def channel(self, comm: MPI.Intracomm, work: Callable[[], object]) -> Channel:
        """A channel that has the ranks other than 0 run `work` when rank 0 orders it."""

    def all_reduce(self, comm: MPI.Intracomm, numbers: int) -> tuple[Callable[[], object], Callable[[], float]]:
        """The engine's own all-reduce (sum) of `numbers` float32 ones per rank: a call, and the first number of the
        last call's result."""


class Backend(ABC):
    """One way to build and run engines. Instances have no state."""

    name: ClassVar[str]  # the value of `--engine`, and of config.json's engine.backend
    title: ClassVar[str]  # in messages: "the embedded engine"
    format: ClassVar[int] = 1  # of its engine directories; to be raised when older ones can no longer be run
    preference: ClassVar[int] = 0  # `--engine auto` takes the available backend with the largest
    options: ClassVar[tuple[BuildOption, ...]] = ()  # of `trtllm-pt build`, beside the common ones
    mpi_hint: ClassVar[str] = "mpi4py and an MPI library"  # what more than one rank needs
    start_seconds: ClassVar[float] = 120.0  # in which all ranks must have loaded the engine
    stop_seconds: ClassVar[float] = 5.0  # in which they must have exited
    keeps_tied_head: ClassVar[bool] = True  # a tied output head takes memory of its own
    scheduling_policy: ClassVar[str | None] = None  # in words, for benchmark reports
    triton_backend: ClassVar[str] = "python"  # "python": our Python model runs it; else the name of a Triton backend
    shared_ranks: ClassVar[SharedRanks | None] = None

    @property
    def report_name(self) -> str:
        """Its name in the reports of `bench throughput`."""
        return self.name

    @property
    def planner_engine(self) -> str:
        """The planner's model of this engine."""
        return self.name

    def unavailable(self) -> str | None:
        """Why `--engine auto` does not take it on this machine; None: it can build and run engines here."""
        return None

    def available(self) -> str:
        """Why `--engine auto` takes it, where `unavailable` finds nothing."""
        return f"{self.title} runs here"

    def checks(self) -> Sequence[Check]:
        """What `trtllm-pt doctor` looks at for this backend."""
        return ()

    @abstractmethod
    def build(self, checkpoint: Path, output: Path, options: BuildOptions, progress: bool | None = None) -> BuildReport:
        """Build an engine for every rank of a checkpoint; nothing stands at `output` unless it is whole.

        progress: a bar on stderr; None: where that is a terminal. Raises UsageError for what cannot be built, before
        anything slow begins.
        """

    def recognises(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Whether an engine directory with this config.json, which names no backend, is one of its own."""
        return False

    def read(self, folder: Path, config: Mapping[str, Any], found: EngineManifest) -> EngineManifest:
        """The manifest of one of its directories, from what config.json says about every engine.

        Raises UsageError for options that contradict each other or the model.
        """
        return found

    def versions(self) -> Mapping[str, str]:
        """Versions, by package, that must be the same where an engine is built and where it runs."""
        return {}

    def check_versions(self, folder: Path, manifest: EngineManifest) -> None:
        """Raises UsageError for an engine of another format, or built with other versions than those here."""
        if manifest.format != self.format:
            raise self.other_format(folder, manifest)
        for package, here in self.versions().items():
            if (built := manifest.versions.get(package)) != here:
                raise UsageError(f"{folder} was built with {package} {built}, but {here} is installed: {REBUILD}")

    def other_format(self, folder: Path, manifest: EngineManifest) -> UsageError:
        """The error for an engine directory of another format."""
        found = "no format number" if manifest.format is None else f"format {manifest.format}"
        return UsageError(f"{folder} has {found}, but this trtllm-pt reads engines of format {self.format}: {REBUILD}")

    @abstractmethod
    def open_rank(
        self, folder: Path, manifest: EngineManifest, *, threads: int | None, kv_tokens: int | None
    ) -> RankRuntime | None:
        """Join the ranks of an engine directory and load this process's rank.

        Rank 0 gets the engine's runtime. The other ranks work for it until it closes, and then get None. threads: per
        rank; None: the machine's cores divided by the ranks. kv_tokens: tokens that the KV cache has room for; None:
        what fits. Raises UsageError for an engine that cannot run here.
        """

    def problems(self, sampling: SamplingParams) -> Iterable[str]:
        """One sentence for each sampling field that this backend cannot honour."""
        return ()

    def collectives(self, model: ModelConfig, ranks: int, dtype: str) -> Sequence[cost.Collective]:
        """Every message between ranks in a forward."""
        return cost.collectives(model, ranks, dtype, logits_dtype=dtype)

    def triton_parameters(self, manifest: EngineManifest) -> Mapping[str, str]:
        """Parameters of Triton's engine model that differ from what the manifest says."""
        return {}

    def manifest(self, checkpoint: CheckpointManifest, capacity: Capacity) -> EngineManifest:
        """That of an engine which is built here and now."""
        return EngineManifest(
            backend=self,
            checkpoint=checkpoint,
            options=capacity,
            versions=dict(self.versions()),
            format=self.format,
        )

    def __repr__(self) -> str:
        return f"<backend {self.name}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        return type(self), ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


def check_files(checkpoint: Path, manifest: CheckpointManifest) -> None:
    """Raises UsageError for a rank's file or tensor that is missing, has another shape or another dtype."""
    from trtllm_pt.checkpoint.ranks import open_rank

    missing = manifest.missing_ranks(checkpoint)
    if missing:
        raise UsageError(f"{checkpoint} is incomplete: rank{missing[0]}.safetensors is missing")
    for rank in range(manifest.ranks):
        open_rank(checkpoint, manifest, rank)
