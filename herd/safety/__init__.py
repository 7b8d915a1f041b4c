"""Guards: what may be asked and answered, learned from labelled rows, and read behind disguises."""
