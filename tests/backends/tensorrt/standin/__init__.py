"""A stand-in for what runs plans on GPUs: TensorRT's runtime, the GPU's memory and stream, and NCCL.

Its plans are networks as they were defined, and the interpreter executes them on PyTorch, on the CPU. The collectives
are messages of MPI between the ranks' processes. test_stand_in.py holds its classes to the real bindings' signatures.
"""
