"""What a model keeps of its training texts, and where an answer's words come from."""
