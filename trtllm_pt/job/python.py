"""Command lines that start this Python without the working directory on the import path.

`python -m` and `python -c` import from the working directory first. So a process that is started there would run the
code of another clone, or a file that is called `queue.py` instead of the standard library's module. Python's own
option against this, -P, is missing in Python 3.10.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

# `-c` puts an empty string, which stands for the working directory, at the head of the path.
_WITHOUT_WORKING_DIRECTORY = "import sys; sys.path[:] = [folder for folder in sys.path if folder]; "
_RUN_MODULE = "import runpy; del sys.argv[0]; runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"


def module_command(module: str, *arguments: str) -> Sequence[str]:
    """Return the command that runs a module as `python -m module` does."""
    return [sys.executable, "-c", _WITHOUT_WORKING_DIRECTORY + _RUN_MODULE, module, *arguments]


def code_command(code: str) -> Sequence[str]:
    """Return the command that runs code as `python -c` does."""
    return [sys.executable, "-c", _WITHOUT_WORKING_DIRECTORY + code]
