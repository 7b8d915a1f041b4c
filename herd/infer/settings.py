"""The engine's settings in recipes and on the command line; does not import PyTorch."""

from __future__ import annotations

from typing import Any, Literal

from herd.config import settings


@settings
class EngineSettings:
    """How the engine runs a model."""

    cache_gb: float | None = None
    """Size of the KV cache in GB, all models together; default: a quarter of the available memory."""
    cache_dtype: Literal["int8"] | None = None
    """int8 halves the KV cache and changes answers slightly."""
    max_sequences: int = 64
    """Most answers generated at the same time."""
    deterministic: bool = False
    """The same request gives the same tokens whatever else runs; slower with many requests."""
    speculate: str | None = None
    """Draft tokens ahead where that is faster: `lookup` from the text so far, or the path of a smaller model."""
    graphs: bool | None = None
    """Replay decode steps as CUDA graphs; default: on a GPU."""
    template: str | None = None
    """Chat format (llama3, chatml, tulu, vicuna, or a .jinja file) instead of the checkpoint's own template."""
    date: str | None = None
    """The date that the chat template is given, such as 2024-07-26; default: today."""
    read_special: bool = False
    """Read special strings in prompts (<|im_end|>) as special tokens; only if all text is your own."""

    def __post_init__(self):
        if self.max_sequences < 1:
            raise ValueError("max_sequences must be at least 1")
        if self.cache_gb is not None and self.cache_gb <= 0:
            raise ValueError("cache_gb must be positive")

    def options(self) -> dict[str, Any]:
        """The arguments of `Engine`, without `max_sequences`."""
        return {
            "cache_bytes": None if self.cache_gb is None else int(self.cache_gb * 1e9),
            "cache_dtype": self.cache_dtype,
            "deterministic": self.deterministic,
            "speculate": self.speculate,
            "graphs": self.graphs,
            "template": self.template,
            "date": self.date,
            "read_special": self.read_special,
        }
