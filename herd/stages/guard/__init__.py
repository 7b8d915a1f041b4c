"""Guards: small classifiers that judge what is asked, answered and brought by tools; train one, and check texts."""
