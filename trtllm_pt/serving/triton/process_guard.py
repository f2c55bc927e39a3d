"""Starts a shell beside each of our Python models, which acts when the model's process or the server is killed.

A model whose server was killed may hang in Triton's code while it holds the GIL, and its own child processes would
stay: the shell kills the model. When a model's process was killed, Triton 2.51 still reports the model as ready. If the
server loads models on request, the shell has it unload the model, and a client can load it again. Otherwise only a new
server helps, and the shell stops this one.
"""

from __future__ import annotations

import itertools
import os
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from trtllm_pt.job.python import module_command
from trtllm_pt.serving.direct_http import open_directly

LAST_SECONDS = 10  # how long a server that must exit still responds with the reason
_CHECK_SECONDS = 1
_UNLOAD_SECONDS = 60.0


class ProcessGuard:
    """Watches this process, which runs the model `name`, and its server until `end` is called."""

    def __init__(self, name: str) -> None:
        server, own = os.getppid(), os.getpid()
        options = _options(server)
        if can_load(options) and options.get("--allow-http") != "false":
            last = f"exec {shlex.join(module_command(__name__, _unload_url(options, name)))}"
        else:
            last = f"sleep {LAST_SECONDS}; kill {server}"
        state = f"$(cut -d ' ' -f 3 /proc/{own}/stat)"  # Z: the process is dead, but Triton has not reaped it
        script = (
            f"while kill -0 {server}; do case {state} in Z|'') {last}; exit;; esac; sleep {_CHECK_SECONDS}; done; "
            f"kill -9 {own}"
        )
        self._process = subprocess.Popen(
            ["sh", "-c", script], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def end(self) -> None:
        """Stop watching."""
        self._process.kill()
        self._process.wait()


def server_loads_models() -> bool:
    """Return whether the server of this process loads and unloads models on request. If not, one crashes it."""
    return can_load(_options(os.getppid()))


def can_load(options: Mapping[str, str]) -> bool:
    """Return whether a tritonserver with these options loads and unloads models on request."""
    return options.get("--model-control-mode") == "explicit"


def _options(pid: int) -> Mapping[str, str]:
    """Return the command-line options of a process, which may have the form `--name value` or `--name=value`."""
    words = Path(f"/proc/{pid}/cmdline").read_text().replace("=", "\0").split("\0")
    return dict(itertools.pairwise(words))


def _unload_url(options: Mapping[str, str], name: str) -> str:
    host = options.get("--http-address", "0.0.0.0")
    host = "127.0.0.1" if host == "0.0.0.0" else host
    return f"http://{host}:{options.get('--http-port', '8000')}/v2/repository/models/{name}/unload"


if __name__ == "__main__":
    open_directly(urllib.request.Request(sys.argv[1], b"{}"), _UNLOAD_SECONDS)
