"""Traffic: `mpirun -n 2 python benchmarks/throughput.py ENGINES …`, or `trtllm-pt bench throughput ENGINES …`."""

import sys

from trtllm_pt.cli import main

if __name__ == "__main__":
    main(["bench", "throughput", *sys.argv[1:]])
