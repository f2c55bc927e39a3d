"""`trtllm-pt bench all-reduce`: how long ranks take to meet."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_pt.cli.bench_options import (
    SPELLING,
    kept,
    model_config,
    output_csv_option,
    report_option,
    threads_option,
    whole_numbers,
)
from trtllm_pt.cli.options import json_option
from trtllm_pt.cli.text import memory, table
from trtllm_pt.errors import UsageError

if TYPE_CHECKING:
    from mpi4py import MPI

    from trtllm_pt.backends.backend import SharedRanks

_COLLECTIVES = ("mpi", "mpi4py", "nccl", "gloo")


@click.command("all-reduce", context_settings=SPELLING)
@click.option(
    "--range",
    "size_range",
    metavar="MIN,MAX,FACTOR",
    default="1024,4194304,4",
    show_default=True,
    help="Sizes of messages, in bytes.",
)
@click.option("--model", metavar="PRESET|CONFIG.json|DIR", help="Also the messages of this model's boundaries.")
@click.option("--tokens", default="1;8;64;512", show_default=True, help="For a step of so many tokens each.")
@click.option(
    "--collectives",
    metavar="NAME[;NAME…]",
    help=f"Of {', '.join(_COLLECTIVES)}.  [default: mpi, the engine's own; mpi4py; nccl where there are GPUs]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Elements of nccl and gloo; the others have float32.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True, help="Samples of each.")
@click.option("--ranks", "-g", type=click.IntRange(min=2), help="Ranks to start, where mpirun did not.  [default: 2]")
@click.option("--csv", "as_csv", is_flag=True, help="Print the table as CSV.")
@json_option
@output_csv_option
@report_option
@click.option(
    "--machine_json",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also measure what one rank computes and reads, and write this machine for `trtllm-pt plan --machine FILE`.",
)
@threads_option
def command(
    size_range: str,
    model: str | None,
    tokens: str,
    collectives: str | None,
    dtype: str,
    rounds: int,
    ranks: int | None,
    as_csv: bool,
    as_json: bool,
    output_csv: Path | None,
    report_json: Path | None,
    machine_json: Path | None,
    threads: int | None,
) -> None:
    """Measure all-reduces: time, bandwidth, and a latency and a bandwidth that fit them, for every collective here.

    A sample is calls one after the other for some milliseconds; rounds go over all sizes and collectives in turn.
    --report_json has `all_reduce` as a machine file of the planner has it.

    \b
    Examples:
      mpirun -n 2 python benchmarks/all_reduce.py --model pt-190m --tokens "1;512"
      trtllm-pt bench all-reduce --ranks 2 --range 256,256000000,10 --csv
      trtllm-pt bench all-reduce --ranks 2 --machine_json this.json
      trtllm-pt plan pt-190m --machine this.json --engine embedded
    """
    sizes = _sizes(size_range, model, tokens)
    names = _names(collectives)
    from trtllm_pt.bench.files import Results, as_csv_text, as_json_text, check_target
    from trtllm_pt.bench.launching import join_ranks
    from trtllm_pt.job.launchers import launched_ranks

    for path, option in ((output_csv, "output_csv"), (report_json, "report_json"), (machine_json, "machine_json")):
        check_target(path, f"--{option}")
    comm = join_ranks(ranks or (None if launched_ranks() else 2))
    if comm.size < 2:
        raise UsageError("all-reduce needs at least 2 ranks: `mpirun -n 2 …`, or --ranks 2")
    from trtllm_pt.bench.running import leave_interrupts_to_rank_0

    leave_interrupts_to_rank_0()
    shared = _load_ops(comm, threads)
    from trtllm_pt.bench.all_reduce import Series, measure, report, rows
    from trtllm_pt.bench.collectives import open_collectives
    from trtllm_pt.bench.progress import bar

    opened = open_collectives(comm, shared, names, dtype)
    series: list[Series] = []
    targets = {
        output_csv: lambda: as_csv_text(rows(series, comm.size)),
        report_json: lambda: as_json_text(report(series, comm.size)),
    }
    results = Results(targets if comm.rank == 0 else {}, series)
    with (
        kept(results) if comm.rank == 0 else contextlib.nullcontext(),
        bar(rounds * len(sizes) * len(opened), "all-reduce", "sample") as progress,
    ):
        for series[:] in measure(comm, opened, sizes, rounds):
            progress.update()
            results.save()
    for collective in opened:
        collective.close()
    if machine_json is not None:
        _write_machine(comm, report(series, comm.size)["all_reduce"], machine_json)
    if comm.rank:
        return
    if as_csv or as_json:
        text = as_csv_text(rows(series, comm.size)) if as_csv else as_json_text(report(series, comm.size))
        click.echo(text, nl=False)
    else:
        click.echo(_page(report(series, comm.size)))


def _sizes(size_range: str, model: str | None, tokens: str) -> list[int]:
    from trtllm_pt.bench.all_reduce import sizes_in_range

    bounds = whole_numbers(size_range, "range", ",")
    if len(bounds) != 3 or bounds[0] > bounds[1] or bounds[2] < 2:
        raise UsageError(f"--range ({size_range!r}) must be MIN,MAX,FACTOR with MIN <= MAX and FACTOR >= 2")
    sizes = sizes_in_range(*bounds)
    if model is not None:
        width = model_config(model).hidden_size
        sizes += [4 * width * count for count in whole_numbers(tokens, "tokens")]
    return sorted({max(4, size // 4 * 4) for size in sizes})  # whole float32 numbers


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(text.split(";"))
    for name in names:
        if name not in _COLLECTIVES:
            raise UsageError(f"--collectives ({name!r}): there are {', '.join(_COLLECTIVES)}")
    return names


def _load_ops(comm: MPI.Intracomm, threads: int | None) -> SharedRanks:
    """The native code of the first backend whose all-reduce can be called by itself."""
    import os

    import torch

    from trtllm_pt.bench.running import sharing_backend

    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // comm.size))
    shared = sharing_backend().shared_ranks
    assert shared is not None
    shared.load(comm)
    return shared


def _write_machine(comm: MPI.Intracomm, curves: list[dict[str, Any]], path: Path) -> None:
    from trtllm_pt.bench.files import as_json_text
    from trtllm_pt.bench.this_machine import measure_machine
    from trtllm_pt.files.atomic import write_text

    measured = measure_machine(comm, curves)
    if comm.rank == 0:
        write_text(path, as_json_text(measured.to_json()))
        click.echo(f"{path}: written, for `trtllm-pt plan --machine {path}`", err=True)


def _page(report: dict[str, Any]) -> str:
    names = [curve["algorithm"] for curve in report["all_reduce"]]
    by_size: dict[int, dict[str, dict[str, Any]]] = {}
    for row in report["rows"]:
        by_size.setdefault(row["message size"], {})[row["strategy"]] = row
    lines = [
        [memory(size), *(f"{1e3 * found[name]['duration (ms)']:.1f}" for name in names)]
        + [f"{found[name]['algbw (GB/s)']:.2f}" for name in names]
        for size, found in by_size.items()
    ]
    page = [
        f"{report['world_size']} ranks, {report['machine']['name']}; microseconds of a call, then GB/s",
        table(lines, ["message", *names, *names], left=0),
        "",
    ]
    for fit in report["fits"]:
        rate = fit["bandwidth_bytes_per_s"]
        page.append(
            f"{fit['algorithm']}: {1e6 * fit['latency_s']:.1f} microseconds"
            + (f" + bytes / {rate / 1e9:.2f} GB/s" if rate else "")
            + f", off by {fit['mean_relative_error']:.0%} in the mean"
        )
    return "\n".join(page)
