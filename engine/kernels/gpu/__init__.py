"""Kernels for GPUs, written in Triton. Imported only where Triton is installed."""
