"""Learn from verifiable rewards."""
