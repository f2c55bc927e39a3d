"""All-reduces alone: `mpirun -n 2 python benchmarks/all_reduce.py …`, or `trtllm-pt bench all-reduce --ranks 2 …`."""

import sys

from trtllm_pt.cli import main

if __name__ == "__main__":
    main(["bench", "all-reduce", *sys.argv[1:]])
