"""The chat in a terminal, or over a pipe, with a model here or a server."""
