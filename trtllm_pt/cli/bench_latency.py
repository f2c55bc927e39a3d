"""`trtllm-pt bench latency`: static batches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtllm_pt.cli.bench_options import (
    SPELLING,
    batch_size_option,
    combined,
    engines_argument,
    kept,
    length_pairs,
    lengths_option,
    output_csv_option,
    report_option,
    seed_option,
    threads_option,
    whole_numbers,
)
from trtllm_pt.cli.options import json_option
from trtllm_pt.cli.text import table

if TYPE_CHECKING:
    from trtllm_pt.bench.files import Row

_SHOWN = {  # of the row's columns: their heads in the table
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

effort_options = combined(
    click.option("--warm_up", type=click.IntRange(min=0), default=2, show_default=True, help="Runs that do not count."),
    click.option("--num_runs", type=click.IntRange(min=1), default=10, show_default=True, help="Runs at least."),
    click.option(
        "--duration", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds at least, per case."
    ),
)


@click.command("latency", context_settings=SPELLING)
@engines_argument
@batch_size_option
@lengths_option
@effort_options
@click.option("--csv", "as_csv", is_flag=True, help="Print all columns as CSV.")
@json_option
@output_csv_option
@report_option
@threads_option
@seed_option
def command(
    engines: Path,
    batch_size: str,
    input_output_len: str,
    warm_up: int,
    num_runs: int,
    duration: float,
    as_csv: bool,
    as_json: bool,
    output_csv: Path | None,
    report_json: Path | None,
    threads: int | None,
    seed: int,
) -> None:
    """Measure static batches: time to first token, time per token, latency, throughput, and time in all-reduces.

    All prompts of a batch are submitted at once; random tokens, no end token. Every case runs until it has --num_runs
    runs and --duration seconds have gone. Interrupted, it keeps what was measured in the files.

    \b
    Examples:
      trtllm-pt bench latency engines/demo --batch_size "1;8" --input_output_len "128,20;60,20" --duration 5
      mpirun -n 2 python benchmarks/latency.py --engine_dir engines/demo --csv
    """
    from trtllm_pt.bench.batch import Case, Prompts, check_case
    from trtllm_pt.bench.facts import Facts
    from trtllm_pt.bench.files import Results, as_csv_text, as_json_text, check_target
    from trtllm_pt.bench.latency import Effort, measure_cases
    from trtllm_pt.bench.running import running

    cases = [
        Case(size, *pair) for pair in length_pairs(input_output_len) for size in whole_numbers(batch_size, "batch_size")
    ]
    facts = Facts.of(engines)
    for case in cases:
        check_case(facts.manifest, case)
    check_target(output_csv, "--output_csv")
    check_target(report_json, "--report_json")
    rows: list[Row] = []
    results = Results({output_csv: lambda: as_csv_text(rows), report_json: lambda: as_json_text(rows)}, rows)
    prompts, effort = Prompts(facts.model.vocab_size, seed), Effort(warm_up, num_runs, duration)
    with kept(results), running(facts, threads) as runtime:
        for number, row in measure_cases(runtime, facts, cases, prompts, effort):
            rows[number:] = [row]
            results.save()
    if as_csv:
        click.echo(as_csv_text(rows), nl=False)
    elif as_json:
        click.echo(as_json_text(rows), nl=False)
    else:
        click.echo(table([[_cell(row[name]) for name in _SHOWN] for row in rows], list(_SHOWN.values()), left=0))


def _cell(value: object) -> object:
    return "-" if value is None else value
