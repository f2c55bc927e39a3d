"""Print the table of a study from its results: what each schedule costs in held-out bits per byte.

    python examples/pretrain/table.py examples/pretrain/study/1m.json

All-reduces and bytes are per forward pass and token, on 8 ranks, with messages in bfloat16. Bits per byte are of all
held-out text after the last step: the mean over the seeds, and the spread from the lowest to the highest if there are
several. The difference is to the first row, over the seeds that both have. Rows without a result are left out.

The last three columns are the time per token over that of tp: measured for a model of 190 million parameters with the
same schedule, in shared memory and over links of 500 us, and predicted by `trtllm-pt plan pt-30b --machine 8xH100`.
These commands measure it:

    trtllm-pt bench compare --ranks 2 --model pt-190m --report_json examples/pretrain/results/speed/shared-memory.json
    trtllm-pt bench netlab --model pt-190m --delays 500 --report_json examples/pretrain/results/speed/links-500us.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from study import RESULTS, result, runs

from trtllm_pt.bench.contenders import slug
from trtllm_pt.errors import UsageError
from trtllm_pt.model.config import TRACKED, ModelConfig
from trtllm_pt.model.cost import active_parameters, collectives, parameters
from trtllm_pt.model.presets import preset
from trtllm_pt.planner import Workload, load_engine, load_machine, plan

_HEAD = (
    "model", "all-reduces", "bytes a token", "parameters (active)", "seeds", "bits per byte", "spread", "difference",
    "in shared memory", "over 500 us", "predicted",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A row of the table. `bits` has held-out bits per byte by seed."""

    name: str
    parameters: int
    active_parameters: int
    tokens: int
    all_reduces: int
    bytes_per_token: int
    bits: dict[int, float]
    shared_memory: float | None  # this and the next two: time per token over that of tp
    links: float | None
    predicted: float | None

    @property
    def mean(self) -> float:
        return sum(self.bits.values()) / len(self.bits)

    def over(self, base: Row) -> float | None:
        """Return the difference to another row in percent, over the seeds that both have."""
        both = self.bits.keys() & base.bits.keys()
        if not both:
            return None
        return 100 * (sum(self.bits[seed] for seed in both) / sum(base.bits[seed] for seed in both) - 1)


def rows(study: Path, results: Path) -> list[Row]:
    """Return the rows of a study that have at least one result, in its order."""
    found: dict[str, Row] = {}
    predicted, (shared, linked) = predictions(), measured(results / "speed")
    for run in runs(study):
        lines = result(study, run, results)
        if lines is None:
            continue
        if run.row not in found:
            name = slug(run.config) if run.plan else None
            reduces = [c for c in collectives(run.config, _ranks(run.config), "bfloat16") if c.kind == "all_reduce"]
            found[run.row] = Row(
                run.row, parameters(run.config), active_parameters(run.config),
                run.recipe.steps * run.recipe.batch_tokens, len(reduces), sum(c.bytes_per_token for c in reduces), {},
                shared.get(name), linked.get(name), predicted[run.plan] if run.plan else None,
            )  # fmt: skip
        found[run.row].bits[run.recipe.seed] = lines[-1]["held_out"]["bits_per_byte"]
    order = list(dict.fromkeys(run.row for run in runs(study)))
    return sorted(found.values(), key=lambda row: order.index(row.name))


def measured(folder: Path) -> tuple[dict[str | None, float], dict[str | None, float]]:
    """Return the measured time per token of each schedule over that of tp: in shared memory, and over slow links."""
    reports = [folder / "shared-memory.json", folder / "links-500us.json"]
    shared, linked = (json.loads(path.read_text()) if path.exists() else {} for path in reports)
    slow = linked["links"][0]["rows"] if linked else []
    return _ratios(shared.get("rows", [])), _ratios(slow)


def _ratios(rows: list[dict[str, Any]]) -> dict[str | None, float]:
    return {row["name"]: row["tpot_ratio"] for row in rows}


def predictions() -> dict[str, float]:
    """Return the predicted time per token of each schedule over that of tp, for a request of 1024 + 128 tokens."""
    made = plan(preset("pt-30b"), load_machine("8xH100"), load_engine("tensorrt_llm"), Workload(1024, 128, 1))
    times = {each.name: each.served.tpot for each in made.predictions if each.served.tpot is not None}
    return {name: time / times["tp"] for name, time in times.items()}


def _ranks(config: ModelConfig) -> int:
    """Return the number of ranks that messages are counted for: 8, or all tracks if there are fewer."""
    return min(8, config.tracks) if config.schedule in TRACKED else 8


def markdown(table: list[Row]) -> str:
    lines = [f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|"]
    for row in table:
        low, high = min(row.bits.values()), max(row.bits.values())
        active = f" ({row.active_parameters:,})" if row.active_parameters != row.parameters else ""
        over = row.over(table[0])
        cells = [
            row.name,
            str(row.all_reduces),
            str(row.bytes_per_token),
            f"{row.parameters:,}{active}",
            str(len(row.bits)),
            f"{row.mean:.3f}",
            f"{low:.3f} to {high:.3f}" if len(row.bits) > 1 else "",
            "" if over is None or row is table[0] else f"{over:+.1f} %",
            *("" if time is None else f"{time:.2f}" for time in (row.shared_memory, row.links, row.predicted)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        table = rows(args.study, args.results)
    except UsageError as error:
        print(f"table.py: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    if not table:
        print(f"{args.study}: no results yet")
    elif args.json:
        print(json.dumps([asdict(row) for row in table], indent=1))
    else:
        print(markdown(table))


if __name__ == "__main__":
    main()
