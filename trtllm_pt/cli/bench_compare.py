"""`trtllm-pt bench compare`: compare schedules with tensor parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from trtllm_pt.cli.bench_options import (
    Choice,
    case_options,
    choice_options,
    output_options,
    seed_option,
    threads_option,
)
from trtllm_pt.cli.hosts_options import hosts_options
from trtllm_pt.cli.measurement import Output, View, measuring
from trtllm_pt.cli.text import count, table
from trtllm_pt.errors import UsageError

if TYPE_CHECKING:
    from trtllm_pt.bench.contenders import Contender
    from trtllm_pt.bench.static_batch import Case


@click.command("compare")
@choice_options(
    click.option("--ranks", "-g", type=click.IntRange(min=1), help="Ranks to start without mpirun.  [default: 2]")
)
@case_options
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True, help="Samples of each engine.")
@output_options("--plot", "--json", "--output_csv", "--report_json")
@threads_option
@hosts_options
@seed_option
def command(choice: Choice, cases: list[Case], rounds: int, output: Output, threads: int | None, seed: int) -> None:
    """Compare engines that take turns in one run, as ratios to the first one and their spread.

    With --model, the first engine is dense tensor parallelism. The others are Parallel Track with D = 1, 2, 4, 8 and
    every other schedule, with equally many parameters and random weights. All use the same collective on the same
    ranks.

    \b
    Examples:
      mpirun -n 2 python benchmarks/compare.py --model pt-190m --batch_size "1;8" --input_output_len 512,32
      trtllm-pt bench compare --ranks 2 --model pt-150m --schedules "pt-d4;desync-2" --plot pt-150m.svg
      mpirun -n 2 trtllm-pt bench compare tp=engines/dense pt=engines/demo
    """
    from trtllm_pt.bench.compare import Samples, measure, report, rows
    from trtllm_pt.bench.contenders import same_size
    from trtllm_pt.bench.jobs import running_together
    from trtllm_pt.bench.plots import plot_comparison
    from trtllm_pt.bench.results import bar
    from trtllm_pt.bench.static_batch import check_case

    contenders = _built(choice, cases) if choice.model is not None else _existing(choice)
    for contender in contenders:
        for case in cases:
            check_case(contender.facts.manifest, case)
    largest = max(case.batch_size for case in cases)
    samples: Samples = {}
    view = View(lambda: report(contenders, samples), lambda: rows(contenders, samples), _page, plot_comparison)
    with measuring(output, view, samples) as results:
        with (
            running_together([each.facts for each in contenders], threads, largest) as runtimes,
            bar(rounds * len(cases), f"{len(contenders)} engines in turn", "round") as progress,
        ):
            for taken in measure(runtimes, contenders, cases, rounds, seed):
                samples.update(taken)
                progress.update()
                results.save()
        for warning in same_size(contenders):
            click.echo(f"note: {warning}", err=True)


def _built(choice: Choice, cases: list[Case]) -> list[Contender]:
    """Build the missing engines on rank 0, while the other ranks wait."""
    from trtllm_pt.bench.jobs import join_ranks, wait_for_rank_0
    from trtllm_pt.job.launchers import launched_ranks

    ranks = choice.ranks or launched_ranks() or 2

    def on_rank_0(build: Any) -> Any:
        comm = join_ranks(ranks)
        return wait_for_rank_0(comm, build() if comm.rank == 0 else None)

    return choice.build(ranks, cases, on_rank_0)


def _existing(choice: Choice) -> list[Contender]:
    """Read the given engines, and start their ranks if they share them."""
    from trtllm_pt.bench.contenders import named
    from trtllm_pt.bench.jobs import join_ranks

    contenders = named(choice.engines)
    own = contenders[0].facts.manifest.ranks
    if choice.ranks not in (None, own):
        raise UsageError(f"--ranks ({choice.ranks}): these engines have {own} ranks")
    if own > 1 and all(each.facts.manifest.backend.shared_ranks for each in contenders):
        join_ranks(own)
    return contenders


def _page(report: dict[str, Any]) -> str:
    return "\n".join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    rows = report["rows"]
    yield f"{_ranks(report['world_size'])}, {report['machine']['name']}; medians"
    yield f"ratio: to {report['baseline']} in the same round, median and range from p10 to p90; below 1 is faster"
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
