"""Native TensorRT engines: one plan per rank, of TensorRT's own layers, compiled with or without a GPU."""
