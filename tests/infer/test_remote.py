"""An OpenAI-compatible endpoint in the place of an engine."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from herd.endpoint import Endpoint, Patience
from herd.errors import CapacityError, RequestError
from herd.infer.engine import Engine
from herd.infer.remote import RemoteEngine
from herd.post.sampling import sample_answers
from herd.serve.app import create_app
from herd.serve.client import Client
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model
from tests.scripted import Scripted, events, http
from tests.serve.conftest import listening

QUICK = Patience(tries=2, pause_seconds=0.001)
QUESTIONS = [[{"role": "user", "content": text}] for text in ("What does it do?", "Join paths", "Why?")]


@pytest.fixture(scope="module")
def engine() -> Engine:
    """A tiny model that speaks chat."""
    tokenizer = small_tokenizer()
    return Engine.of(tiny_model(eos_token_id=[tokenizer.eot_id]), tokenizer)


@pytest.fixture(scope="module")
def url(engine) -> str:
    with listening(create_app(engine, name="tiny")) as address:
        yield f"{address}/v1"


def test_the_answers_of_a_herd_server_are_those_of_its_engine(engine, url):
    remote = RemoteEngine(url)
    params = SamplingParams(temperature=1.1, max_tokens=12, n=3, seed=7, logprobs=0, presence_penalty=0.5)
    ours, theirs = engine.generate(QUESTIONS, params), remote.generate(QUESTIONS, params)
    assert [[a.text for a in group] for group in ours] == [[a.text for a in group] for group in theirs]
    assert [a.finish_reason for a in ours[0]] == [a.finish_reason for a in theirs[0]]
    assert len(theirs[0][0].logprobs) > 0 and theirs[0][0].prompt_tokens == ours[0][0].prompt_tokens
    plain = SamplingParams(temperature=0, max_tokens=5)
    assert remote.generate("The quick", plain).text == engine.generate("The quick", plain).text
    assert remote.generate("x", SamplingParams(choice=("yes", "no"), max_tokens=9)).text in ("yes", "no")


def test_a_stage_samples_from_an_endpoint(engine, url, tmp_path):
    params = SamplingParams(temperature=1.0, max_tokens=6, n=2, seed=1)
    texts = sample_answers(tmp_path / "elsewhere", QUESTIONS, params, tmp_path, engine=url)
    assert [len(found) for found in texts] == [2, 2, 2]
    assert texts == sample_answers(tmp_path / "elsewhere", QUESTIONS, params, tmp_path, engine="http://localhost:9/v1")


class Poor(BaseHTTPRequestHandler):
    """An endpoint that ignores n, seed and logprobs."""

    count = 0

    def do_GET(self):
        self._send({"data": [{"id": "poor"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "top_k" in body:
            self._send({"error": {"message": "top_k is not supported"}}, 400)
            return
        Poor.count += 1
        self._send({"choices": [{"index": 0, "message": {"content": f"answer {Poor.count}"}, "finish_reason": "stop"}]})

    def _send(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """Be quiet."""


@pytest.fixture(scope="module")
def poor():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Poor)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 2}, "1 answers instead of n=2"),
        ({"seed": 5}, "does not honour seed"),
        ({"logprobs": 1}, "no logprobs"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"top_k": 5}, "top_k is not supported"),
    ],
    ids=str,
)
def test_what_an_endpoint_lacks_is_refused_up_front(poor, settings, message):
    with pytest.raises(RequestError, match=message):
        RemoteEngine(poor).generate(QUESTIONS, SamplingParams(**settings))


def test_addresses_that_do_not_answer_are_refused(poor):
    with pytest.raises(CapacityError, match="cannot be reached"):
        RemoteEngine(Endpoint("http://127.0.0.1:9/v1", patience=QUICK))
    with pytest.raises(RequestError, match="address"):
        RemoteEngine("localhost")
    with pytest.raises(RequestError, match="serves poor"):
        RemoteEngine(poor, model="rich")


def test_an_endpoint_that_answers_rubbish_is_refused_in_one_sentence():
    for models in ("", "<html>", "[]", "null", '{"data": 5}', '{"data": ["a"]}', '{"data": [{"name": "a"}]}'):
        with Scripted(http(models)) as server:
            for open_one in (lambda url: RemoteEngine(Endpoint(url, patience=QUICK)), Client):
                with pytest.raises(CapacityError, match=r"OpenAI-compatible .*list of models"):
                    open_one(server.url)
    models = http('{"data": [{"id": "a"}]}')
    for answer in ("[]", "{", '{"choices": 5}', '{"choices": ["a"]}', '{"choices": [{"message": "hi"}]}'):
        with Scripted(models, http(answer)) as server, pytest.raises(CapacityError, match="OpenAI-compatible"):
            RemoteEngine(Endpoint(server.url, patience=QUICK)).generate(QUESTIONS[0])
    for event in ("{", "5", '{"choices": [{"delta": 5}]}'):
        with Scripted(models, events(event)) as server, pytest.raises(CapacityError, match="OpenAI-compatible"):
            list(Client(server.url).stream(QUESTIONS[0], SamplingParams()))


def test_an_endpoint_that_says_nothing_is_not_waited_for_forever():
    with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(CapacityError, match="timed out"):
        RemoteEngine(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout_seconds=0.2)
