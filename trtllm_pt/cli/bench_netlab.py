"""`trtllm-pt bench netlab`: compare schedules over slow links."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_pt.cli.bench_options import (
    Choice,
    choice_options,
    grouped,
    length_pairs,
    lengths_option,
    output_options,
    seed_option,
)
from trtllm_pt.cli.measurement import Output, View, measuring
from trtllm_pt.cli.text import table
from trtllm_pt.errors import UsageError
from trtllm_pt.job.launchers import launched_ranks
from trtllm_pt.model.config import read_json

if TYPE_CHECKING:
    from trtllm_pt.bench.contenders import Contender
    from trtllm_pt.bench.netlab.links import Link
    from trtllm_pt.bench.static_batch import Case


def _case(batch_size: int, input_output_len: str) -> Case:
    from trtllm_pt.bench.static_batch import Case

    pairs = length_pairs(input_output_len)
    if len(pairs) != 1 or pairs[0][1] < 2:
        raise UsageError(
            f"--input_output_len ({input_output_len}): netlab takes one pair, with at least 2 output tokens, because "
            "it compares the time between tokens"
        )
    return Case(batch_size, *pairs[0])


def _links(delays: str, rate_mbit: float) -> list[Link]:
    from trtllm_pt.bench.netlab.links import Link

    try:
        found = [float(word) for word in delays.split(";")]
    except ValueError:
        found = []
    if not found or not all(0 <= delay <= 1e6 for delay in found):
        raise UsageError(f"--delays ({delays!r}) must be microseconds from 0 to 1000000, separated by ';'")
    return [Link(delay, rate_mbit) for delay in found]


@click.command("netlab")
@choice_options(
    click.option("--ranks", "-g", type=click.IntRange(min=2), default=2, show_default=True, help="Ranks of --model.")
)
@grouped(
    "links",
    _links,
    click.option(
        "--delays",
        metavar="US[;US…]",
        default="50;100;200;500;1000",
        show_default=True,
        help="One-way delays of the links, in microseconds.",
    ),
    click.option(
        "--rate-mbit",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        help="Megabits per second that a rank can send, or 0 for no limit.",
    ),
)
@grouped(
    "case",
    _case,
    click.option(
        "--batch_size", type=click.IntRange(min=1), default=1, show_default=True, help="Number of sequences in a batch."
    ),
    lengths_option,
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Samples of each engine per visit."
)
@click.option(
    "--visits", type=click.IntRange(min=1), default=3, show_default=True, help="How often every link is measured."
)
@output_options("--plot", "--json", "--report_json")
@click.option("--resume", is_flag=True, help="Keep the visits in the --report_json file and add new ones.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads per rank.")
@seed_option
def command(
    choice: Choice,
    links: list[Link],
    case: Case,
    rounds: int,
    visits: int,
    output: Output,
    resume: bool,
    threads: int,
    seed: int,
) -> None:
    """Compare engines over links of growing delay, with every rank in a network namespace of this machine.

    The command starts mpirun itself and needs root. The kernel's netem delays the packets if it is available;
    otherwise a program of this package does. The report also has the planner's predictions, which know only the
    machine and its all-reduces as measured in every round, and the first engine's times on all links.

    \b
    Examples:
      python benchmarks/netlab.py --model pt-190m --schedules "pt-d2;pt-d4;pt-d8" --plot netlab.svg
      trtllm-pt bench netlab --model pt-tiny --delays "50;1000" --rounds 3
      trtllm-pt bench netlab tp=engines/dense pt=engines/demo --rate-mbit 1000
      trtllm-pt bench netlab tp=engines/dense pt=engines/demo --report_json links.json --resume
    """
    if launched_ranks() is not None:
        raise UsageError("netlab starts mpirun itself, in its network namespaces: run it without mpirun")
    from trtllm_pt.bench.netlab.sweep import Plan, identity, sweep
    from trtllm_pt.bench.plots import plot_sweep

    plan = Plan(_contenders(choice, case), case, rounds, threads, seed)
    known = _known_links(output.report_json, identity(plan)) if resume else []
    found: dict[str, Any] = {}
    with measuring(output, View(lambda: found, list, _page, plot_sweep), found) as results:
        for report in sweep(plan, links, visits, known):
            found.update(report)
            results.save(now=True)


def _contenders(choice: Choice, case: Case) -> list[Contender]:
    """Build or read the engines. Raises UsageError if this machine cannot run them in namespaces."""
    from trtllm_pt.bench.contenders import named
    from trtllm_pt.bench.netlab.links import check_here
    from trtllm_pt.bench.static_batch import check_case

    if choice.model is None:
        contenders = named(choice.engines)
    else:
        assert choice.ranks is not None
        check_here(choice.ranks)  # before anything is built
        contenders = choice.build(choice.ranks, [case], lambda build: build())
    check_here(contenders[0].facts.manifest.ranks)
    for contender in contenders:
        check_case(contender.facts.manifest, case)
    return contenders


def _known_links(report: Path | None, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the visits of an earlier report. Raises UsageError if it measured something else."""
    if report is None:
        raise UsageError("--resume needs --report_json, the file that it continues")
    known = read_json(report)
    for name, value in wanted.items():
        if known.get(name) != value:
            raise UsageError(f"--resume: {report} has {name} {known.get(name)!r}, but this run has {value!r}")
    return list(known["links"])


def _page(report: dict[str, Any]) -> str:
    return "\n".join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    case = f"batch {report['batch_size']}, {report['input_length']} tokens in, {report['output_length']} out"
    yield f"{report['world_size']} ranks, {report['machine']['name']}; {case}"
    yield f"TPOT, and ratios to {report['baseline']} in the same rounds, as medians with their range from p10 to p90"
    yield "error: how far a round's predicted ratio is off the measured one of the same round, median and range"
    header = (
        "delay us",
        "name",
        "round trip us",
        "syncs",
        "TPOT ms",
        "predicted",
        "ratio",
        "",
        "predicted",
        "error",
        "",
    )
    yield ""
    yield table([_cells(link, row) for link in report["links"] for row in link["rows"]], header, left=2)


def _cells(link: dict[str, Any], row: dict[str, Any]) -> list[str]:
    name = row["name"]
    error = {key: value - 1 for key, value in link["prediction_over_measurement"][name].items()}
    is_baseline = row is link["rows"][0]
    return [
        f"{link['delay_us']:g}",
        name,
        f"{1e6 * link['round_trip_s']:.0f}",
        str(row["syncs_per_token"]),
        f"{row['tpot(ms)']:.2f}",
        f"{link['predicted_tpot_ms'][name]:.2f}",
        f"{row['tpot_ratio']:.3f}",
        f"({row['tpot_ratio_p10']:.2f} to {row['tpot_ratio_p90']:.2f})",
        f"{link['predicted_tpot_ratio'][name]:.3f}",
        "" if is_baseline else f"{error['median']:+.1%}",
        "" if is_baseline else f"({error['p10']:+.0%} to {error['p90']:+.0%})",
    ]
