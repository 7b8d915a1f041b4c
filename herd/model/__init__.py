"""The Llama model: configuration, layers, initialization, and checkpoints in the formats of Hugging Face and Meta."""
