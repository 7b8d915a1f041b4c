"""Rounds of post-training: preferences of the current best, and what each round changed."""
