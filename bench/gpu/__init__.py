"""Measurements that need a CUDA device, one command each."""
