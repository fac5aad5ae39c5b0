"""Launches of the Triton kernels that SGLang runs, with tensors as the server would pass them."""
