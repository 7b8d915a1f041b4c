"""Herd raises Llama-3-class models, from raw web pages to a guarded assistant.

The public Python API; everything loads on first use, so that `import herd` stays instant.

    model, tokenizer = herd.load("runs/demo")              # model(tokens) -> logits
    engine = herd.Engine("runs/demo")
    engine.generate("def main(", herd.SamplingParams(max_tokens=40)).text
    herd.html_to_text("<p>Hello</p>")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from herd.curate.extract.html import html_to_text
    from herd.formats.checkpoint import open_checkpoint
    from herd.formats.pretrained import load
    from herd.formats.vocabulary import open_tokenizer
    from herd.infer.engine import Engine
    from herd.knowledge.build import index_folder
    from herd.knowledge.citations import cite
    from herd.knowledge.index import Index
    from herd.knowledge.reading import read_out
    from herd.stages.tune import tune
    from herd.tokenizer.tokenizer import Tokenizer
    from herd.types import Completion, SamplingParams

__version__ = "0.1.0"
__all__ = [
    "Completion",
    "Engine",
    "Index",
    "SamplingParams",
    "Tokenizer",
    "cite",
    "html_to_text",
    "index_folder",
    "load",
    "open_checkpoint",
    "open_tokenizer",
    "read_out",
    "tune",
]

_HOMES = {
    "Completion": "herd.types",
    "Engine": "herd.infer.engine",
    "Index": "herd.knowledge.index",
    "SamplingParams": "herd.types",
    "Tokenizer": "herd.tokenizer.tokenizer",
    "cite": "herd.knowledge.citations",
    "html_to_text": "herd.curate.extract.html",
    "index_folder": "herd.knowledge.build",
    "load": "herd.formats.pretrained",
    "open_checkpoint": "herd.formats.checkpoint",
    "open_tokenizer": "herd.formats.vocabulary",
    "read_out": "herd.knowledge.reading",
    "tune": "herd.stages.tune",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'herd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
