"""`trtllm-pt bench compare`: schedules against tensor parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_pt.cli.bench_options import (
    SPELLING,
    batch_size_option,
    engines_dir_option,
    kept,
    length_pairs,
    lengths_option,
    model_config,
    model_options,
    output_csv_option,
    plot_option,
    report_option,
    seed_option,
    threads_option,
    whole_numbers,
)
from trtllm_pt.cli.options import json_option
from trtllm_pt.cli.text import count, table
from trtllm_pt.errors import UsageError

if TYPE_CHECKING:
    from trtllm_pt.bench.batch import Case
    from trtllm_pt.bench.contenders import Contender


@click.command("compare", context_settings=SPELLING)
@click.argument("engines", metavar="[[NAME=]ENGINES]...", nargs=-1)
@model_options
@engines_dir_option
@click.option("--ranks", "-g", type=click.IntRange(min=1), help="Ranks to start, where mpirun did not.  [default: 2]")
@batch_size_option
@lengths_option
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True, help="Samples of each engine.")
@plot_option
@json_option
@output_csv_option
@report_option
@threads_option
@seed_option
def command(
    engines: tuple[str, ...],
    model: str | None,
    schedules: str | None,
    ranks: int | None,
    dtype: str,
    engines_dir: Path,
    batch_size: str,
    input_output_len: str,
    rounds: int,
    plots: tuple[Path, ...],
    as_json: bool,
    output_csv: Path | None,
    report_json: Path | None,
    threads: int | None,
    seed: int,
) -> None:
    """Compare engines sample by sample in turn, in one run, with ratios to the first and their spread.

    With --model: dense tensor parallelism first, then Parallel Track with D = 1, 2, 4, 8 and every other schedule, at
    equal parameters, with random weights. All use the same collective on the same ranks.

    \b
    Examples:
      mpirun -n 2 python benchmarks/compare.py --model pt-190m --batch_size "1;8" --input_output_len 512,32
      trtllm-pt bench compare --ranks 2 --model pt-150m --schedules "pt-d4;desync-2" --plot pt-150m.svg
      mpirun -n 2 trtllm-pt bench compare tp=engines/dense pt=engines/demo
    """
    if bool(engines) == (model is not None):
        raise UsageError("give either engines to compare, the baseline first, or --model")
    if schedules is not None and model is None:
        raise UsageError("--schedules belongs to --model")
    from trtllm_pt.bench.batch import Case, check_case
    from trtllm_pt.bench.compare import Samples, measure, report, rows
    from trtllm_pt.bench.contenders import same_size
    from trtllm_pt.bench.files import Results, as_csv_text, as_json_text, check_target
    from trtllm_pt.bench.plots import plot_comparison
    from trtllm_pt.bench.progress import bar
    from trtllm_pt.bench.running import running_together
    from trtllm_pt.planner.plot import check_target as check_plot

    cases = [
        Case(size, *pair) for pair in length_pairs(input_output_len) for size in whole_numbers(batch_size, "batch_size")
    ]
    check_target(output_csv, "--output_csv")
    check_target(report_json, "--report_json")
    for plot in plots:
        check_plot(plot)
    if model is not None:
        names = schedules.split(";") if schedules else None
        contenders = _built(model, names, ranks, dtype, engines_dir, cases)
    else:
        contenders = _given(engines, ranks)
    for contender in contenders:
        for case in cases:
            check_case(contender.facts.manifest, case)
    samples: Samples = {}
    results = Results(
        {
            output_csv: lambda: as_csv_text(rows(contenders, samples)),
            report_json: lambda: as_json_text(report(contenders, samples)),
        },
        samples,
    )
    largest = max(case.batch_size for case in cases)
    with (
        running_together([each.facts for each in contenders], threads, largest) as runtimes,
        kept(results),
        bar(rounds * len(cases), f"{len(contenders)} engines in turn", "round") as progress,
    ):
        for taken in measure(runtimes, contenders, cases, rounds, seed):
            samples.update(taken)
            progress.update()
            results.save()
    for warning in same_size(contenders):
        click.echo(f"note: {warning}", err=True)
    found = report(contenders, samples)
    click.echo(as_json_text(found) if as_json else "\n".join(_page(found)), nl=not as_json)
    for plot in plots:
        plot_comparison(found, plot)


def _built(
    model: str, names: list[str] | None, ranks: int | None, dtype: str, folder: Path, cases: list[Case]
) -> list[Contender]:
    """Rank 0 builds what is missing, the others wait."""
    from trtllm_pt.bench.contenders import Contender, build_all, options_for, schedules_of
    from trtllm_pt.bench.facts import Facts
    from trtllm_pt.bench.launching import join_ranks, wait_for_rank_0
    from trtllm_pt.job.launchers import launched_ranks

    config = model_config(model)
    ranks = ranks or launched_ranks() or 2
    configs = schedules_of(config, ranks, names)
    options = options_for(config, cases)
    comm = join_ranks(ranks)
    paths = wait_for_rank_0(comm, build_all(configs, ranks, dtype, options, folder) if comm.rank == 0 else None)
    return [Contender(name, Facts.of(path)) for name, path in paths.items()]


def _given(engines: tuple[str, ...], ranks: int | None) -> list[Contender]:
    from trtllm_pt.bench.contenders import named
    from trtllm_pt.bench.launching import join_ranks

    contenders = named(engines)
    own = contenders[0].facts.manifest.ranks
    if ranks not in (None, own):
        raise UsageError(f"--ranks ({ranks}): these engines have {own}")
    if own > 1 and all(each.facts.manifest.backend.shared_ranks for each in contenders):
        join_ranks(own)
    return contenders


def _page(report: dict[str, Any]) -> Iterator[str]:
    rows = report["rows"]
    yield f"{_ranks(report['world_size'])}, {report['machine']['name']}; medians, and ratios to {report['baseline']}"
    yield "of the same rounds with their spread from p10 to p90: below 1 is faster"
    header = ("name", "parameters", "syncs", "hops", "TTFT ms", "ratio", "", "TPOT ms", "ratio", "", "all-reduce share")
    cases = dict.fromkeys((row["batch_size"], row["input_length"], row["output_length"]) for row in rows)
    for case in cases:
        batch, given, written = case
        yield f"\nbatch {batch}, {given} tokens in, {written} out, {rows[0]['rounds']} rounds"
        chosen = [row for row in rows if (row["batch_size"], row["input_length"], row["output_length"]) == case]
        yield table([_cells(row) for row in chosen], header)


def _ranks(count: int) -> str:
    return f"{count} rank{'' if count == 1 else 's'}"


def _cells(row: dict[str, Any]) -> list[str]:
    share = row["all_reduce_share"]
    return [
        row["name"],
        count(row["parameters"]),
        str(row["syncs_per_token"]),
        str(row["hops_per_step"]),
        f"{row['ttft(ms)']:.2f}",
        *_ratio(row, "ttft"),
        f"{row['tpot(ms)']:.3f}",
        *_ratio(row, "tpot"),
        "-" if share is None else f"{share:.1%}",
    ]


def _ratio(row: dict[str, Any], what: str) -> tuple[str, str]:
    if row[f"{what}_ratio"] is None:
        return "-", ""
    return f"{row[f'{what}_ratio']:.3f}", f"({row[f'{what}_ratio_p10']:.2f} to {row[f'{what}_ratio_p90']:.2f})"
