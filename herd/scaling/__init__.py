"""What small runs say of large ones: laws of size and tokens, forecasts of benchmarks, mixtures of sources."""
