"""docs/serving.md is true: every snippet in it runs, and every field it lists is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from herd import cli, config
from herd.formats.checkpoint import save
from herd.infer.engine import Engine
from herd.serve.app import create_app
from herd.serve.dialects.chat import ChatRequest
from herd.serve.dialects.completions import CompletionRequest
from herd.serve.forms import JsonSchema
from herd.serve.messages import ToolMessage
from herd.serve.tokens import EmbeddingRequest
from herd.stages.chat import ChatSettings
from herd.stages.quantize import QuantizeSettings
from herd.stages.serve import ServeSettings
from tests.infer.models import small_tokenizer, tiny_model
from tests.serve.conftest import listening

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
SETTINGS = {"chat": ChatSettings, "serve": ServeSettings, "quantize": QuantizeSettings}


def test_every_snippet_runs(tmp_path, capsys):
    tokenizer, folder = small_tokenizer(), tmp_path / "Llama"
    save(tiny_model(eos_token_id=list(tokenizer.stop_ids), max_position_embeddings=2048), folder, tokenizer)
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(snippets) >= 6
    names: dict = {"FOLDER": folder}
    with listening(create_app(Engine(folder), name="Llama")) as url:
        for snippet in snippets:
            exec(compile(snippet.replace("http://localhost:8000", url), str(PAGE), "exec"), names)
    assert "get_weather {'city': " in capsys.readouterr().out


def commands() -> list[list[str]]:
    """The words of every `herd` command on the page."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        command = re.search(r"\bherd (?:chat|serve|quantize) .*", line)
        if line.startswith("    ") and command:
            found.append(shlex.split(command[0].replace("$MODEL", "model"), comments=True)[1:])
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_understood(words):
    recipe, overrides = cli.sort_words(words[0], SETTINGS[words[0]], words[1:])
    config.load(SETTINGS[words[0]], recipe, overrides)


def test_the_fields_without_effect_are_all_listed():
    bodies = (ChatRequest, CompletionRequest, JsonSchema, ToolMessage)
    silent = {
        field
        for body in bodies
        for field, info in body.model_fields.items()
        if info.description == "Accepted; has no effect on the answer."
    }
    row = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if "no effect on the answer" in line)
    assert silent and all(f"`{field}`" in row for field in silent), silent


def test_the_fields_that_are_refused_are_all_listed():
    text = PAGE.read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| refused unless empty"))
    for body in (ChatRequest, CompletionRequest, EmbeddingRequest):
        for field, info in body.model_fields.items():
            if any("only.<locals>" in repr(entry) for entry in info.metadata):
                assert f"`{field}`" in row, field
