"""Scaling: laws of size and tokens from small runs, forecasts held against larger ones, mixtures, sources' worth."""
