"""Personal data and secrets: found, confirmed where the format allows it, masked."""
