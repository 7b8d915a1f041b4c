"""`herd chat`, in a terminal and from a pipe."""

from __future__ import annotations

import io
import json
import os
import pwd
import select
import signal
import subprocess
import sys
import time

import pytest

from herd.data.shapes import talks_of
from herd.data.talks import Notes
from herd.errors import CapacityError, RequestError
from herd.infer.engine import Engine
from herd.serve.terminal.local import Local
from herd.serve.terminal.session import complete, converse, history_file, line_editing, print_answer
from herd.serve.terminal.talk import Talk
from herd.stages import chat
from herd.stages.chat import ChatSettings
from herd.types import SamplingParams
from tests.serve.conftest import heed_signals

LINES = "The quick\n\nWhat does this function do?\n"


def read_until(terminal: int, is_enough, seconds: float = 60) -> bytes:
    """What a program writes to its terminal, until it is enough."""
    said, end = b"", time.monotonic() + seconds
    while not is_enough(said):
        assert select.select([terminal], [], [], max(0, end - time.monotonic()))[0], f"it only said {said!r}"
        said += os.read(terminal, 1000)
    return said


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


def typing(monkeypatch, *lines: str) -> None:
    """Type these lines when a line is asked for; at their end, Ctrl-D."""
    typed = iter(lines)

    def read(_: str = "") -> str:
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)


def talk_of(folders, **settings) -> Talk:
    return Talk(Local(Engine(folders / "chat")), SamplingParams(**{"seed": 1, "max_tokens": 6} | settings))


def test_a_conversation_remembers_and_slash_commands_change_it(folders, monkeypatch, capsys):
    monkeypatch.setenv("HERD_QUIET", "")
    talk = talk_of(folders)
    typing(monkeypatch, "Hello", "/system Be brief.", "Hello", "and then?", "/nonsense", "/histry", "/quit", "never")
    converse(talk, "chat")
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
    assert talk.system == "Be brief." and talk.messages[0]["content"] == "Hello"
    shown = capsys.readouterr()
    assert "tokens/s" in shown.out
    assert "no command /nonsense" in shown.err and "did you mean /history?" in shown.err


def test_settings_are_changed_shown_and_checked(folders, monkeypatch, capsys):
    monkeypatch.setenv("HERD_QUIET", "")
    talk = talk_of(folders)
    typing(
        monkeypatch,
        "/set temperature 0",
        "/set",
        "/set temprature 1",
        "/set top_p 7",
        "/set seed none",
        "/set stop END",
    )
    converse(talk, "chat")
    assert (talk.params.temperature, talk.params.top_p, talk.params.seed, talk.params.stop) == (0, 0.9, None, ("END",))
    told = capsys.readouterr().err
    assert "temperature 0" in told and "did you mean temperature?" in told and "top_p must be" in told


def test_an_answer_is_made_again_and_turns_are_forgotten(folders, monkeypatch):
    talk = talk_of(folders, seed=None, temperature=2.0)
    typing(monkeypatch, "/retry", "One", "Two", "/retry")
    converse(talk, "chat")
    assert [message["content"] for message in talk.messages[::2]] == ["One", "Two"]
    typing(monkeypatch, "/undo")
    converse(talk, "chat")
    assert [message["content"] for message in talk.messages[::2]] == ["One"]
    typing(monkeypatch, "/reset", "/undo")
    converse(talk, "chat")
    assert talk.messages == []


