"""What an assistant works with: tools that run here while a model answers."""
