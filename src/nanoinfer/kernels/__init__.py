"""Device kernels and, beside them, the same operations in plain PyTorch."""
