"""The published tables: nothing of PT's column enters a prediction, and the errors are what the page says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trtllm_pt.planner.engines import CALIBRATION
from trtllm_pt.planner.validation.calibrate import calibrate, to_json
from trtllm_pt.planner.validation.held_out import held_out
from trtllm_pt.planner.validation.published import PUBLISHED, load_published
from trtllm_pt.planner.validation.report import cell_rows, summary_rows
from trtllm_pt.planner.validation.validate import Result, validate


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return validate()


@pytest.fixture(scope="module")
def without_pt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables with PT's columns deleted."""
    data = json.loads(PUBLISHED.read_text())
    for table in data["tables"]:
        for row in table["rows"]:
            del row["pt"]
    path = tmp_path_factory.mktemp("tables") / "dense.json"
    path.write_text(json.dumps(data))
    return path


def test_calibration_needs_no_pt_row_and_is_the_committed_one(without_pt: Path) -> None:
    fitted = to_json(calibrate(load_published(without_pt)))
    committed = json.loads(CALIBRATION.read_text())
    assert fitted["engines"].keys() == committed["engines"].keys()
    for engine, numbers in committed["engines"].items():
        assert fitted["engines"][engine] == pytest.approx(numbers, rel=1e-3)


def test_predictions_are_the_same_without_pt_rows(results: list[Result], without_pt: Path) -> None:
    blind = validate(load_published(without_pt))
    for result, other in zip(results, blind, strict=True):
        assert other.error is None
        for cell, twin in zip(result.cells, other.cells, strict=True):
            assert (cell.predicted, cell.predicted_change, cell.band) == (
                twin.predicted,
                twin.predicted_change,
                twin.band,
            )


def test_every_cell_is_there(results: list[Result]) -> None:
    assert [(each.number, len(each.dense), len(each.cells)) for each in results] == [
        (5, 6, 18), (6, 6, 18), (7, 9, 27), (8, 6, 18), (9, 6, 18), (10, 9, 27)
    ]  # fmt: skip
    assert results[2].cells[2].printed == 5.91
    assert results[2].cells[2].printed_change == pytest.approx(-10.86, abs=0.01)
    for result in results:
        assert all(cell.band[0] <= cell.predicted_change <= cell.band[1] for cell in result.cells)


def test_naive_predictors(results: list[Result]) -> None:
    """Figures that do not depend on the planner."""
    assert [round(each.error_no_change or 0, 1) for each in results] == [15.6, 20.0, 7.2, 10.3, 16.8, 3.6]
    assert [round(each.error_constant or 0, 2) for each in results[1:3]] == [2.43, 1.01]


def test_goals_are_met(results: list[Result]) -> None:
    ttft, tpot = results[1], results[2]
    assert ttft.error is not None
    assert tpot.error is not None
    assert ttft.error < 4
    assert tpot.error < 2


def test_gain_fades_with_the_context(results: list[Result]) -> None:
    changes = [cell.predicted_change for cell in results[2].cells if cell.depth == 8 and cell.output == 128]
    assert changes == sorted(changes)


def test_held_out_dense_is_near_with_nothing_fitted() -> None:
    dense, *others = held_out()
    assert dense.predicted == pytest.approx(dense.printed, rel=0.1)
    assert all(each.predicted > 1 for each in others if each.figure == "times tp")


def test_the_page_shows_this(results: list[Result]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "planner.md").read_text()
    for row in summary_rows(results):
        assert "| " + " | ".join(row) + " |" in page


def test_golden_cells(results: list[Result]) -> None:
    assert [" ".join(row) for row in cell_rows(results[2])[:3]] == [
        "1024/128 2 6.31 6.20 -4.8 -6.2 -1.4 -8.4 .. -3.9",
        "1024/128 4 6.08 6.06 -8.3 -8.2 +0.1 -10.7 .. -5.6",
        "1024/128 8 5.91 6.00 -10.9 -9.2 +1.6 -11.9 .. -6.4",
    ]
