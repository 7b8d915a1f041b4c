"""Answers from the server's documents, cited by the program, through every dialect."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from herd.knowledge.build import index_folder
from herd.knowledge.grounding import NOT_FOUND, Library, index_beside
from herd.knowledge.index import Index
from herd.serve.app import create_app
from herd.serve.terminal.speaker import documents_beside
from herd.toolbox.library import Documents
from tests.serve.conftest import chat_engine, listening
from tests.serve.scripts import scripted

ASK = [{"role": "user", "content": "Who pays for a lost key?"}]
ANSWER = "Who loses a key pays forty euros. Dogs fly on Sundays."


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    (folder / "notes").mkdir()
    (folder / "notes/rules.md").write_text(
        "# Keys\n\nWho loses a key pays forty euros.\n\n# Dogs\n\nDogs may use the garden.\n"
    )
    index_folder(folder / "notes", folder / "index")
    return Index(folder / "index")


def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_an_answer_in_a_chat_is_given_from_passages_and_cites_them_whole_and_streamed(index):
    with scripted(ANSWER, library=Library(index), from_library=True) as (url, script):
        whole = client(url).chat.completions.create(model="tiny", messages=ASK).choices[0].message
        with client(url).chat.completions.stream(model="tiny", messages=ASK) as stream:
            streamed = stream.get_final_completion().choices[0].message
    assert "[1] rules.md · Keys · line 3" in script.prompts[0] and "Question: Who pays" in script.prompts[0]
    said = whole.annotations[0].url_citation
    assert ANSWER[said.start_index : said.end_index] == "Who loses a key pays forty euros."
    assert (said.title, said.url) == ("rules.md · Keys · line 3", "rules.md#line%203")
    assert said.quote in whole.documents["passages"][0]["text"]
    (lone,) = whole.documents["unsupported"]
    assert ANSWER[lone["start_index"] : lone["end_index"]] == "Dogs fly on Sundays."
    assert streamed.content == ANSWER and streamed.documents == whole.documents


def test_what_the_documents_say_nothing_on_is_declined_before_a_word_is_generated(index):
    asked = [{"role": "user", "content": "Which zeppelin crossed the Atlantic?"}]
    with scripted(ANSWER, library=Library(index), from_library=True) as (url, _):
        whole = client(url).chat.completions.create(model="tiny", messages=asked)
        events = client(url).chat.completions.create(model="tiny", messages=asked, stream=True)
        streamed = "".join(event.choices[0].delta.content or "" for event in events)
    assert whole.choices[0].message.content == streamed == NOT_FOUND and whole.usage.completion_tokens == 0
    assert whole.choices[0].message.documents == {"passages": [], "unsupported": []}


def test_a_request_says_whether_it_wants_them(index):
    plain = chat_engine(max_position_embeddings=2048)
    with scripted("Hm.", library=Library(index)) as (url, script), listening(create_app(plain, name="tiny")) as bare:
        client(url).chat.completions.create(model="tiny", messages=ASK)
        client(url).chat.completions.create(model="tiny", messages=ASK, extra_body={"documents": True})
        with pytest.raises(openai.BadRequestError, match="documents=INDEX"):
            client(bare).chat.completions.create(model="tiny", messages=ASK, extra_body={"documents": True})
    assert ["forty euros" in prompt for prompt in script.prompts] == [False, True]


def test_responses_carry_file_citations_and_the_passages_whole_and_streamed(index):
    with scripted(ANSWER, library=Library(index), from_library=True) as (url, _):
        whole = client(url).responses.create(model="tiny", input=ASK[0]["content"])
        with client(url).responses.stream(model="tiny", input=ASK[0]["content"]) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_response()
        back = [ASK[0], *whole.output, ASK[0]]
        assert client(url).responses.create(model="tiny", input=back).status == "completed"
    for response in (whole, streamed):
        said, searched = response.output
        (note,) = said.content[0].annotations
        assert (note.type, note.filename, note.index) == ("file_citation", "rules.md", 33)
        assert searched.results[0].text == "Who loses a key pays forty euros."
    assert "response.output_text.annotation.added" in kinds


def test_anthropics_text_has_citations_whole_and_streamed(index):
    body = {"model": "tiny", "max_tokens": 100, "messages": ASK}
    with scripted(ANSWER, library=Library(index), from_library=True) as (url, _):
        whole = httpx.post(f"{url}/v1/messages", json=body).json()
        text = httpx.post(f"{url}/v1/messages", json=body | {"stream": True}).text
    (cited,) = whole["content"][0]["citations"]
    assert (cited["type"], cited["cited_text"]) == ("search_result_location", "Who loses a key pays forty euros.")
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    kinds = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert kinds[-1] == "citations_delta" and events[-1]["type"] == "message_stop"


def test_passages_that_a_tool_found_are_cited_too(index):
    call = '{"name": "search_documents", "parameters": {"query": "lost key"}}'
    with scripted(call, ANSWER, own_tools=[Documents(index)]) as (url, _):
        said = client(url).chat.completions.create(model="tiny", messages=ASK).choices[0].message
    assert said.tool_trace[0]["output"].startswith("[1] rules.md") and len(said.annotations) == 1


def test_beside_a_small_models_own_words_stands_what_the_documents_say(index):
    with scripted("Keys are round.", library=Library(index, beside=True), from_library=True) as (url, script):
        here = client(url).chat.completions
        whole = here.create(model="tiny", messages=[{"role": "user", "content": "What does who loses a key pay?"}])
        other = here.create(model="tiny", messages=[{"role": "user", "content": "Which zeppelin crossed it?"}])
    assert "forty euros" not in script.prompts[0] and whole.choices[0].message.content == "Keys are round."
    found = whole.choices[0].message.documents
    assert found["read_out"]["text"] == found["passages"][0]["text"] == "Who loses a key pays forty euros."
    assert other.choices[0].message.content == "Keys are round." and not hasattr(other.choices[0].message, "documents")


def test_a_demos_index_is_found_beside_its_models_and_no_other(tmp_path):
    (tmp_path / "demo/dpo").mkdir(parents=True)
    (tmp_path / "demo/index").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.md").write_text("Keys cost forty euros.")
    index_folder(tmp_path / "notes", tmp_path / "demo/index/index")
    assert index_beside(tmp_path / "demo") is None
    (tmp_path / "demo/index/run.json").write_text(json.dumps({"stage": "demo index", "state": "finished"}))
    for model in ("demo", "demo/dpo"):
        assert index_beside(tmp_path / model) == tmp_path / "demo/index/index"
    assert index_beside(tmp_path) is None
    told = documents_beside(str(tmp_path / "demo"))
    assert told is not None and told("What do keys cost?") == "Keys cost forty euros.\n    a.md · line 1"
    assert told("Which zeppelin?") is None and documents_beside("http://localhost:1") is None
