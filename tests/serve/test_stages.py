"""`herd chat` and `herd serve`, as they are called."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import torch
import uvicorn

from herd import cli, config
from herd.data.conversations import as_messages
from herd.errors import CapacityError, CheckpointError, ConfigError, DataError, RequestError
from herd.formats.checkpoint import save
from herd.infer.engine import Engine
from herd.infer.settings import EngineSettings
from herd.serve.app import create_app
from herd.stages import chat, serve
from herd.stages.chat import ChatSettings, Local, Talk
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


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A base model whose answers take longer than any test."""
    folder = tmp_path_factory.mktemp("models") / "endless"
    model, tokenizer = tiny_model(max_position_embeddings=32_768, tie_word_embeddings=False), small_tokenizer()
    with torch.no_grad():  # every hidden state is large in one channel, which speaks against the tokens that end a text
        model.model.embed_tokens.weight[:, 0] = 50
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[sorted(tokenizer.stop_ids), 0] = -10
    save(model, folder, tokenizer)
    return folder


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
    chat._converse(talk, "chat")
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
    chat._converse(talk, "chat")
    assert (talk.params.temperature, talk.params.top_p, talk.params.seed, talk.params.stop) == (0, 0.9, None, ("END",))
    told = capsys.readouterr().err
    assert "temperature 0" in told and "did you mean temperature?" in told and "top_p must be" in told


def test_an_answer_is_made_again_and_turns_are_forgotten(folders, monkeypatch):
    talk = talk_of(folders, seed=None, temperature=2.0)
    typing(monkeypatch, "/retry", "One", "Two", "/retry")
    chat._converse(talk, "chat")
    assert [message["content"] for message in talk.messages[::2]] == ["One", "Two"]
    typing(monkeypatch, "/undo")
    chat._converse(talk, "chat")
    assert [message["content"] for message in talk.messages[::2]] == ["One"]
    typing(monkeypatch, "/reset", "/undo")
    chat._converse(talk, "chat")
    assert talk.messages == []


