"""Windows: every token is predicted once, with as much context as was asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtllm_pt.errors import UsageError
from trtllm_pt.evaluation.windows import Window, check_windows, windows


def test_examples() -> None:
    assert list(windows(1, 4, 4)) == []
    assert list(windows(5, 4, 4)) == [Window(0, 5, 4)]
    assert list(windows(8, 4, 4)) == [Window(0, 5, 4), Window(3, 8, 3)]  # the last one has all the context that it can
    assert list(windows(9, 4, 2)) == [Window(0, 5, 4), Window(2, 7, 2), Window(4, 9, 2)]


@given(tokens=st.integers(1, 200), window=st.integers(1, 50), stride=st.integers(1, 50))
def test_properties(tokens: int, window: int, stride: int) -> None:
    stride = min(stride, window)
    predicted = []
    for one in windows(tokens, window, stride):
        assert 0 <= one.begin < one.end <= tokens and 1 <= one.end - one.begin - 1 <= window
        first = one.end - one.predicted
        assert first - one.begin >= min(first, window - stride + 1), "context of the first predicted token"
        predicted += range(first, one.end)
    assert predicted == list(range(1, tokens))


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [(100, 1, r"--window \(100\) must be at most 99"), (10, 11, r"--stride \(11\) must be at most --window \(10\)")],
)
def test_refusals(window: int, stride: int, message: str) -> None:
    check_windows(99, 99, 100)
    with pytest.raises(UsageError, match=message):
        check_windows(window, stride, 100)
