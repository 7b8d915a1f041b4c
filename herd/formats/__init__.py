"""Checkpoints as the world writes them: safetensors, GGUF, Meta's files; opened, converted, compared."""
