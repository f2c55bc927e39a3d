"""The sizes that the embedded engine's Python code and its C++ ops share. This file imports nothing.

kernels/paths.h has the same sizes in C++. kernels/library.py compares them when it loads the op library.
"""

TILE = 16  # outputs per tile of packed weights
STEP_BYTES = 4  # consecutive bytes of one output in a tile: 2 inputs in bfloat16, 1 in float32
PAGE = 16  # tokens per page of the KV cache
MAX_HEAD_SIZE = 256
MAX_SUMMANDS = 256  # the most tracks per rank, and the most ranks, that one all-reduce can add
