"""`trtllm-pt bench all-reduce`: measure the all-reduces between ranks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_pt.cli.bench_options import (
    grouped,
    model_config,
    output_options,
    threads_option,
    whole_numbers,
)
from trtllm_pt.cli.hosts_options import hosts_options
from trtllm_pt.cli.measurement import Output, View, measuring
from trtllm_pt.cli.text import memory, table
from trtllm_pt.errors import UsageError

if TYPE_CHECKING:
    from mpi4py import MPI

    from trtllm_pt.backends.backend import SharedRanks

_COLLECTIVES = ("mpi", "mpi4py", "gathered", "nccl", "gloo")


def _sizes(size_range: str, model: str | None, tokens: str) -> list[int]:
    """Return the message sizes in bytes, whole float32 numbers."""
    from trtllm_pt.bench.all_reduce import sizes_in_range

    bounds = whole_numbers(size_range, "range", ",")
    if len(bounds) != 3 or bounds[0] > bounds[1] or bounds[2] < 2:
        raise UsageError(f"--range ({size_range!r}) must be MIN,MAX,FACTOR with MIN <= MAX and FACTOR >= 2")
    sizes = sizes_in_range(*bounds)
    if model is not None:
        width = model_config(model).hidden_size
        sizes += [4 * width * count for count in whole_numbers(tokens, "tokens")]
    return sorted({max(4, size // 4 * 4) for size in sizes})


def _names(context: click.Context, option: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    names = tuple(text.split(";")) if text is not None else ()
    for name in names:
        if name not in _COLLECTIVES:
            raise UsageError(f"--collectives ({name!r}) must be one of {', '.join(_COLLECTIVES)}")
    return names or None


@click.command("all-reduce")
@grouped(
    "sizes",
    _sizes,
    click.option(
        "--range",
        "size_range",
        metavar="MIN,MAX,FACTOR",
        default="1024,4194304,4",
        show_default=True,
        help="Message sizes in bytes.",
    ),
    click.option("--model", metavar="PRESET|CONFIG.json|DIR", help="Also measure the messages of this model."),
    click.option(
        "--tokens", default="1;8;64;512", show_default=True, help="Tokens per step, which size the messages of --model."
    ),
)
@click.option(
    "--collectives",
    "names",
    metavar="NAME[;NAME…]",
    callback=_names,
    help=f"Collectives to measure, of {', '.join(_COLLECTIVES)}.  [default: mpi and mpi4py; nccl with GPUs]",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Element type of nccl and gloo. The other collectives send float32.",
)
@click.option("--rounds", type=click.IntRange(min=1), default=9, show_default=True, help="Samples per size.")
@click.option("--ranks", "-g", type=click.IntRange(min=2), help="Ranks to start without mpirun.  [default: 2]")
@output_options("--csv", "--json", "--output_csv", "--report_json")
@click.option(
    "--machine-json",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also measure how fast a rank computes and reads, and write a machine file for `trtllm-pt plan --machine`.",
)
@threads_option
@hosts_options
def command(
    sizes: list[int],
    names: tuple[str, ...] | None,
    dtype: str,
    rounds: int,
    ranks: int | None,
    output: Output,
    machine_json: Path | None,
    threads: int | None,
) -> None:
    """Measure every all-reduce of this machine: time, bandwidth, and a latency and a bandwidth fitted to them.

    A sample is a series of calls that takes some milliseconds. Every round takes a sample of each size and collective.
    In the --report_json file, `all_reduce` has the form that a machine file of the planner has.

    \b
    Examples:
      mpirun -n 2 python benchmarks/all_reduce.py --model pt-190m --tokens "1;512"
      trtllm-pt bench all-reduce --ranks 2 --range 256,256000000,10 --csv
      trtllm-pt bench all-reduce --ranks 2 --machine-json this.json
      trtllm-pt plan pt-190m --machine this.json --engine embedded
    """
    from trtllm_pt.bench.jobs import leave_interrupts_to_rank_0
    from trtllm_pt.bench.results import bar, check_target

    check_target(machine_json, "--machine-json")
    comm = _join(ranks)
    leave_interrupts_to_rank_0()
    shared = _load_ops(comm, threads)
    from trtllm_pt.bench.all_reduce import Series, measure, report, rows
    from trtllm_pt.bench.collectives import open_collectives

    opened = open_collectives(comm, shared, names, dtype)
    series: list[Series] = []
    view = View(lambda: report(series, comm.size), lambda: rows(series, comm.size), _page)
    with measuring(output if comm.rank == 0 else None, view, series) as results:
        with bar(rounds * len(sizes) * len(opened), "all-reduce", "sample") as progress:
            for series[:] in measure(comm, opened, sizes, rounds):
                progress.update()
                results.save()
        for collective in opened:
            collective.close()
        if machine_json is not None:
            _write_machine(comm, report(series, comm.size)["all_reduce"], machine_json)


def _join(ranks: int | None) -> MPI.Intracomm:
    from trtllm_pt.bench.jobs import join_ranks
    from trtllm_pt.job.launchers import launched_ranks

    comm = join_ranks(ranks or (None if launched_ranks() else 2))
    if comm.size < 2:
        raise UsageError("all-reduce needs at least 2 ranks: `mpirun -n 2 …`, or --ranks 2")
    return comm


def _load_ops(comm: MPI.Intracomm, threads: int | None) -> SharedRanks:
    """Load the native code of the first backend whose all-reduce can be called on its own."""
    import os

    import torch

    from trtllm_pt.bench.jobs import sharing_backend

    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // comm.size))
    shared = sharing_backend().shared_ranks
    assert shared is not None
    shared.load(comm)
    return shared


def _write_machine(comm: MPI.Intracomm, curves: list[dict[str, Any]], path: Path) -> None:
    from trtllm_pt.bench.results import as_json_text
    from trtllm_pt.bench.this_machine import measure_machine
    from trtllm_pt.files.atomic import write_text

    measured = measure_machine(comm, curves)
    if comm.rank == 0:
        write_text(path, as_json_text(measured.to_json()))
        click.echo(f"wrote {path}, for `trtllm-pt plan --machine {path}`", err=True)


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
        f"{report['world_size']} ranks, {report['machine']['name']}; microseconds per call, then GB/s",
        table(lines, ["message", *names, *names], left=0),
        "",
    ]
    for fit in report["fits"]:
        rate = fit["bandwidth_bytes_per_s"]
        page.append(
            f"{fit['algorithm']}: {1e6 * fit['latency_s']:.1f} microseconds"
            + (f" + bytes / {rate / 1e9:.2f} GB/s" if rate else "")
            + f", mean error {fit['mean_relative_error']:.0%}"
        )
    return "\n".join(page)
