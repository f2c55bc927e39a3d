"""The error of a rank, on its way to the owner of the job."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trtllm_pt.errors import RunError, UsageError
from trtllm_pt.job.last_words import read_last_words


@pytest.mark.parametrize(("kind", "status"), [("UsageError", 2), ("RunError", 1)])
def test_an_error_comes_as_what_it_was(kind: str, status: int) -> None:
    code = (
        "from trtllm_pt.errors import RunError, UsageError\nfrom trtllm_pt.job.last_words import last_words\n"
        f"with last_words():\n    raise {kind}('this is why')\nprint('never')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    found = read_last_words(f"another line\n{done.stderr}trtllm-pt: error: a later one\n")
    assert type(found) is {"UsageError": UsageError, "RunError": RunError}[kind] and str(found) == "this is why"


def test_there_may_be_none() -> None:
    assert read_last_words("error: of something else\n") is None
