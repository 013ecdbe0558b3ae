"""Kernels in PyTorch's own operations, for devices and forms without compiled loops."""
