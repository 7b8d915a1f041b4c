"""What a model is worth: bits per byte, baselines, needles in long contexts, answers against references."""
