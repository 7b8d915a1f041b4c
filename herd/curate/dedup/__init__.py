"""Duplicates over the whole corpus: of URLs, of documents, of lines."""
