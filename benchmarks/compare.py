"""Compare schedules: `mpirun -n 2 python benchmarks/compare.py …`.

`trtllm-pt bench compare --ranks 2 …` is the same command.
"""

import sys

from trtllm_pt.cli import main

if __name__ == "__main__":
    main(["bench", "compare", *sys.argv[1:]])
