"""`trtllm-pt plan`: predict every schedule of a model on a machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trtllm_pt.cli.options import json_option
from trtllm_pt.cli.text import count, memory, table
from trtllm_pt.model.config import ModelConfig
from trtllm_pt.model.presets import preset
from trtllm_pt.planner.engines import DEFAULT, PLAIN

if TYPE_CHECKING:
    from trtllm_pt.planner import Plan, Prediction


@click.command("plan")
@click.argument("model", metavar="PRESET|CONFIG.json|MODEL_DIR", required=False)
@click.option("--machine", metavar="NAME|FILE.json", default="8xH100", show_default=True, help="Target machine.")
@click.option(
    "--engine", type=click.Choice(tuple(PLAIN)), default=DEFAULT, show_default=True, help="Engine to predict."
)
@click.option("--ranks", "-g", type=click.IntRange(min=1), help="Number of devices to use.  [default: all]")
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Type of the weights.",
)
@click.option(
    "--input",
    "input_length",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Tokens of each prompt.",
)
@click.option(
    "--output",
    "output_length",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Tokens of each output.",
)
@click.option("--concurrency", type=click.IntRange(min=1), help="Concurrent requests.  [default: 1]")
@click.option("--request-rate", type=float, help="Arrival rate at random times (requests/s).")
@click.option(
    "--max-batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="Most sequences in a step."
)
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="FILE", help="Also write a plot to this PNG or SVG file."
)
@click.option("--validate", is_flag=True, help="Compare predictions with published tables.")
@json_option
def command(
    model: str | None,
    machine: str,
    engine: str,
    ranks: int | None,
    dtype: str,
    input_length: int,
    output_length: int,
    concurrency: int | None,
    request_rate: float | None,
    max_batch_size: int,
    plot: Path | None,
    validate: bool,
    as_json: bool,
) -> None:
    """Predict time to first token, time per token, throughput and memory for every schedule of a model.

    The model is compared with its variants that have equally many parameters: dense tensor parallelism, parallel,
    ladder, spd, desync, dtp, and Parallel Track with D = 1, 2, 4, 8. The machine is 8xA100, 8xH100, 8xH200, 8xB200,
    several nodes of one of them with the network ib400, eth100 or eth25 between them, such as 2x8xH100-ib400, or a
    JSON file with your own measurements. docs/planner.md explains the formulas, their sources and their accuracy.

    \b
    Examples:
      trtllm-pt plan pt-30b
      trtllm-pt plan dense-13b --machine 8xA100 --ranks 4 --input 4096 --output 512
      trtllm-pt plan pt-30b --concurrency 64 --plot pt-30b.svg
      trtllm-pt plan dense-30b --machine 2x8xH100-ib400
      trtllm-pt plan pt-30b --request-rate 12 --json | jq '.predictions[] | {name, tpot_s}'
      trtllm-pt plan mine.json --machine my-machine.json --engine embedded
      trtllm-pt plan --validate
    """
    if plot is not None:
        from trtllm_pt.plotting import check_plot

        check_plot(plot)
    if validate:
        if model is not None:
            raise click.UsageError("--validate cannot be combined with MODEL, as it predicts the published models")
        _validate(plot, as_json)
        return
    if model is None:
        raise click.UsageError("MODEL is missing: give the name of a preset or the path of a config")
    if concurrency is not None and request_rate is not None:
        raise click.UsageError("--concurrency and --request-rate cannot be combined")
    from trtllm_pt.planner import Workload, load_engine, load_machine, plan

    load = Workload(input_length, output_length, concurrency or 1, request_rate, max_batch_size)
    made = plan(_config(model), load_machine(machine), load_engine(engine), load, ranks, dtype)
    click.echo(json.dumps(made.to_json(), indent=2) if as_json else "\n".join(_page(model, made)))
    if plot is not None:
        from trtllm_pt.planner.plot import plot_plan

        plot_plan(made, plot)
        click.echo(f"wrote {plot}", err=True)


def _config(model: str) -> ModelConfig:
    path = Path(model)
    if path.is_dir():
        path = path / "config.json"
    elif path.suffix != ".json":
        return preset(model)
    return ModelConfig.from_file(path)


def _page(model: str, plan: Plan) -> Iterator[str]:
    from trtllm_pt.planner.plan import by_throughput

    load = plan.workload
    given = plan.predictions[0]
    at = f"{load.request_rate:g} requests/s" if load.request_rate else f"concurrency {load.concurrency}"
    yield f"{model}: {count(given.parameters)} parameters, {plan.dtype}"
    yield f"{plan.ranks} of {plan.machine}, {plan.engine}; {load.input} tokens in, {load.output} out, {at}"
    yield ""
    header: tuple[str, ...] = (
        "schedule",
        "syncs",
        "TTFT ms",
        "TPOT ms",
        "tokens/s",
        "wait prefill",
        "wait decode",
        "weights",
        "KV tokens",
    )
    if plan.nodes > 1:
        header += ("to one node",)
    yield table([_row(each) + _gain(plan, each) for each in plan.predictions], header)
    yield ""
    yield "wait: share of a forward in which ranks wait for an all-reduce. weights, KV tokens: per rank."
    if plan.nodes > 1:
        of = "throughput" if by_throughput(load) else "speed of a request"
        yield f"to one node: the {of}, divided by that of the same model on one node."
    yield from _advice(plan)


def _gain(plan: Plan, each: Prediction) -> tuple[str, ...]:
    """Return the cell of the column `to one node`, if there is one."""
    if plan.nodes == 1:
        return ()
    gain = plan.gain(each)
    return ("too big there" if gain is None else f"{gain:.2f}",)


def _row(each: Prediction) -> tuple[str, ...]:
    served = each.served
    return (
        each.name,
        str(each.sync_points),
        "overloaded" if served.ttft is None else f"{1e3 * served.ttft:.1f}",
        f"{1e3 * served.tpot:.2f}",
        f"{served.tokens_per_second:.0f}",
        f"{served.prompt.waiting:.1%}",
        f"{served.step.waiting:.1%}",
        memory(each.weight_bytes),
        count(each.kv_tokens) if each.fits else "too big",
    )


def _advice(plan: Plan) -> Iterator[str]:
    from trtllm_pt.planner.plan import NEAR, by_throughput, merit

    chosen, load = plan.recommended, plan.workload
    if chosen is None:
        yield f"Recommended: none, because no variant fits the memory of {plan.ranks} devices."
        return
    dense = next((each for each in plan.predictions if each.name == "tp"), None)
    gain = ""
    if dense is not None and merit(dense, load) > 0:
        measure = "tokens per second" if by_throughput(load) else "speed of a request"
        gain = f", {merit(chosen, load) / merit(dense, load):.2f} times tp's {measure}"
    why = f"the smallest D within {NEAR:.0%} of the best" if chosen.config.schedule == "pt" else "the best"
    yield f"Recommended: {chosen.name}{gain}; {why}."
    alone = plan.best_on_one_node()
    if alone is not None:
        times = merit(chosen, load) / merit(alone, load)
        worth = "worth it" if times > 1 else "not worth it"
        yield f"One node's best is {alone.name}; {plan.nodes} nodes reach {times:.2f} times that: {worth}."
    if any(each.name == "ladder" for each in plan.predictions):
        yield "Ladder's overlap has its published price; docs/planner.md says how far the predictions are off."


def _validate(plot: Path | None, as_json: bool) -> None:
    from trtllm_pt.planner.validation import report
    from trtllm_pt.planner.validation.held_out import held_out
    from trtllm_pt.planner.validation.validate import validate

    results, others = validate(), held_out()
    if as_json:
        click.echo(json.dumps(report.to_json(results, others), indent=2))
    else:
        for title, header, rows in report.page(results, others):
            click.echo(f"{title}\n{table(rows, header)}\n")
        click.echo("\n".join([report.NOTE, report.SUMMARY_NOTE, *report.verdicts(results)]))
    if plot is not None:
        from trtllm_pt.planner.plot import plot_validation

        plot_validation(results, plot)
        click.echo(f"wrote {plot}", err=True)
