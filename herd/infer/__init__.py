"""The inference engine: paged cache, continuous batching, sampling, quantization."""
