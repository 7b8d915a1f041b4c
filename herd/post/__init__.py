"""Post-training data: questions, preference pairs, reward scores and rejection sampling."""
