"""`herd serve`, as it is called, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
import uvicorn

from herd import cli, config
from herd.errors import CapacityError, CheckpointError, ConfigError, DataError, RequestError
from herd.infer.engine import Engine
from herd.infer.settings import EngineSettings
from herd.serve.app import create_app
from herd.serve.keys import read_keys
from herd.serve.server import Draining, begin_to_listen, bound, open_engines
from herd.stages import chat, serve
from herd.stages.chat import ChatSettings
from herd.stages.serve import ServeSettings
from herd.types import SamplingParams
from tests.serve.conftest import heed_signals


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
    taken = bound("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(CapacityError, match="choose another port"):
        serve.run(ServeSettings(path=[folders / "nothing"], port=taken.getsockname()[1]))
    taken.close()


def test_of_two_servers_that_start_at_once_on_one_port_the_later_one_says_so(folders):
    """Both may bind the port, as long as neither listens."""
    first = bound("127.0.0.1", 0)
    settings = ServeSettings(path=[folders / "chat"], port=first.getsockname()[1])
    second = bound("127.0.0.1", settings.port)
    begin_to_listen(first, settings.host, settings.port)
    with pytest.raises(CapacityError, match="choose another port"):
        begin_to_listen(second, settings.host, settings.port)
    first.close(), second.close()


@pytest.mark.parametrize("name", ["", " ", "a\nb"])
def test_a_model_has_a_name_that_clients_can_give(folders, name):
    for given in ({"name": [name]}, {"adapters": {name: folders}}):
        with pytest.raises(ValueError, match="no name that clients could give"):
            ServeSettings(path=[folders / "chat"], **given)


def test_keys_are_read_with_their_owners_and_faults_are_named(tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text("anna: key-a\nben: key-b\n")
    assert read_keys(file) == {"anna": "key-a", "ben": "key-b"}
    for text, words in (("", "name: key"), ("- a", "name: key"), ("a: 5", "name: key"), ("a: [", "not YAML")):
        file.write_text(text)
        with pytest.raises(DataError, match=words):
            read_keys(file)
    file.write_text("a: same\nb: same")
    with pytest.raises(DataError, match="one key to two names"):
        read_keys(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_keys(tmp_path / "nothing")


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
    engine = open_engines({"one": folders / "chat"}, ways, "cpu")["one"]
    assert engine.cache_bytes <= 0.01e9
    params = SamplingParams(temperature=0, max_tokens=30)
    assert (
        engine.generate("one two one two", params).text
        == Engine(folders / "chat").generate("one two one two", params).text
    )


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
        server = Draining(uvicorn.Config(app, port=0, log_level="critical"), app.state.server, drain_seconds)
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
