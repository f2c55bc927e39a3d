"""Static batches: `mpirun -n 2 python benchmarks/latency.py ENGINES …`, or `trtllm-pt bench latency ENGINES …`."""

import sys

from trtllm_pt.cli import main

if __name__ == "__main__":
    main(["bench", "latency", *sys.argv[1:]])
