"""A stand-in for the parts of TensorRT-LLM that the network calls: its signatures, with PyTorch's numbers, on the CPU.

`api.json` holds TensorRT-LLM's own signatures (catalogue.py reads them). What has numbers here is declared with
`implements` and bound to them (binding.py); everything else exists, takes the same arguments, and refuses to run.
"""
