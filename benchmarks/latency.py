"""Measure static batches: `mpirun -n 2 python benchmarks/latency.py ENGINES …`.

`trtllm-pt bench latency ENGINES …` is the same command.
"""

import sys

from trtllm_pt.cli import main

if __name__ == "__main__":
    main(["bench", "latency", *sys.argv[1:]])
