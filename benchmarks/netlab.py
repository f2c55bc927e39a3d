"""Compare schedules over slow links, as root and without mpirun: `python benchmarks/netlab.py …`.

`trtllm-pt bench netlab …` is the same command.
"""

import sys

from trtllm_pt.cli import main

if __name__ == "__main__":
    main(["bench", "netlab", *sys.argv[1:]])
