"""`trtllm-pt bench latency`: measure static batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtllm_pt.cli.bench_options import (
    case_options,
    engines_argument,
    grouped,
    output_options,
    seed_option,
    threads_option,
)
from trtllm_pt.cli.hosts_options import hosts_options
from trtllm_pt.cli.measurement import Output, View, measuring
from trtllm_pt.cli.text import table

if TYPE_CHECKING:
    from trtllm_pt.bench.results import Row
    from trtllm_pt.bench.static_batch import Case, Effort

_SHOWN = {  # the columns that are shown to people, and their headings
    "batch_size": "batch",
    "input_length": "in",
    "output_length": "out",
    "ttft(ms)": "TTFT ms",
    "tpot(ms)": "TPOT ms",
    "latency(ms)": "latency ms",
    "percentile95(ms)": "p95",
    "percentile99(ms)": "p99",
    "tokens_per_sec": "tokens/s",
    "peak_mem(gb)": "peak GB",
    "syncs_per_token": "syncs",
    "all_reduce_share": "all-reduce share",
    "num_runs": "runs",
}


def _effort(warm_up: int, num_runs: int, duration: float) -> Effort:
    from trtllm_pt.bench.static_batch import Effort

    return Effort(warm_up, num_runs, duration)


@click.command("latency")
@engines_argument
@case_options
@grouped(
    "effort",
    _effort,
    click.option("--warm_up", type=click.IntRange(min=0), default=2, show_default=True, help="Warm-up runs per case."),
    click.option(
        "--num_runs",
        type=click.IntRange(min=1),
        default=10,
        show_default=True,
        help="Least number of runs per case.",
    ),
    click.option(
        "--duration",
        type=click.FloatRange(min=0),
        default=60.0,
        show_default=True,
        help="Least measuring time per case, in seconds.",
    ),
)
@output_options("--csv", "--json", "--output_csv", "--report_json")
@threads_option
@hosts_options
@seed_option
def command(engines: Path, cases: list[Case], effort: Effort, output: Output, threads: int | None, seed: int) -> None:
    """Measure static batches: time to first token, time per token, latency, throughput, and time in all-reduces.

    All prompts of a batch are submitted at once. They are random tokens without an end token. Each case runs until
    both --num_runs and --duration are reached. If the command is interrupted, the files keep what was measured.

    \b
    Examples:
      trtllm-pt bench latency engines/demo --batch_size "1;8" --input_output_len "128,20;60,20" --duration 5
      mpirun -n 2 python benchmarks/latency.py --engine_dir engines/demo --csv
    """
    from trtllm_pt.bench.facts import Facts
    from trtllm_pt.bench.jobs import running
    from trtllm_pt.bench.static_batch import Prompts, check_case, measure_cases

    facts = Facts.of(engines)
    for case in cases:
        check_case(facts.manifest, case)
    rows: list[Row] = []
    view = View(report=lambda: rows, rows=lambda: rows, page=_page)
    prompts = Prompts(facts.model.vocab_size, seed)
    with measuring(output, view, rows) as results, running(facts, threads) as runtime:
        for number, row in measure_cases(runtime, facts, cases, prompts, effort):
            rows[number:] = [row]
            results.save()


def _page(rows: Sequence[Row]) -> str:
    cells = [["-" if row[name] is None else row[name] for name in _SHOWN] for row in rows]
    return table(cells, list(_SHOWN.values()), left=0)
