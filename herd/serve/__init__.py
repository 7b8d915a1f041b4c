"""The server: OpenAI's API over one engine, and a chat page."""
