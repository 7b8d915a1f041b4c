"""Reasons to drop a document: heuristics, language, address, outlier words, a benchmark inside it."""