def test_a_conversation_is_saved_as_training_reads_it_and_loaded_again(folders, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HERD_QUIET", "")
    talk, file = talk_of(folders), tmp_path / "talk.jsonl"
    typing(monkeypatch, "/system Be brief.", "Hello", f"/save {file}", "/reset", "/system", f"/load {file}")
    converse(talk, "chat")
    assert talk.system == "Be brief." and talk.messages[0]["content"] == "Hello"
    assert [message["role"] for message in talks_of(json.loads(file.read_text()), Notes())[0].messages] == [
        "system",
        "user",
        "assistant",
    ]
    file.write_text("not json")
    typing(monkeypatch, "/load", f"/load {file}", f"/load {tmp_path}/nothing", f"/save {file}/talk.jsonl")
    converse(talk, "chat")
    told = capsys.readouterr().err
    assert (
        "Which one? /load FILE" in told
        and "holds no conversation" in told
        and "cannot be read" in told
        and "cannot be written" in told
    )


@pytest.mark.parametrize(("name", "answering"), [("SIGTERM", False), ("SIGTERM", True), ("SIGHUP", False)])
def test_a_chat_that_is_told_to_end_ends(endless, tmp_path, name, answering):
    parent, child = os.openpty()
    command = [sys.executable, "-m", "herd", "chat", str(endless), "max_tokens=30000"]
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path), "TERM": "dumb", "HERD_QUIET": ""}
    streams = {"stdin": child, "stdout": child, "stderr": child}
    with subprocess.Popen(command, **streams, env=environment, preexec_fn=heed_signals) as process:
        os.close(child)
        read_until(parent, lambda said: b"> " in said)
        if answering:
            os.write(parent, b"Hello\n")
            read_until(parent, lambda said: len(said) > 200)
        else:
            time.sleep(0.3)
        process.send_signal(getattr(signal, name))
        assert process.wait(timeout=20) == 128 + getattr(signal, name)
    os.close(parent)


def test_several_lines_are_one_message_and_two_slashes_are_text(folders, monkeypatch):
    talk = talk_of(folders)
    typing(monkeypatch, "first \\", "second", '"""one', "  two", 'three"""', "//help me", "/usr/bin/env is what?")
    converse(talk, "chat")
    said = [message["content"] for message in talk.messages[::2]]
    assert said == ["first \nsecond", "one\n  two\nthree", "/help me", "/usr/bin/env is what?"]


def test_what_was_typed_is_there_the_next_time(folders, monkeypatch, tmp_path):
    readline = pytest.importorskip("readline", reason="this Python has no readline")
    file = tmp_path / "state" / "chat_history"
    with line_editing(file):
        readline.clear_history()
        readline.add_history("What is a llama?")
    readline.clear_history()
    assert file.stat().st_mode & 0o077 == 0
    with line_editing(file):
        assert readline.get_history_item(readline.get_current_history_length()) == "What is a llama?"
        assert complete("/re", 0) == "/reset" and complete("/re", 1) == "/retry"
    readline.clear_history()


def test_commands_work_in_a_pipe_and_never_reach_the_model(folders, monkeypatch, capsys):
    lines = "/set temperature 0\n/system Be brief.\nThe quick\n/nonsense\n//x\n" + "word " * 500 + "\n/quit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    status = chat.run(ChatSettings(path=folders / "chat", max_tokens=5, json=True))
    shown = capsys.readouterr()
    answers = [json.loads(line) for line in shown.out.splitlines()]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "The quick"}]
    engine, params = Engine(folders / "chat"), SamplingParams(temperature=0, max_tokens=5)
    messages_of_x = [messages[0], {"role": "user", "content": "/x"}]
    assert answers == [engine.generate(messages, params).text, None, engine.generate(messages_of_x, params).text, None]
    assert (
        status == 2 and "line 4: There is no command /nonsense" in shown.err and "line 6: The prompt has" in shown.err
    )


def test_a_server_is_talked_to_as_a_folder_is(folders, server, monkeypatch, capsys):
    for url in (server.url, f"{server.url}/v1/"):
        out = piped(monkeypatch, capsys, ChatSettings(path=url, seed=1, max_tokens=20, json=True, system="Be brief."))
        for line, answer in zip(filter(None, LINES.splitlines()), out.splitlines(), strict=True):
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": line}]
            assert json.loads(answer) == server.engine.generate(messages, SamplingParams(seed=1, max_tokens=20)).text


