"""How an engine works, as a recipe or a command line says it; loads no PyTorch."""

from __future__ import annotations

from typing import Any, Literal

from herd.config import settings


@settings
class EngineSettings:
    """The engine's memory and ways."""

    cache_gb: float | None = None
    """Memory for keys and values in GB; a quarter of what is available when not given (all models together)."""
    cache_dtype: Literal["int8"] | None = None
    """int8 makes the cache half as large, with slightly other answers."""
    max_sequences: int = 64
    """Answers that grow at the same time."""
    deterministic: bool = False
    """The same request gives the same tokens whatever else runs; slower with many at once."""
    speculate: str | None = None
    """Guess tokens ahead where that gains: `lookup` from the text so far, or the path of a smaller model."""
    graphs: bool | None = None
    """Replay decode steps as CUDA graphs; on a GPU they are, unless this is false."""
    template: str | None = None
    """Format of conversations (llama3, chatml, tulu, vicuna, or a .jinja file), instead of the checkpoint's own."""
    date: str | None = None
    """What a chat template takes for today (2024-07-26); today when not given."""
    read_special: bool = False
    """Read special strings in prompts (<|im_end|>) as their tokens: only where all text is your own."""

    def __post_init__(self):
        if self.max_sequences < 1:
            raise ValueError("max_sequences must be at least 1")
        if self.cache_gb is not None and self.cache_gb <= 0:
            raise ValueError("cache_gb must be positive")

    def options(self) -> dict[str, Any]:
        """The arguments of `Engine`, without the number of sequences."""
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
