"""Engine directories whose plans the stand-in runs, and an environment of Python that has the stand-in."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.backends.tensorrt.standin.cuda import NAME
from tests.backends.tensorrt.standin.plan_file import Shape, StandInPlan
from trtllm_pt.backends.manifest import BuildOptions
from trtllm_pt.backends.registry import backends
from trtllm_pt.backends.tensorrt.build import _config
from trtllm_pt.backends.tensorrt.compile_rank import BuiltRank, plan_file
from trtllm_pt.backends.tensorrt.interpreter.networks import networks
from trtllm_pt.backends.tensorrt.interpreter.program import Program
from trtllm_pt.backends.tensorrt.profiles import Profile, profiles_of, slot_size_of
from trtllm_pt.checkpoint.manifest import CheckpointManifest

ROOT = Path(__file__).parents[4]
VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}


def build(checkpoint: Path, folder: Path, builder: str = "tensorrt", **options: int) -> Path:
    """What `trtllm-pt build` writes, but for the plans."""
    manifest = CheckpointManifest.from_dir(checkpoint)
    capacity = BuildOptions(**options).resolved(manifest.model)  # type: ignore[arg-type]
    folder.mkdir(parents=True)
    for rank, program in enumerate(networks(checkpoint, slot_size_of(capacity.max_seq_len))):
        profiles = [_sizes(program, profile) for profile in profiles_of(capacity)]
        plan = StandInPlan(program, profiles, VERSIONS[builder], manifest.ranks)
        plan_file(folder, rank).write_bytes(pickle.dumps(plan))
    built = [BuiltRank(rank=rank, seconds=1.0, bytes=1, collectives={}) for rank in range(manifest.ranks)]
    targets = ["sm89"] if builder == "tensorrt_rtx" else [NAME]
    versions = {builder: VERSIONS[builder]}
    config = _config(backends()["tensorrt"], manifest, capacity, versions, built, targets)
    (folder / "config.json").write_text(json.dumps(config))
    if (checkpoint / "tokenizer").is_dir():
        shutil.copytree(checkpoint / "tokenizer", folder / "tokenizer")
    return folder


def _sizes(program: Program, profile: Profile) -> Mapping[str, tuple[Shape, ...]]:
    dimensions = {"tokens": ("slots", "each"), "positions": ("slots", "each"), "last": ("rows",)}
    return {
        value.name: profile.shapes(value.shape, dimensions.get(value.name, ("slots", *[""] * (len(value.shape) - 1))))
        for value in program.inputs
    }


class Command:
    """`trtllm-pt`, or another module, in an environment at `home` that has the stand-in.

    Triton's Python models see the packages of their environment alone, and not PYTHONPATH.
    """

    def __init__(self, home: Path) -> None:
        venv.create(home, with_pip=False, symlinks=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
        here = sysconfig.get_path("purelib")
        install = "import tests.backends.tensorrt.standin.everywhere"
        (site / "here.pth").write_text(f"{ROOT}\nimport site; site.addsitedir({here!r})\n{install}\n")
        self.python = home / "bin" / "python"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # mpirun's
        libraries = str(Path(sys.prefix) / "lib")  # MPI's
        self.environment = {"PATH": path, "LD_LIBRARY_PATH": libraries, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}

    def start(self, *arguments: str | Path, module: str = "trtllm_pt", **variables: str) -> subprocess.Popen[str]:
        line = [str(self.python), "-m", module, *map(str, arguments)]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, env=os.environ | self.environment | variables, cwd=ROOT, **pipes)

    def __call__(
        self, *arguments: str | Path, status: int | None = 0, module: str = "trtllm_pt", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end. status: the one that it must exit with; None: any."""
        with self.start(*arguments, module=module, **variables) as process:
            try:
                out, err = process.communicate(timeout=300)
            finally:
                process.kill()
        assert status is None or process.returncode == status, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
