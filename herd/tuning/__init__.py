"""Tuning on somebody's own rows: what they are, how to learn them here, and what that changed."""
