"""Programs that people use talk to the server, as they are, at their default addresses.

They are installed once, apart from Herd, into `HERD_CLIENTS` or `~/.cache/herd/clients`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from herd.serve.app import create_app
from tests.serve.conftest import chat_engine, listening

pytestmark = pytest.mark.slow

CLIENTS = Path(__file__).parents[1] / "clients"
PYTHON = (
    *("openai_chat", "openai_responses", "openai_agents", "anthropic_messages", "langchain_openai"),
    *("langchain_anthropic", "langgraph", "autogen", "litellm", "pydantic_ai", "smolagents", "dspy"),
)
APART = ("instructor", "guidance")  # which want an older openai
JAVASCRIPT = ("openai", "ai", "ai_anthropic", "anthropic", "langchain")

HELLO, WEATHER = "Hello there.", "It is seventeen degrees in Rome."
CALL = '{"name": "get_weather", "parameters": {"city": "Rome"}}'


def place(listed: str) -> Path:
    """Where what a file lists is installed: another place for another list."""
    root = Path(os.environ.get("HERD_CLIENTS") or Path.home() / ".cache" / "herd" / "clients")
    return root / f"{listed}-{hashlib.sha256((CLIENTS / listed).read_bytes()).hexdigest()[:12]}"


def installed(folder: Path, *commands: list[str]) -> Path:
    """The folder once all commands ran in it; skips the tests where one fails, as without a network."""
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for command in commands:
            found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
            if found.returncode:
                pytest.skip(f"clients cannot be installed here: {found.stderr.strip()[-300:]}")
        (folder / "done").touch()
    return folder


@pytest.fixture(scope="module")
def python() -> str:
    return interpreter("requirements.txt")


@pytest.fixture(scope="module")
def apart() -> str:
    return interpreter("apart.txt")


def interpreter(name: str) -> str:
    """The Python of an environment that holds what a file lists."""
    folder, listed = place(name), str(CLIENTS / name)
    program = str(folder / "bin" / "python")
    uv = [program, "-m", "uv", "pip", "install", "-q", "--python", program, "-r", listed]
    pip = [program, "-m", "pip", "install", "-q", "uv"]  # which finds out in seconds what pip finds in minutes
    installed(folder, [sys.executable, "-m", "venv", "."], pip, uv)
    return program


@pytest.fixture(scope="module")
def scripts() -> Path:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("there is no node or npm")
    folder = place("package.json")
    installed(
        folder, ["cp", str(CLIENTS / "package.json"), "."], ["npm", "install", "--no-audit", "--no-fund", "--silent"]
    )
    shutil.copy(CLIENTS / "talks.mjs", folder)
    return folder


@pytest.fixture(scope="module")
def url():
    """A server whose tiny model says what a script has for what it is asked."""
    engine = chat_engine(max_position_embeddings=32_768)
    make, decode = engine.request, engine.tokenizer.decode

    def request(prompt, params, *more, **options):
        says = words(decode(prompt))
        if params.json_schema is None or says.startswith("{"):  # a text, or a call that had to come
            params = replace(params, json_schema=None, choice=(says,), temperature=0.0)
        return make(prompt, params, *more, **options)

    engine.request = request
    with listening(create_app(engine, name="tiny")) as found:
        yield found


def words(prompt: str) -> str:
    """What is said to a prompt."""
    if "[[ ## " in prompt:  # dspy's own form of answers
        return f"[[ ## answer ## ]]\n{HELLO}\n\n[[ ## completed ## ]]"
    asked = prompt.rpartition("Say hello.")[2] if "Say hello." in prompt else prompt
    if "Use the tool." not in asked:
        return HELLO
    if "seventeen" not in asked:
        return CALL
    if "final_answer" in prompt:  # a tool by which smolagents' agents end
        return json.dumps({"name": "final_answer", "parameters": {"answer": WEATHER}})
    return WEATHER


def check(told: dict) -> None:
    """What a client was told is what the model said."""
    assert told["text"] in (None, HELLO) and told["stream"] in (None, HELLO)
    assert told["tool"] in (None, WEATHER, "seventeen degrees")
    assert told["form"] is None or (set(told["form"]) == {"name", "age"} and 0 <= told["form"]["age"] <= 99)
    assert any(value is not None for value in told.values())


def run(command: list[str], folder: Path) -> dict:
    environment = {name: value for name, value in os.environ.items() if not re.match("PYTHON|OPENAI|ANTHROPIC", name)}
    environment |= {"OPENAI_AGENTS_DISABLE_TRACING": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1"}
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("name", PYTHON)
def test_a_client_in_python_is_served(python, url, tmp_path, name):
    check(run([python, str(CLIENTS / "talks.py"), name, url], tmp_path))


@pytest.mark.parametrize("name", APART)
def test_a_client_of_an_older_openai_is_served(apart, url, tmp_path, name):
    check(run([apart, str(CLIENTS / "talks.py"), name, url], tmp_path))


@pytest.mark.parametrize("name", JAVASCRIPT)
def test_a_client_in_javascript_is_served(scripts, url, name):
    check(run(["node", "talks.mjs", name, url], scripts))
