"""Triton kernels of SegNeXt and the network they make. Import it only where Triton is installed; docs/gpu.md."""
