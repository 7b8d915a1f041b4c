"""C++ and Triton kernels for the operations in `herd/ops`: compiled if possible, never required."""
