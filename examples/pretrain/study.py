"""Train every model of a study that has no result yet: equal parameters, equal tokens, one schedule after the other.

    python examples/pretrain/study.py examples/pretrain/study/1m.json --data build/pretrain/data-1024

A study is a JSON file {model, recipe, seeds, rows}: what all rows share, and for each row what differs. First every row
is trained with the first seed, then with the next. A run that is stopped goes on where it was. Each result is the log
of its run, RESULTS/STUDY/ROW-seedN.jsonl; table.py prints them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ranks import Ranks
from recipe import Recipe, recipe_of

from trtllm_pt.errors import UsageError
from trtllm_pt.files.atomic import new_file
from trtllm_pt.model.config import ModelConfig, read_json, unknown_key

RESULTS = Path(__file__).parent / "results"
_ROW = ("model", "recipe", "seeds", "plan")


@dataclass(frozen=True)
class Run:
    """One training run of a study."""

    row: str
    config: ModelConfig
    recipe: Recipe
    plan: str | None  # the row of `trtllm-pt plan` with the same schedule

    @property
    def name(self) -> str:
        return f"{self.row}-seed{self.recipe.seed}"

    def is_of(self, line: dict[str, Any]) -> bool:
        """Return whether the first line of a log has this run's settings. What it does not have, has its default."""
        return ModelConfig.from_json(line["model"]) == self.config and recipe_of(line["recipe"]) == self.recipe


def runs(study: Path) -> list[Run]:
    """Return the runs of a study, in the order in which they are trained. Raises UsageError for an invalid study."""
    data = read_json(study)
    rows: dict[str, dict[str, Any]] = data.get("rows", {})
    for row, own in rows.items():
        for key in own:
            if key not in _ROW:
                raise unknown_key(key, _ROW, f"row {row!r} of {study}")
    return list(_runs(data, rows))


def _runs(data: dict[str, Any], rows: dict[str, dict[str, Any]]) -> Iterator[Run]:
    for seed in data["seeds"]:
        for row, own in rows.items():
            if seed in own.get("seeds", data["seeds"]):
                config = ModelConfig.from_json(data["model"] | own.get("model", {}))
                recipe = recipe_of(data["recipe"] | own.get("recipe", {}) | {"seed": seed})
                yield Run(row, config, recipe, own.get("plan"))


def result_file(study: Path, run: Run, results: Path = RESULTS) -> Path:
    return results / study.stem / f"{run.name}.jsonl"


def result(study: Path, run: Run, results: Path = RESULTS) -> list[dict[str, Any]] | None:
    """Return the lines of a run's result, or None if it has not been trained.

    Raises UsageError if the result is of other settings.
    """
    path = result_file(study, run, results)
    if not path.exists():
        return None
    lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    if not run.is_of(lines[0]):
        raise UsageError(f"{path} was trained with other settings than {study} has; remove it to train the run again")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="JSON: {model, recipe, seeds, rows}")
    parser.add_argument("--data", type=Path, required=True, help="the folder that data.py wrote")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=Path("build/pretrain/study"), help="states of unfinished runs")
    parser.add_argument("--only", help="train this row alone")
    parser.add_argument("--keep", action="store_true", help="keep the folders of finished runs, for export.py")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    try:
        chosen = [run for run in runs(args.study) if args.only in (None, run.row)]
        missing = [run for run in chosen if result(args.study, run, args.results) is None]
        train_all(args.study, missing, args)
    except UsageError as error:
        print(f"study.py: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def train_all(study: Path, missing: list[Run], args: argparse.Namespace) -> None:
    """Train runs one after the other, and keep each one's log when it is complete."""
    import torch
    from train import Data, train  # imports much that table.py does not need

    torch.set_num_threads(args.threads)
    data, ranks = Data(args.data), Ranks()
    for number, run in enumerate(missing, start=1):
        folder = args.work / study.stem / run.name
        print(f"{run.name}, run {number} of {len(missing)}", flush=True)
        train(run.config, run.recipe, data, folder, ranks)
        target = result_file(study, run, args.results)
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_file(target) as path:
            shutil.copy(folder / "log.jsonl", path)
        if not args.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
