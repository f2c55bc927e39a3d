"""A backend from outside the package: its engine answers a prompt by counting up from the prompt's last token."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from trtllm_pt.backends.backend import Backend, BuildOption, BuildReport
from trtllm_pt.backends.manifest import BuildOptions, EngineManifest
from trtllm_pt.checkpoint.manifest import CheckpointManifest
from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import new_folder, write_json
from trtllm_pt.job.world import World
from trtllm_pt.model.config import read_json
from trtllm_pt.requests.messages import Request, Stats, Tokens


class ToyBackend(Backend):
    name = "toy"
    title = "the toy engine"
    options = (BuildOption("step", int, help="How far it counts at a time."),)

    def build(self, checkpoint: Path, output: Path, options: BuildOptions, progress: bool | None = None) -> BuildReport:
        began = time.monotonic()
        manifest = CheckpointManifest.from_dir(checkpoint)
        engine = self.manifest(manifest, options.resolved(manifest.model))
        with new_folder(output) as folder:
            shutil.copytree(checkpoint / "tokenizer", folder / "tokenizer")
            write_json(folder / "config.json", engine.to_json() | {"step": options.extra.get("step", 1)})
        return BuildReport(path=output, ranks=manifest.ranks, seconds=time.monotonic() - began)

    def versions(self) -> Mapping[str, str]:
        return {"toy": "1"}

    def open_rank(
        self, folder: Path, manifest: EngineManifest, *, threads: int | None, kv_tokens: int | None, draft_tokens: int
    ) -> ToyRuntime | None:
        world = World.join(manifest.ranks, self.mpi_hint)
        runtime = ToyRuntime(manifest, world, read_json(folder / "config.json")["step"])
        if world.rank == 0:
            return runtime
        world.broadcast(None)  # until rank 0 closes
        return None


class ToyRuntime:
    """Every token of every request comes with the next poll."""

    def __init__(self, manifest: EngineManifest, world: World, step: int) -> None:
        self._manifest, self._world, self._step = manifest, world, step
        self.pids = world.gather_all(os.getpid())
        self.hosts = world.gather_all(socket.gethostname())
        self._requests: list[Request] = []
        self._prompt_tokens = self._output_tokens = self._steps = 0
        self._closed = False

    @property
    def busy(self) -> bool:
        return bool(self._requests)

    def submit(self, request: Request) -> None:
        self._manifest.limits.check(request)
        self._requests.append(request)
        self._prompt_tokens += len(request.token_ids)

    def cancel(self, request_id: int) -> None:
        self._requests = [request for request in self._requests if request.id != request_id]

    def poll(self, timeout: float) -> list[Tokens]:
        if self._closed:
            raise UsageError("this engine is closed")
        messages = [message for request in self._requests for message in self._answer(request)]
        self._requests = []
        self._steps += 1
        return messages

    def _answer(self, request: Request) -> list[Tokens]:
        count = self._manifest.limits.length(request) - len(request.token_ids)
        last, vocabulary = request.token_ids[-1], self._manifest.model.vocab_size
        tokens = tuple((last + self._step * (i + 1)) % vocabulary for i in range(count))
        self._output_tokens += count
        return [*(Tokens(id=request.id, token_ids=(token,)) for token in tokens[:-1]),
                Tokens(id=request.id, token_ids=tokens[-1:], finish_reason="length")]  # fmt: skip

    def stats(self) -> Stats:
        return Stats(
            steps=self._steps,
            active_requests=len(self._requests),
            waiting_requests=0,
            preemptions=0,
            kv_pages_total=1,
            kv_pages_used=0,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            sync_points_seen=None,
            hops_per_step=None,
        )

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._world.broadcast(None)

    release = close