def test_a_servers_refusals_are_passed_on(server, monkeypatch, capsys):
    with pytest.raises(RequestError, match="has no model 'other'; there is: tiny"):
        chat.run(ChatSettings(path=server.url, model="other"))
    with pytest.raises(CapacityError, match="cannot be reached"):
        chat.run(ChatSettings(path="http://127.0.0.1:9"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("word " * 3000))
    assert chat.run(ChatSettings(path=server.url)) == 2
    assert "context is 2048" in capsys.readouterr().err


def test_talking_to_a_server_loads_no_pytorch(server):
    words = [sys.executable, "-X", "importtime", "-m", "herd", "chat", server.url, "max_tokens=3", "seed=1"]
    done = subprocess.run(words, input="Hello\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert not {"torch", "numpy", "fastapi", "transformers"} & loaded


def run_chat(folder, data: bytes, **environment):
    command = [sys.executable, "-m", "herd", "chat", str(folder), "max_tokens=8", "seed=1"]
    return subprocess.run(command, input=data, capture_output=True, timeout=90, env=os.environ | environment)


def test_bytes_that_are_no_text_are_told_of_and_text_is_written_as_well_as_can_be(folders):
    done = run_chat(folders / "chat", b"caf\xe9\nn\xc3\xa9\n", PYTHONIOENCODING="utf-8")
    assert done.returncode == 2 and b"line 1: this is no utf-8 text" in done.stderr
    assert done.stdout.startswith(b"\n") and len(done.stdout.splitlines()) >= 2
    done = run_chat(folders / "chat", b"Hi\n", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stdout.strip() and done.stdout.isascii() and not done.stderr


def test_without_standard_input_there_is_nobody_to_answer(folders, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(RequestError, match="standard input is closed"):
        chat.run(ChatSettings(path=folders / "chat"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_left_out_where_nobody_wants_them_and_codes_of_the_model_always(folders, monkeypatch):
    def shown(**environment) -> str:
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdout", Terminal())
        print_answer(Talk(Saying("a\x1b[2Jb\r\n\tc\x9b\x07"), SamplingParams()), "Hello")
        return sys.stdout.getvalue()

    assert shown(TERM="xterm").startswith("a�[2Jb\n\tc��\n\x1b[2m")
    for plain in ({"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}, {}):
        assert "\x1b" not in shown(**plain)


class Saying:
    """A speaker of one sentence."""

    speaks_chat = True

    def __init__(self, text: str) -> None:
        self.text = text

    def stream(self, inputs, params):
        yield self.text, 1


def test_ctrl_d_within_a_text_of_several_lines_ends_the_text_and_not_the_chat(folders, monkeypatch):
    talk = talk_of(folders, max_tokens=3)
    typed = iter(["one \\", EOFError(), '"""two', EOFError(), EOFError()])

    def read(_):
        if isinstance(line := next(typed), Exception):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    converse(talk, "chat")
    assert [message["content"] for message in talk.messages[::2]] == ["one ", "two"] and next(typed, None) is None


def test_end_of_input_leaves_and_ctrl_c_does_not(folders, monkeypatch, capsys):
    typed = iter([KeyboardInterrupt(), EOFError()])

    def read(_):
        raise next(typed)

    monkeypatch.setattr("builtins.input", read)
    converse(talk_of(folders), "chat")
    assert next(typed, None) is None


def test_an_answer_that_is_interrupted_stays_in_the_conversation(folders):
    talk = talk_of(folders, max_tokens=50)
    answer = talk.answer("Hello")
    parts = [next(answer)[0], next(answer)[0]]
    answer.close()
    assert talk.messages[-1]["content"] == "".join(parts)
    assert not talk.speaker.engine.has_work


def test_ctrl_c_stops_the_answer_and_not_the_program(folders, monkeypatch, capsys):
    talk = talk_of(folders, max_tokens=200, stop=())
    step, steps = talk.speaker.engine.step, []

    def interrupted() -> None:
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(talk.speaker.engine, "step", interrupted)
    print_answer(talk, "Hello")
    assert "[stopped]" in capsys.readouterr().out
    assert len(talk.messages) == 2 and not talk.speaker.engine.has_work


def test_an_overlong_line_is_explained_and_the_chat_goes_on(folders, monkeypatch, capsys):
    monkeypatch.setenv("HERD_QUIET", "")
    talk = talk_of(folders, max_tokens=3)
    print_answer(talk, "word " * 500)
    assert "context is 256" in capsys.readouterr().err
    assert talk.messages == []


def test_a_user_without_a_home_chats_without_a_history(monkeypatch, capsys):
    def nobody(user):
        raise KeyError(user)

    monkeypatch.delenv("HERD_QUIET", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert history_file() is None
    assert "what is typed is not kept" in capsys.readouterr().err
