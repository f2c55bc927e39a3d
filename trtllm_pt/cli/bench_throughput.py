"""`trtllm-pt bench throughput`: traffic through in-flight batching."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from trtllm_pt.cli.bench_options import (
    SPELLING,
    combined,
    engines_argument,
    kept,
    output_csv_option,
    report_option,
    seed_option,
    threads_option,
)
from trtllm_pt.cli.options import json_option
from trtllm_pt.cli.text import table
from trtllm_pt.errors import RunError, UsageError

_POSITIVE = click.IntRange(min=1)
_NOT_NEGATIVE = click.FloatRange(min=0)

_dataset_options = combined(
    click.option(
        "--dataset",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help='{"samples": [{"input_ids": […], "output_len": n}]}.  [default: lengths are drawn]',
    ),
    click.option("--num_requests", type=_POSITIVE, help="Requests.  [default: all of the dataset, else 64]"),
    click.option("--input_mean", type=_POSITIVE, default=128, show_default=True, help="Tokens of a drawn prompt."),
    click.option("--input_stdev", type=_NOT_NEGATIVE, default=0.0, show_default=True, help="Their spread."),
    click.option("--output_mean", type=_POSITIVE, default=32, show_default=True, help="Tokens of a drawn output."),
    click.option("--output_stdev", type=_NOT_NEGATIVE, default=0.0, show_default=True, help="Their spread."),
)
_load_options = combined(
    click.option(
        "--request_rate", type=click.FloatRange(min=0, min_open=True), help="Requests per second, come what may."
    ),
    click.option("--enable_exp_delays", is_flag=True, help="They come at random intervals (Poisson), not even ones."),
    click.option("--concurrency", type=_POSITIVE, help="Requests in flight instead.  [default: all at once]"),
)


@click.command("throughput", context_settings=SPELLING)
@engines_argument
@_dataset_options
@_load_options
@click.option("--streaming", is_flag=True, help="Also report first tokens and the time between tokens.")
@click.option(
    "--warm_up", "--warmup", type=click.IntRange(min=0), default=2, show_default=True, help="Requests before."
)
@json_option
@report_option
@output_csv_option
@threads_option
@seed_option
def command(
    engines: Path,
    dataset: Path | None,
    num_requests: int | None,
    input_mean: int,
    input_stdev: float,
    output_mean: int,
    output_stdev: float,
    request_rate: float | None,
    enable_exp_delays: bool,
    concurrency: int | None,
    streaming: bool,
    warm_up: int,
    as_json: bool,
    report_json: Path | None,
    output_csv: Path | None,
    threads: int | None,
    seed: int,
) -> None:
    """Measure traffic through in-flight batching: throughput and latencies with percentiles.

    Requests come at a rate, or so many are kept in flight, or all come at once. The report has the sections of
    trtllm-bench, and one more on syncs. Interrupted, it covers the requests that were complete.

    \b
    Examples:
      trtllm-pt bench throughput engines/demo --num_requests 32 --concurrency 8 --streaming
      trtllm-pt bench throughput engines/demo --dataset traffic.json --request_rate 4 --report_json report.json
      mpirun -n 2 python benchmarks/throughput.py --engine_dir engines/demo --input_mean 64 --input_stdev 16
    """
    if request_rate is not None and concurrency is not None:
        raise UsageError("--request_rate and --concurrency exclude each other")
    if enable_exp_delays and request_rate is None:
        raise UsageError("--enable_exp_delays needs --request_rate")
    from trtllm_pt.bench.batch import Prompts
    from trtllm_pt.bench.dataset import Lengths, as_requests, read_dataset
    from trtllm_pt.bench.facts import Facts
    from trtllm_pt.bench.files import Results, as_csv_text, as_json_text, check_target
    from trtllm_pt.bench.progress import bar
    from trtllm_pt.bench.report import columns, report
    from trtllm_pt.bench.running import running
    from trtllm_pt.bench.traffic import Load, Record, drive

    facts = Facts.of(engines)
    prompts = Prompts(facts.model.vocab_size, seed)
    if dataset is None:
        drawn = Lengths(input_mean, input_stdev, output_mean, output_stdev)
        samples = drawn.draw(num_requests or 64, prompts, seed)
    else:
        samples = read_dataset(dataset)[:num_requests]
    requests = as_requests(samples, facts.manifest)
    warm_ups = as_requests([samples[n % len(samples)].with_other_ids(prompts) for n in range(warm_up)], facts.manifest)
    check_target(report_json, "--report_json")
    check_target(output_csv, "--output_csv")
    load = Load(request_rate, enable_exp_delays, concurrency)
    records: list[Record] = []
    with running(facts, threads) as runtime:
        for _ in drive(runtime, warm_ups, Load()):
            pass
        before = after = runtime.stats()

        def whole() -> dict[str, Any]:
            return report(facts, load, records, before, after, streaming=streaming)

        results = Results(
            {
                report_json: lambda: as_json_text(whole()),
                output_csv: lambda: as_csv_text([columns(facts, records, streaming=streaming)]),
            },
            records,
        )
        with kept(results), bar(len(requests), "traffic", "request") as progress:
            for records[:] in drive(runtime, requests, load, seed):
                done = sum(record.end is not None for record in records)
                progress.update(done - progress.n)
                if results.due:
                    after = runtime.stats()
                    results.save()
            after = runtime.stats()
    failed = [record.error for record in records if record.error is not None]
    click.echo(as_json_text(whole()) if as_json else "\n".join(_page(whole())), nl=not as_json)
    if failed:
        raise RunError(f"{len(failed)} of {len(records)} requests failed: {failed[0]}")


def _page(report: dict[str, Any]) -> Iterator[str]:
    performance, requests = report["performance"], report["request_info"]
    yield (
        f"{requests['num_requests']} requests in {performance['total_latency_ms'] / 1e3:.1f} s, "
        f"{requests['avg_num_concurrent_requests']:.1f} at a time: "
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
