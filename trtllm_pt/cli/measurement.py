"""What all measurements have in common: files that are saved while they run, and a result that is shown at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from trtllm_pt.bench.results import Results, Row


@dataclass(frozen=True, slots=True)
class Output:
    """Where the results of a measurement go. The fields are the options of the same names."""

    report_json: Path | None = None
    output_csv: Path | None = None
    plots: tuple[Path, ...] = ()
    as_json: bool = False
    as_csv: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError if a file cannot be written, before anything is measured."""
        from trtllm_pt.bench.results import check_target
        from trtllm_pt.plotting import check_plot

        check_target(self.output_csv, "--output_csv")
        check_target(self.report_json, "--report_json")
        for plot in self.plots:
            check_plot(plot)


@dataclass(frozen=True, slots=True)
class View:
    """How a measurement shows what it has so far. `report` and `rows` are called again for every state."""

    report: Callable[[], Any]  # for JSON
    rows: Callable[[], Sequence[Row]]  # for CSV
    page: Callable[[Any], str]  # makes text for people of the report
    plot: Callable[[Any, Path], None] | None = None


@contextmanager
def measuring(output: Output | None, view: View, measured: Sized) -> Iterator[Results]:
    """Keep the files of `output` up to date while the body measures, and show the result after it.

    The body calls `save` of the Results that it gets. The files are also saved if the body fails or is interrupted.
    `measured` is a container that is empty until there is a result. Without an output, as on the ranks other than 0,
    nothing is written or shown.
    """
    from trtllm_pt.bench.results import Results, as_csv_text, as_json_text

    results = Results({}, measured)
    if output is not None:
        texts = {
            output.report_json: lambda: as_json_text(view.report()),
            output.output_csv: lambda: as_csv_text(view.rows()),
        }
        results = Results(texts, measured)
    try:
        yield results
    except KeyboardInterrupt:
        results.save(now=True)
        if output is not None:
            click.echo(f"interrupted; kept {', '.join(map(str, results.paths)) or 'nothing'}", err=True)
        raise
    finally:
        results.save(now=True)
    if output is not None:
        _show(output, view)


def _show(output: Output, view: View) -> None:
    from trtllm_pt.bench.results import as_csv_text, as_json_text

    report = view.report()
    if output.as_csv:
        click.echo(as_csv_text(view.rows()), nl=False)
    elif output.as_json:
        click.echo(as_json_text(report), nl=False)
    else:
        click.echo(view.page(report))
    for path in output.plots:
        assert view.plot is not None
        view.plot(report, path)
