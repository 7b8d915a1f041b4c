"""Numerical kernels: each one a plain reference, a fast path, and a test that the two agree."""
