"""The command line. Each command is a file that is imported when the command runs, so that `--help` is fast."""

from trtllm_pt.cli.app import main, run_script

__all__ = ["main", "run_script"]
