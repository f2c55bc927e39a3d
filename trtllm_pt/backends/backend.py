"""The interface of a backend: one way to build engines from checkpoints and to run them.

A backend is a class in a folder of its own. The rest of the package calls the methods of an engine's backend and never
depends on which backend it is. `registry.py` finds the backends of this package and of other packages.
docs/extending.md shows how to write a backend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from trtllm_pt.backends.checks import Check
from trtllm_pt.backends.manifest import BuildOptions, Capacity, EngineManifest
from trtllm_pt.batching.follow import Follower
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError
from trtllm_pt.model import cost
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.requests.fields import FIELDS, given_numbers
from trtllm_pt.requests.messages import Runtime, SamplingParams
from trtllm_pt.requests.speculation import draft_tokens

if TYPE_CHECKING:
    from mpi4py import MPI

    from trtllm_pt.checkpoint.source import Source

REBUILD = "run `trtllm-pt build` again"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """The result of a build."""

    path: Path  # the engine directory
    ranks: int
    seconds: float
    cache: str | None = None  # "hit" or "miss" of the cache of compiled graphs, None for a backend without such a cache


@dataclass(frozen=True, slots=True)
class BuildOption:
    """An option of `trtllm-pt build` that a backend adds to the common ones.

    type: int, str, bool for a flag without a value, or a tuple of the values to choose from.
    help: None leaves the option out of the help's list, and its last lines mention only the option's name.
    """

    name: str
    type: type[int] | type[str] | type[bool] | tuple[str, ...] = str
    aliases: tuple[str, ...] = ()
    help: str | None = None


class RankRuntime(Runtime, Protocol):
    """The runtime on rank 0 of a running engine."""

    pids: list[int]  # the process id of each rank
    hosts: list[str]  # the name of the machine of each rank

    @property
    def busy(self) -> bool:
        """Whether requests are in flight or `poll` has messages to return."""
        ...

    def release(self) -> None:
        """Stop the other ranks, when a script exits without calling `close` or after a failure."""


class Channel(Follower, Protocol):
    """Work that rank 0 starts on the other ranks, independently of the engines that run in the same processes."""

    def order(self) -> None:
        """On rank 0, start the work on the other ranks."""

    def stop(self) -> None:
        """On rank 0, make the other ranks stop waiting for work on this channel."""


class SharedRanks(Protocol):
    """Runs several engines in the same processes, for comparisons. Only some backends can do this.

    Engines in one process are measured under the same conditions, which two separate jobs never are.
    """

    def load(self, comm: MPI.Intracomm, folder: Path | None = None) -> None:
        """Load the backend's native code into the process of every rank.

        folder: the engine directory to load it from. None compiles it, unless it is in the cache.
        """

    def open(
        self, folders: Sequence[Path], threads: int | None, kv_tokens: int, beside: Sequence[Follower] = ()
    ) -> list[Runtime] | None:
        """Open several engine directories in the ranks of this job. All must have the same number of ranks.

        Rank 0 gets the runtimes. The other ranks follow them and the followers in `beside` until rank 0 has closed all
        of them, and then get None.
        """

    def channel(self, comm: MPI.Intracomm, work: Callable[[], object]) -> Channel:
        """Return a channel on which rank 0 makes the other ranks run `work`."""

    def all_reduce(self, comm: MPI.Intracomm, numbers: int) -> tuple[Callable[[], object], Callable[[], float]]:
        """Return two functions: one sums `numbers` float32 ones per rank with the engine's all-reduce, the other
        returns the first number of the last result."""


class Backend(ABC):
    """One way to build and run engines. Instances have no state."""

    name: ClassVar[str]  # the value of `--engine` and of engine.backend in config.json
    title: ClassVar[str]  # the backend's name in messages, such as "the embedded engine"
    format: ClassVar[int] = 1  # format number of its engine directories; raise it when older ones can no longer be run
    preference: ClassVar[int] = 0  # `--engine auto` takes the available backend with the largest preference
    options: ClassVar[tuple[BuildOption, ...]] = ()  # options of `trtllm-pt build` in addition to the common ones
    mpi_hint: ClassVar[str] = "mpi4py and an MPI library"  # what to install for more than one rank
    start_seconds: ClassVar[float] = 120.0  # time limit for all ranks to load the engine
    stop_seconds: ClassVar[float] = 5.0  # time limit for all ranks to exit
    builds_on_hosts: ClassVar[bool] = False  # whether `build` divides its work among the processes of an mpirun
    keeps_tied_head: ClassVar[bool] = True  # whether a tied output head takes memory in addition to the embedding
    scheduling_policy: ClassVar[str | None] = None  # description for benchmark reports
    drafts: ClassVar[bool] = False  # whether its runtime has speculative decoding
    triton_backend: ClassVar[str] = "python"  # the Triton backend that serves it; "python" runs our Python model
    triton_omits: ClassVar[frozenset[str]] = frozenset()  # inputs of TensorRT-LLM's model that it does not have there
    shared_ranks: ClassVar[SharedRanks | None] = None  # None: only one engine at a time can run in a process

    @property
    def report_name(self) -> str:
        """The backend's name in the reports of `bench throughput`."""
        return self.name

    @property
    def planner_engine(self) -> str:
        """The name of the planner's model of this backend."""
        return self.name

    def unavailable(self) -> str | None:
        """Return why `--engine auto` does not choose this backend on this machine, or None if it runs here."""
        return None

    def available(self) -> str:
        """Return the reason why `--engine auto` takes the backend, when `unavailable` returns None."""
        return f"{self.title} runs here"

    def checks(self) -> Sequence[Check]:
        """Return the checks that `trtllm-pt doctor` makes for this backend."""
        return ()

    @abstractmethod
    def build(self, checkpoint: Path, output: Path, options: BuildOptions, progress: bool | None = None) -> BuildReport:
        """Build an engine for every rank of a checkpoint. `output` appears complete or not at all.

        progress: whether to show a bar on stderr; None shows it on a terminal.
        Raises UsageError for a checkpoint or options that cannot be built, before anything slow begins.
        """

    def recognises(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """Return whether an engine directory whose config.json names no backend belongs to this backend."""
        return False

    def read(self, folder: Path, config: Mapping[str, Any], found: EngineManifest) -> EngineManifest:
        """Return the manifest of an engine directory of this backend. `found` has the values common to all backends.

        Raises UsageError for options that contradict each other or the model.
        """
        return found

    def versions(self) -> Mapping[str, str]:
        """Return the versions, by package, that must be the same where an engine is built and where it runs."""
        return {}

    def check_versions(self, folder: Path, manifest: EngineManifest) -> None:
        """Raise UsageError for an engine of another format, or one built with other versions than are installed."""
        if manifest.format != self.format:
            raise self.other_format(folder, manifest)
        for package, here in self.versions().items():
            if (built := manifest.versions.get(package)) != here:
                raise UsageError(f"{folder} was built with {package} {built}, but {here} is installed: {REBUILD}")

    def other_format(self, folder: Path, manifest: EngineManifest) -> UsageError:
        """Return the error for an engine directory of another format."""
        found = "no format number" if manifest.format is None else f"format {manifest.format}"
        return UsageError(f"{folder} has {found}, but this trtllm-pt reads engines of format {self.format}: {REBUILD}")

    @abstractmethod
    def open_rank(
        self, folder: Path, manifest: EngineManifest, *, threads: int | None, kv_tokens: int | None, draft_tokens: int
    ) -> RankRuntime | None:
        """Join the ranks of an engine directory and load this process's rank.

        Rank 0 gets the engine's runtime. The other ranks run the engine with it until it closes, and then get None.
        threads: threads per rank; None divides the machine's cores by the ranks. kv_tokens: tokens that fit into the KV
        cache; None chooses a size that fits into memory. draft_tokens: the most tokens of a draft in speculative
        decoding; 0, always if `drafts` is False: none. Raises UsageError for an engine that cannot run here.
        """

    def draft_tokens(self, speculative: str | None) -> int:
        """Return the most tokens of a draft for what a user asked for, such as `ngram`; 0: no drafts.

        Raises UsageError if it is unknown, or if this backend has no speculative decoding.
        """
        count = draft_tokens(speculative)
        if count and not self.drafts:
            raise UsageError(f"speculative ({speculative!r}) is not supported by {self.title}; leave it out")
        return count

    def weights(self, folder: Path, manifest: EngineManifest) -> Source:
        """Return the weights of an engine directory, bit for bit as its checkpoint had them.

        Raises UsageError for a backend whose engines do not keep them.
        """
        raise UsageError(
            f"the weights of {folder} cannot be read back from {self.title}; use the checkpoint from which it was built"
        )

    def problems(self, sampling: SamplingParams) -> Iterable[str]:
        """Yield one sentence for each sampling field that this backend does not support."""
        return ()

    def triton_problems(self, sampling: SamplingParams) -> Iterator[str]:
        """Yield one sentence for each sampling field that this backend does not support in Triton."""
        yield from self.problems(sampling)
        if self.triton_backend == "python":
            return
        others = ((field, getattr(sampling, field.name)) for field in FIELDS if field.schedules)
        for field, value in (*given_numbers(sampling), *others):
            if value != field.default and (field.tensor is None or field.tensor in self.triton_omits):
                yield f"{field.name} ({value!r}) must be {field.default!r} with {self.title} in Triton"

    def collectives(self, model: ModelConfig, ranks: int, dtype: str) -> Sequence[cost.Collective]:
        """Return every message between ranks in a forward pass."""
        return cost.collectives(model, ranks, dtype, logits_dtype=dtype)

    def triton_parameters(self, manifest: EngineManifest) -> Mapping[str, str]:
        """Return parameters of Triton's engine model that differ from those that follow from the manifest."""
        return {}

    def manifest(self, checkpoint: CheckpointManifest, capacity: Capacity) -> EngineManifest:
        """Return the manifest of an engine that this installation builds."""
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
    """Raise UsageError if a rank's file or a tensor is missing, or a tensor has another shape or dtype."""
    from trtllm_pt.checkpoint.ranks import open_rank

    missing = manifest.missing_ranks(checkpoint)
    if missing:
        raise UsageError(f"{checkpoint} is incomplete: rank{missing[0]}.safetensors is missing")
    for rank in range(manifest.ranks):
        open_rank(checkpoint, manifest, rank)
