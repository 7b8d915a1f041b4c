"""C++ and Triton twins of the operations in `herd/ops`: compiled where this machine can, never required."""
