"""Measure traffic: `mpirun -n 2 python benchmarks/throughput.py ENGINES …`.

`trtllm-pt bench throughput ENGINES …` is the same command.
"""

import sys

from trtllm_pt.cli import main

if __name__ == "__main__":
    main(["bench", "throughput", *sys.argv[1:]])
