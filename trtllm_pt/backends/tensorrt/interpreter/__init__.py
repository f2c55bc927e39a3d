"""Execute a TensorRT network definition on PyTorch, to check it on a machine without a GPU.

It executes the layers as they were handed to TensorRT, not the kernels that the compiler makes of them.
"""
