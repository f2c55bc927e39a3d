"""Measure how fast train.py is here, in turn with train.py of another commit.

    python examples/pretrain/speed.py examples/pretrain/stdlib-pt.json --data build/pretrain/data --before 26f65fb

Each round trains a short and a long run of new weights with each of the two, so start and compilation, which both runs
have, do not count. The first round only fills the caches of compiled code.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import median

from recipe import load

ROOT = Path(__file__).parents[2]


def seconds(root: Path, arguments: list[str], processes: int, steps: int) -> float:
    """Return how long the train.py of a source tree takes for new weights and so many steps."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as out:
        last = ["-o", out, "--stop", str(steps), "--save-every", "100000", "--eval-every", "100000"]
        command = [*launcher, str(root / "examples/pretrain/train.py"), *arguments, *last]
        began = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"speed.py: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--before", required=True, metavar="COMMIT", help="the commit to compare with")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60, help="steps by which the long run is longer")
    args = parser.parse_args()
    _, recipe = load(args.settings)
    arguments = [str(args.settings.resolve()), "--data", str(args.data.resolve())]
    archive = subprocess.run(["git", "archive", args.before, "trtllm_pt", "examples"], cwd=ROOT, capture_output=True)
    if archive.returncode:
        sys.exit(f"speed.py: --before ({args.before}) must be a commit of {ROOT}: {archive.stderr.decode().strip()}")
    with tempfile.TemporaryDirectory() as before:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tree:
            tree.extractall(before, filter="data")
        rates: dict[str, list[float]] = {args.before: [], "now": []}
        for number in range(args.rounds + 1):
            for name, root in ((args.before, Path(before)), ("now", ROOT)):
                short = seconds(root, arguments, args.processes, 5)
                long = seconds(root, arguments, args.processes, 5 + args.steps)
                if number:
                    rates[name].append(args.steps * recipe.batch_tokens / (long - short))
                    print(f"round {number}  {name:10} {rates[name][-1]:8.0f} tokens/s", flush=True)
    ratios = [now / then for then, now in zip(*rates.values(), strict=True)]
    print(
        f"now: {median(rates['now']):.0f} tokens/s, {median(ratios):.2f} times {args.before} (median of {args.rounds})"
    )


if __name__ == "__main__":
    main()
