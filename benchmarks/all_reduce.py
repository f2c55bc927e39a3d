"""Measure all-reduces alone: `mpirun -n 2 python benchmarks/all_reduce.py …`.

`trtllm-pt bench all-reduce --ranks 2 …` is the same command.
"""

import sys

from trtllm_pt.cli import main

if __name__ == "__main__":
    main(["bench", "all-reduce", *sys.argv[1:]])
