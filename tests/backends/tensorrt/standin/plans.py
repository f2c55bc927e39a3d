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
from collections.abc import Callable, Mapping
from pathlib import Path

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
Command = Callable[..., subprocess.CompletedProcess[str]]


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


def environment(home: Path) -> Command:
    """`trtllm-pt`, or another module or script, in an environment that has the stand-in.

    Triton's Python models see the packages of their environment alone, and not PYTHONPATH.
    """
    venv.create(home, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    here = sysconfig.get_path("purelib")
    lines = (str(ROOT), f"import site; site.addsitedir({here!r})", "import tests.backends.tensorrt.standin.everywhere")
    (site / "here.pth").write_text("\n".join(lines) + "\n")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # mpirun's
    libraries = str(Path(sys.prefix) / "lib")  # MPI's
    given = {**os.environ, "PATH": path, "LD_LIBRARY_PATH": libraries, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}

    def run(
        *arguments: str | Path, status: int = 0, module: str = "trtllm_pt", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        line = [str(home / "bin" / "python"), "-m", module, *map(str, arguments)]
        done = subprocess.run(
            line, capture_output=True, text=True, env=given | variables, timeout=300, check=False, cwd=ROOT
        )
        assert done.returncode == status, done.stderr
        return done

    return run
