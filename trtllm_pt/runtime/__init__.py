"""Running engines: the Python API `LLM`, the runtime that starts ranks of its own, and the program of such a rank."""
