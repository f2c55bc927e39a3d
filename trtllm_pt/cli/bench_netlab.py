"""`trtllm-pt bench netlab`: schedules over slow links."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_pt.cli.bench_options import (
    SPELLING,
    engines_dir_option,
    kept,
    length_pairs,
    lengths_option,
    model_config,
    model_options,
    plot_option,
    report_option,
    seed_option,
)
from trtllm_pt.cli.options import json_option
from trtllm_pt.cli.text import table
from trtllm_pt.errors import UsageError
from trtllm_pt.job.launchers import launched_ranks
from trtllm_pt.model.config import read_json

if TYPE_CHECKING:
    from trtllm_pt.bench.batch import Case
    from trtllm_pt.bench.contenders import Contender


@click.command("netlab", context_settings=SPELLING)
@click.argument("engines", metavar="[[NAME=]ENGINES]...", nargs=-1)
@model_options
@engines_dir_option
@click.option("--ranks", "-g", type=click.IntRange(min=2), default=2, show_default=True, help="Of --model.")
@click.option(
    "--delays", metavar="US[;US…]", default="50;100;200;500;1000", show_default=True, help="Of a link, one way."
)
@click.option(
    "--rate_mbit", type=click.FloatRange(min=0), default=0.0, show_default=True, help="Of a sender; 0: no limit."
)
@click.option("--batch_size", type=click.IntRange(min=1), default=1, show_default=True, help="Sequences of a batch.")
@lengths_option
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Samples of each, per visit.")
@click.option("--visits", type=click.IntRange(min=1), default=3, show_default=True, help="To every link, in turn.")
@plot_option
@json_option
@report_option
@click.option("--resume", is_flag=True, help="Keep the visits that --report_json has, and add these.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads of a rank.")
@seed_option
def command(
    engines: tuple[str, ...],
    model: str | None,
    schedules: str | None,
    dtype: str,
    engines_dir: Path,
    ranks: int,
    delays: str,
    rate_mbit: float,
    batch_size: int,
    input_output_len: str,
    rounds: int,
    visits: int,
    plots: tuple[Path, ...],
    as_json: bool,
    report_json: Path | None,
    resume: bool,
    threads: int,
    seed: int,
) -> None:
    """Compare engines over links of growing delay, with every rank in a network namespace of this machine.

    Starts mpirun by itself, and needs root. The kernel's netem delays packets, or else a process of ours between TUN
    devices. The planner's prediction stands beside: from the machine and the all-reduces as measured in every round,
    and the first engine's times on all links; from nothing else.

    \b
    Examples:
      python benchmarks/netlab.py --model pt-190m --schedules "pt-d2;pt-d4;pt-d8" --plot netlab.svg
      trtllm-pt bench netlab --model pt-tiny --delays "50;1000" --rounds 3
      trtllm-pt bench netlab tp=engines/dense pt=engines/demo --rate_mbit 1000
      trtllm-pt bench netlab tp=engines/dense pt=engines/demo --report_json links.json --resume
    """
    if launched_ranks() is not None:
        raise UsageError("netlab starts mpirun by itself, in its namespaces: start it alone")
    if bool(engines) == (model is not None):
        raise UsageError("give either engines to compare, the baseline first, or --model")
    pairs = length_pairs(input_output_len)
    if len(pairs) != 1:
        raise UsageError(f"--input_output_len ({input_output_len!r}): netlab takes one pair")
    from trtllm_pt.bench.batch import Case, check_case
    from trtllm_pt.bench.contenders import named
    from trtllm_pt.bench.files import Results, as_json_text, check_target
    from trtllm_pt.bench.netlab.links import Link, check_here
    from trtllm_pt.bench.netlab.sweep import Plan, identity, sweep
    from trtllm_pt.bench.plots import plot_sweep
    from trtllm_pt.planner.plot import check_target as check_plot

    case = Case(batch_size, *pairs[0])
    if case.output_length < 2:
        raise UsageError(
            f"--input_output_len ({case.input_length},1): netlab compares the time between tokens: ask for 2 or more"
        )
    links = [Link(delay, rate_mbit) for delay in _delays(delays)]
    check_target(report_json, "--report_json")
    for plot in plots:
        check_plot(plot)
    if model is None:
        contenders = named(engines)
    else:
        check_here(ranks)  # before anything is built
        contenders = _built(model, schedules, ranks, dtype, engines_dir, case)
    check_here(contenders[0].facts.manifest.ranks)
    for contender in contenders:
        check_case(contender.facts.manifest, case)
    wanted = Plan(contenders, case, rounds, threads, seed)
    known = _known_links(report_json, identity(wanted)) if resume else []
    found: dict[str, Any] = {}
    results = Results({report_json: lambda: as_json_text(found)}, found)
    with kept(results):
        for report in sweep(wanted, links, visits, known):
            found.update(report)
            results.save(now=True)
    click.echo(as_json_text(found) if as_json else "\n".join(_page(found)), nl=not as_json)
    for plot in plots:
        plot_sweep(found, plot)


def _known_links(report: Path | None, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    if report is None:
        raise UsageError("--resume goes on with the file of --report_json, which is missing")
    known = read_json(report)
    for name, value in wanted.items():
        if known.get(name) != value:
            raise UsageError(f"--resume: {report} has {name} {known.get(name)!r}, this would be {value!r}")
    return list(known["links"])


def _delays(text: str) -> list[float]:
    try:
        delays = [float(word) for word in text.split(";")]
    except ValueError:
        delays = []
    if not delays or not all(0 <= delay <= 1e6 for delay in delays):
        raise UsageError(f"--delays ({text!r}) must be microseconds up to 1000000 with ';' between them")
    return delays


def _built(model: str, schedules: str | None, ranks: int, dtype: str, folder: Path, case: Case) -> list[Contender]:
    from trtllm_pt.bench.contenders import Contender, build_all, options_for, schedules_of
    from trtllm_pt.bench.facts import Facts

    config = model_config(model)
    configs = schedules_of(config, ranks, schedules.split(";") if schedules else None)
    paths = build_all(configs, ranks, dtype, options_for(config, [case]), folder)
    return [Contender(name, Facts.of(path)) for name, path in paths.items()]


def _page(report: dict[str, Any]) -> Iterator[str]:
    case = f"batch {report['batch_size']}, {report['input_length']} tokens in, {report['output_length']} out"
    yield f"{report['world_size']} ranks, {report['machine']['name']}; {case}"
    yield f"TPOT, and ratios to {report['baseline']} of the same rounds, medians with their spread from p10 to p90"
    yield "error: of a round's prediction from the same round's measurement, median and spread"
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
    lines = []
    for link in report["links"]:
        for row in link["rows"]:
            name = row["name"]
            error = {key: value - 1 for key, value in link["prediction_over_measurement"][name].items()}
            lines.append(
                [
                    f"{link['delay_us']:g}",
                    name,
                    f"{1e6 * link['round_trip_s']:.0f}",
                    str(row["syncs_per_token"]),
                    f"{row['tpot(ms)']:.2f}",
                    f"{link['predicted_tpot_ms'][name]:.2f}",
                    f"{row['tpot_ratio']:.3f}",
                    f"({row['tpot_ratio_p10']:.2f} to {row['tpot_ratio_p90']:.2f})",
                    f"{link['predicted_tpot_ratio'][name]:.3f}",
                    *(
                        [f"{error['median']:+.1%}", f"({error['p10']:+.0%} to {error['p90']:+.0%})"]
                        if row is not link["rows"][0]
                        else ["", ""]
                    ),
                ]
            )
    yield ""
    yield table(lines, header, left=2)
