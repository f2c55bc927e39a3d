"""The sizes that the embedded engine's Python code and its C++ ops share. This file imports nothing.

The C++ side has them in kernels/paths.h; kernels/library.py compares both sides when it loads the op library.
"""

TILE = 16  # outputs in a tile of packed weights
STEP_BYTES = 4  # bytes of one output's inputs that a tile holds side by side: 2 in bfloat16, 1 in float32
PAGE = 16  # tokens in a page of the KV cache
MAX_HEAD_SIZE = 256
MAX_SUMMANDS = 256  # tracks of a rank, or ranks, that one all-reduce can add
