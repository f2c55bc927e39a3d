"""`trtllm-pt bench throughput`: measure traffic through in-flight batching."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_pt.cli.bench_options import (
    engines_argument,
    grouped,
    output_options,
    seed_option,
    threads_option,
)
from trtllm_pt.cli.hosts_options import hosts_options
from trtllm_pt.cli.measurement import Output, View, measuring
from trtllm_pt.cli.text import table
from trtllm_pt.errors import RunError, UsageError

if TYPE_CHECKING:
    from trtllm_pt.bench.static_batch import Prompts
    from trtllm_pt.bench.traffic import Load, Record, Sample

_POSITIVE = click.IntRange(min=1)
_NOT_NEGATIVE = click.FloatRange(min=0)
_DRAWN_REQUESTS = 64


@dataclass(frozen=True, slots=True)
class _Source:
    """Where the requests come from: a dataset, or lengths drawn from normal distributions."""

    dataset: Path | None
    num_requests: int | None
    input_mean: int
    input_stdev: float
    output_mean: int
    output_stdev: float

    def samples(self, prompts: Prompts, seed: int) -> list[Sample]:
        """Read or draw the samples. Raises UsageError if the dataset has another form."""
        from trtllm_pt.bench.traffic import Lengths, read_dataset

        if self.dataset is not None:
            return read_dataset(self.dataset)[: self.num_requests]
        lengths = Lengths(self.input_mean, self.input_stdev, self.output_mean, self.output_stdev)
        return lengths.draw(self.num_requests or _DRAWN_REQUESTS, prompts, seed)


def _load(request_rate: float | None, enable_exp_delays: bool, concurrency: int | None) -> Load:
    from trtllm_pt.bench.traffic import Load

    if request_rate is not None and concurrency is not None:
        raise UsageError("--request_rate and --concurrency cannot be combined")
    if enable_exp_delays and request_rate is None:
        raise UsageError("--enable_exp_delays needs --request_rate")
    return Load(request_rate, enable_exp_delays, concurrency)


def _length_option(flag: str, what: str, default: int) -> Any:
    return click.option(flag, type=_POSITIVE, default=default, show_default=True, help=f"Mean {what} length in tokens.")


def _stdev_option(flag: str, what: str) -> Any:
    text = f"Standard deviation of the {what} length."
    return click.option(flag, type=_NOT_NEGATIVE, default=0.0, show_default=True, help=text)


@click.command("throughput")
@engines_argument
@grouped(
    "source",
    _Source,
    click.option(
        "--dataset",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help='Requests as {"samples": [{"input_ids": […], "output_len": n}]}.  [default: random lengths]',
    ),
    click.option("--num_requests", type=_POSITIVE, help="Number of requests.  [default: the whole dataset, or 64]"),
    _length_option("--input-mean", "prompt", 128),
    _stdev_option("--input-stdev", "prompt"),
    _length_option("--output-mean", "output", 32),
    _stdev_option("--output-stdev", "output"),
)
@grouped(
    "load",
    _load,
    click.option(
        "--request_rate", type=click.FloatRange(min=0, min_open=True), help="Open-loop arrival rate (requests/s)."
    ),
    click.option("--enable_exp_delays", is_flag=True, help="Use exponential intervals (Poisson) for --request_rate."),
    click.option(
        "--concurrency", type=_POSITIVE, help="Number of requests to keep in flight.  [default: all requests at once]"
    ),
)
@click.option("--streaming", is_flag=True, help="Also report the time to the first token and between tokens.")
@click.option(
    "--warm_up", "--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Warm-up requests."
)
@output_options("--json", "--report_json", "--output_csv")
@threads_option
@hosts_options
@seed_option
def command(
    engines: Path,
    source: _Source,
    load: Load,
    streaming: bool,
    warm_up: int,
    output: Output,
    threads: int | None,
    seed: int,
) -> None:
    """Measure traffic through in-flight batching: throughput, and latencies with percentiles.

    Requests arrive at a rate, or a number of them is kept in flight, or all arrive at once. The report has the sections
    of trtllm-bench and one about all-reduces. If the command is interrupted, it covers the complete requests.

    \b
    Examples:
      trtllm-pt bench throughput engines/demo --num_requests 32 --concurrency 8 --streaming
      trtllm-pt bench throughput engines/demo --dataset traffic.json --request_rate 4 --report_json report.json
      mpirun -n 2 python benchmarks/throughput.py --engine_dir engines/demo --input-mean 64 --input-stdev 16
    """
    from trtllm_pt.bench.facts import Facts
    from trtllm_pt.bench.jobs import running
    from trtllm_pt.bench.static_batch import Prompts
    from trtllm_pt.bench.traffic import Load, as_requests, drive
    from trtllm_pt.bench.traffic_report import columns, report

    facts = Facts.of(engines)
    prompts = Prompts(facts.model.vocab_size, seed)
    samples = source.samples(prompts, seed)
    requests = as_requests(samples, facts.manifest)
    warm_ups = as_requests([samples[n % len(samples)].with_other_ids(prompts) for n in range(warm_up)], facts.manifest)
    records: list[Record] = []
    counters: list[Any] = []  # the runtime's counters before the traffic, and now
    view = View(
        report=lambda: report(facts, load, records, counters[0], counters[1], streaming=streaming),
        rows=lambda: [columns(facts, records, streaming=streaming)],
        page=_page,
    )
    with measuring(output, view, records) as results, running(facts, threads) as runtime:
        for _ in drive(runtime, warm_ups, Load()):
            pass
        counters[:] = [runtime.stats()] * 2
        for records[:] in _with_bar(drive(runtime, requests, load, seed), len(requests)):
            if results.due:
                counters[1] = runtime.stats()
                results.save()
        counters[1] = runtime.stats()
    if failed := [record.error for record in records if record.error is not None]:
        raise RunError(f"{len(failed)} of {len(records)} requests failed: {failed[0]}")


def _with_bar(states: Iterator[list[Record]], requests: int) -> Iterator[list[Record]]:
    """Pass the records on, and show how many requests are complete."""
    from trtllm_pt.bench.results import bar

    with bar(requests, "traffic", "request") as progress:
        for records in states:
            progress.update(sum(record.end is not None for record in records) - progress.n)
            yield records


def _page(report: dict[str, Any]) -> str:
    return "\n".join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    performance, requests = report["performance"], report["request_info"]
    yield (
        f"{requests['num_requests']} requests in {performance['total_latency_ms'] / 1e3:.1f} s, "
        f"{requests['avg_num_concurrent_requests']:.1f} in flight on average: "
        f"{performance['request_throughput_req_s']:.2f} requests/s, "
        f"{performance['system_output_throughput_tok_s']:.1f} output tokens/s"
    )
    spreads = {"request latency, ms": performance["request_latency_percentiles_ms"]}
    if streaming := report.get("streaming_metrics"):
        spreads |= {
            "TTFT, ms": streaming["ttft_percentiles"],
            "TPOT, ms": streaming["tpot_percentiles"],
            "between tokens, ms": streaming["inter_token_latency_percentiles"],
        }
    names = ("average", "p50", "p90", "p95", "p99", "maximum")
    yield ""
    yield table([[what, *(f"{spread[name]:.2f}" for name in names)] for what, spread in spreads.items()], ["", *names])
    syncs = report["parallel_track"]
    share = "" if syncs["all_reduce_share"] is None else f", {syncs['all_reduce_share']:.1%} of the time in all-reduces"
    yield ""
    yield f"{syncs['syncs_per_forward']} syncs per forward{share}"
