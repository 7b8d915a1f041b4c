"""Curation: from raw pages to clean, deduplicated, judged documents."""
