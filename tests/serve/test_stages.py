"""`herd chat` and `herd serve`, as they are called."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

from herd.errors import CapacityError, CheckpointError, ConfigError, RequestError
from herd.infer.engine import Engine
from herd.model.checkpoint import save
from herd.stages import chat, serve
from herd.stages.chat import ChatSettings, Talk
from herd.stages.serve import ServeSettings
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model

LINES = "The quick\n\nWhat does this function do?\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model and one that speaks chat."""
    root, tokenizer = tmp_path_factory.mktemp("models"), small_tokenizer()
    save(tiny_model(), root / "base", tokenizer)
    save(tiny_model(eos_token_id=list(tokenizer.stop_ids)), root / "chat" / "checkpoint", tokenizer)
    return root


def piped(monkeypatch, capsys, settings: ChatSettings, lines: str = LINES) -> str:
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    chat.run(settings)
    return capsys.readouterr().out


def test_each_line_of_a_pipe_is_answered_as_one_json_string(folders, monkeypatch, capsys):
    out = piped(monkeypatch, capsys, ChatSettings(path=folders / "chat", seed=1, max_tokens=20, json=True))
    answers = [json.loads(line) for line in out.splitlines()]
    engine = Engine(folders / "chat")
    assert engine.speaks_chat
    for line, answer in zip(filter(None, LINES.splitlines()), answers, strict=True):
        expected = engine.generate([{"role": "user", "content": line}], SamplingParams(seed=1, max_tokens=20))
        assert answer == expected.text


def test_a_system_prompt_stands_before_the_line(folders, monkeypatch, capsys):
    settings = ChatSettings(path=folders / "chat", seed=1, max_tokens=20, json=True, system="Be brief.")
    out = piped(monkeypatch, capsys, settings, "The quick\n")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The quick"}]
    assert json.loads(out) == Engine(folders / "chat").generate(messages, SamplingParams(seed=1, max_tokens=20)).text


def test_a_base_model_goes_on_with_the_line(folders, monkeypatch, capsys):
    out = piped(monkeypatch, capsys, ChatSettings(path=folders / "base", temperature=0, max_tokens=9), "The quick\n")
    expected = Engine(folders / "base").generate("The quick", SamplingParams(temperature=0, max_tokens=9)).text
    assert out == expected + "\n"


def test_a_conversation_remembers_and_slash_commands_change_it(folders, monkeypatch, capsys):
    talk = Talk(Engine(folders / "chat"), SamplingParams(seed=1, max_tokens=6))
    typed = iter(["Hello", "/system Be brief.", "Hello", "and then?", "/nonsense", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    chat._converse(talk, folders / "chat")
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
    assert talk.system == "Be brief." and talk.messages[0]["content"] == "Hello"
    assert "tokens/s" in capsys.readouterr().out
    chat._command(talk, "/reset")
    assert talk.messages == []


def test_end_of_input_leaves_and_ctrl_c_does_not(folders, monkeypatch, capsys):
    typed = iter([KeyboardInterrupt(), EOFError()])

    def read(_):
        raise next(typed)

    monkeypatch.setattr("builtins.input", read)
    chat._converse(Talk(Engine(folders / "chat"), SamplingParams()), folders / "chat")
    assert next(typed, None) is None


def test_an_answer_that_is_interrupted_stays_in_the_conversation(folders):
    talk = Talk(Engine(folders / "chat"), SamplingParams(seed=1, max_tokens=50))
    answer = talk.answer("Hello")
    parts = [next(answer), next(answer)]
    answer.close()
    assert talk.messages[-1]["content"] == "".join(parts)
    assert not talk.engine.has_work


def test_an_overlong_line_is_explained_and_the_chat_goes_on(folders, monkeypatch, capsys):
    monkeypatch.setenv("HERD_QUIET", "")
    talk = Talk(Engine(folders / "chat"), SamplingParams(max_tokens=3))
    chat._print_answer(talk, "word " * 500)
    assert "context is 256" in capsys.readouterr().err
    assert talk.messages == []


def test_impossible_settings_are_refused_before_the_model_is_loaded(folders):
    with pytest.raises(RequestError, match="temperature"):
        chat.run(ChatSettings(path=folders / "nothing", temperature=-1))
    with pytest.raises(CheckpointError, match="does not exist"):
        chat.run(ChatSettings(path=folders / "nothing"))
    with pytest.raises(ConfigError, match="not an address"):
        serve.run(ServeSettings(path=folders / "chat", host="no.such.host.invalid"))
    with pytest.raises(ValueError, match="port"):
        ServeSettings(path=folders / "chat", port=99999)


def test_a_port_in_use_is_known_at_once(folders):
    taken = serve._listen("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(CapacityError, match="choose another port"):
        serve.run(ServeSettings(path=folders / "nothing", port=taken.getsockname()[1]))
    taken.close()


def test_the_server_starts_answers_and_stops_on_sigterm(folders):
    command = [sys.executable, "-m", "herd", "serve", str(folders / "chat"), "port=0"]
    environment = os.environ | {"HERD_QUIET": "", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        told = ""
        while "API" not in told:
            line = process.stderr.readline()
            assert line, told
            told += line
        port = re.search(r"localhost:(\d+)/v1", told).group(1)
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        response = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=20)
        assert response.status_code == 200 and response.json()["model"] == "chat"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
        assert "Traceback" not in process.stderr.read()
