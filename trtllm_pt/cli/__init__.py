"""The command line: a file per command, imported when it is chosen, so that `--help` is instant."""

from trtllm_pt.cli.app import main, run_script

__all__ = ["main", "run_script"]