def test_a_conversation_is_saved_as_training_reads_it_and_loaded_again(folders, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HERD_QUIET", "")
    talk, file = talk_of(folders), tmp_path / "talk.jsonl"
    typing(monkeypatch, "/system Be brief.", "Hello", f"/save {file}", "/reset", "/system", f"/load {file}")
    chat._converse(talk, "chat")
    assert talk.system == "Be brief." and talk.messages[0]["content"] == "Hello"
    assert [message["role"] for message in as_messages(json.loads(file.read_text()))] == ["system", "user", "assistant"]
    file.write_text("not json")
    typing(monkeypatch, "/load", f"/load {file}", f"/load {tmp_path}/nothing", f"/save {file}/talk.jsonl")
    chat._converse(talk, "chat")
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
    chat._converse(talk, "chat")
    said = [message["content"] for message in talk.messages[::2]]
    assert said == ["first \nsecond", "one\n  two\nthree", "/help me", "/usr/bin/env is what?"]


def test_what_was_typed_is_there_the_next_time(folders, monkeypatch, tmp_path):
    readline = pytest.importorskip("readline", reason="this Python has no readline")
    file = tmp_path / "state" / "chat_history"
    with chat._line_editing(file):
        readline.clear_history()
        readline.add_history("What is a llama?")
    readline.clear_history()
    assert file.stat().st_mode & 0o077 == 0
    with chat._line_editing(file):
        assert readline.get_history_item(readline.get_current_history_length()) == "What is a llama?"
        assert chat._complete("/re", 0) == "/reset" and chat._complete("/re", 1) == "/retry"
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
        chat._print_answer(Talk(Saying("a\x1b[2Jb\r\n\tc\x9b\x07"), SamplingParams()), "Hello")
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
    chat._converse(talk, "chat")
    assert [message["content"] for message in talk.messages[::2]] == ["one ", "two"] and next(typed, None) is None


def test_end_of_input_leaves_and_ctrl_c_does_not(folders, monkeypatch, capsys):
    typed = iter([KeyboardInterrupt(), EOFError()])

    def read(_):
        raise next(typed)

    monkeypatch.setattr("builtins.input", read)
    chat._converse(talk_of(folders), "chat")
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
    chat._print_answer(talk, "Hello")
    assert "[stopped]" in capsys.readouterr().out
    assert len(talk.messages) == 2 and not talk.speaker.engine.has_work


def test_an_overlong_line_is_explained_and_the_chat_goes_on(folders, monkeypatch, capsys):
    monkeypatch.setenv("HERD_QUIET", "")
    talk = talk_of(folders, max_tokens=3)
    chat._print_answer(talk, "word " * 500)
    assert "context is 256" in capsys.readouterr().err
    assert talk.messages == []


def test_impossible_settings_are_refused_before_the_model_is_loaded(folders):
    with pytest.raises(RequestError, match="temperature"):
        chat.run(ChatSettings(path=folders / "nothing", temperature=-1))
    with pytest.raises(CheckpointError, match="does not exist"):
        chat.run(ChatSettings(path=folders / "nothing"))
    with pytest.raises(ConfigError, match="not an address"):
        serve.run(ServeSettings(path=[folders / "chat"], host="no.such.host.invalid"))
    with pytest.raises(ValueError, match="port"):
        ServeSettings(path=[folders / "chat"], port=99999)


def test_a_port_in_use_is_known_at_once(folders):
    taken = serve._listen("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(CapacityError, match="choose another port"):
        serve.run(ServeSettings(path=[folders / "nothing"], port=taken.getsockname()[1]))
    taken.close()


def test_of_two_servers_that_start_at_once_on_one_port_the_later_one_says_so(folders):
    """Both may bind the port, as long as neither listens."""
    first = serve._listen("127.0.0.1", 0)
    settings = ServeSettings(path=[folders / "chat"], port=first.getsockname()[1])
    second = serve._listen("127.0.0.1", settings.port)
    serve._begin_to_listen(first, settings)
    with pytest.raises(CapacityError, match="choose another port"):
        serve._begin_to_listen(second, settings)
    first.close(), second.close()


@pytest.mark.parametrize("name", ["", " ", "a\nb"])
def test_a_model_has_a_name_that_clients_can_give(folders, name):
    for given in ({"name": [name]}, {"adapters": {name: folders}}):
        with pytest.raises(ValueError, match="no name that clients could give"):
            ServeSettings(path=[folders / "chat"], **given)


def test_keys_are_read_with_their_owners_and_faults_are_named(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text("anna: key-a\nben: key-b\n")
    assert serve.read_keys(file) == {"anna": "key-a", "ben": "key-b"}
    for text, words in (("", "name: key"), ("- a", "name: key"), ("a: 5", "name: key"), ("a: [", "not YAML")):
        file.write_text(text)
        with pytest.raises(DataError, match=words):
            serve.read_keys(file)
    file.write_text("a: same\nb: same")
    with pytest.raises(DataError, match="one key to two names"):
        serve.read_keys(file)
    with pytest.raises(DataError, match="cannot be read"):
        serve.read_keys(tmp_path / "nothing")


@pytest.mark.parametrize("key", ["a\nb", "sesame\n", " sesame"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(folders, key, tmp_path, monkeypatch):
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps({"anna": key}))
    with pytest.raises(ConfigError, match="the key of anna") as error:
        serve.run(ServeSettings(path=[folders / "nothing"], keys=file, port=0))
    assert key.strip() not in str(error.value)
    monkeypatch.setenv("HERD_KEY", key)
    with pytest.raises(ConfigError, match="the key of HERD_KEY"):
        serve.run(ServeSettings(path=[folders / "nothing"], port=0))


def test_several_words_are_several_models_and_each_needs_a_name(folders):
    paths = [str(folders / "chat"), str(folders / "base")]
    recipe, words = cli.sort_words("serve", ServeSettings, [*paths, "port=1"])
    settings = config.load(ServeSettings, recipe, words)
    assert [str(path) for path in settings.path] == paths and settings.port == 1
    with pytest.raises(ConfigError, match="two models are called base"):
        serve.run(ServeSettings(path=[folders / "base"] * 2))
    with pytest.raises(ValueError, match="1 names for 2 paths"):
        ServeSettings(path=paths, name=["a"])


def test_the_engines_ways_are_settings_and_leave_the_answers(folders):
    ways = EngineSettings(cache_gb=0.01, deterministic=True, speculate="lookup", max_sequences=3)
    engine = serve._open(folders / "chat", ServeSettings(path=[folders / "chat"], engine=ways))
    assert engine.cache_bytes <= 0.01e9
    params = SamplingParams(temperature=0, max_tokens=30)
    assert (
        engine.generate("one two one two", params).text
        == Engine(folders / "chat").generate("one two one two", params).text
    )


def heed_signals() -> None:
    """As from a terminal, also where the tests run in the background (`nohup`, `&`), which signals are ignored in."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(*words, **environment) -> tuple[subprocess.Popen, int]:
    """`herd serve` in a process of its own, and its port."""
    command = [sys.executable, "-m", "herd", "serve", *words, "port=0"]
    settings = os.environ | {"HERD_QUIET": "", "OMP_NUM_THREADS": "1"} | environment
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=settings, preexec_fn=heed_signals)
    told = ""
    while "API" not in told:
        line = process.stderr.readline()
        assert line, told
        told += line
    return process, int(re.search(r"localhost:(\d+)/v1", told).group(1))


def test_the_server_starts_answers_and_stops_on_sigterm(folders):
    paths = [str(folders / "chat"), str(folders / "base")]
    process, port = started(*paths, "log.form=json", HERD_KEY="sesame")
    with process:
        for name, path in (("chat", "chat/completions"), ("base", "completions")):
            body = {"model": name, "max_tokens": 3}
            body |= {"messages": [{"role": "user", "content": "hi"}]} if name == "chat" else {"prompt": "hi"}
            url = f"http://127.0.0.1:{port}/v1/{path}"
            assert httpx.post(url, json=body, timeout=20).status_code == 401
            response = httpx.post(url, json=body, timeout=20, headers={"Authorization": "Bearer sesame"})
            assert response.status_code == 200 and response.json()["model"] == name
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) == 0
        rest = process.stderr.read()
    assert "Traceback" not in rest and [json.loads(line)["status"] for line in rest.splitlines()] == [401, 200] * 2


@pytest.mark.parametrize(
    "signals",
    [("SIGINT",), ("SIGINT", "SIGINT"), ("SIGTERM", "SIGINT", "SIGINT"), ("SIGHUP",)],
    ids=" ".join,
)
def test_signals_under_load_leave_no_trace_and_every_client_hears_how_it_ended(endless, signals):
    """One client reads, one waits for its whole answer, one does not read, one has not sent its request yet."""
    process, port = started(str(endless), "limits.drain_seconds=1", "log.form=off")
    body = {"prompt": "hi", "max_tokens": 30_000, "min_tokens": 30_000}
    whole = []
    asking = threading.Thread(
        target=lambda: whole.append(httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60))
    )
    asking.start()
    with (
        process,
        socket.create_connection(("127.0.0.1", port)) as deaf,
        socket.create_connection(("127.0.0.1", port)) as slow,
    ):
        deaf.sendall(_raw(body | {"stream": True, "logprobs": 5, "n": 4}))
        slow.sendall(_raw(body)[:-5])
        with httpx.stream(
            "POST", f"http://127.0.0.1:{port}/v1/completions", json=body | {"stream": True}, timeout=60
        ) as stream:
            lines = stream.iter_lines()
            next(lines)
            for name in signals:
                process.send_signal(getattr(signal, name))
                time.sleep(0.3)
            last = [line for line in lines if line][-1]
        asking.join()
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == ""
    assert json.loads(last[6:])["error"]["code"] == "stopping"
    assert whole[0].status_code == 503 and whole[0].json()["error"]["code"] == "stopping"


def _raw(body: dict) -> bytes:
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def test_told_to_stop_the_server_lets_answers_end_or_cuts_them(folders):
    """The first answer fits into the time that is left, the second one does not."""
    for drain_seconds, fits in ((20, True), (0.5, False)):
        engine = Engine(folders / "chat", max_sequences=2)
        step = engine.step
        engine.step = lambda step=step: (time.sleep(0.02), step())
        app = create_app(engine, name="slow")
        server = serve.Draining(uvicorn.Config(app, port=0, log_level="critical"), app.state.server, drain_seconds)
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100, "stream": True, "min_tokens": 100}
        with httpx.stream("POST", f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=20) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.handle_exit(signal.SIGTERM, None)
            last = [line for line in lines if line][-1]
        thread.join(timeout=10)
        assert not thread.is_alive()
        assert last == "data: [DONE]" if fits else json.loads(last[6:])["error"]["code"] == "stopping", last
