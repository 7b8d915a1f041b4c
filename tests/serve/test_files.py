"""Files of a conversation: sent up, beside the code or read to the model, and what tools make comes back."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import httpx
import openai
import pytest

from herd.serve.files import MADE, FileLimits, FileStore, plain_name
from herd.toolbox.interpreter import Interpreter, Python
from tests.serve.scripts import scripted

CSV = b"name,amount\nada,3\nbob,4\n"
CODE = (
    "print(sum(int(line.split(',')[1]) for line in open('sales.csv').readlines()[1:])); open('out.txt', 'w').write('7')"
)
CALL = json.dumps({"name": "code_interpreter", "parameters": {"code": CODE}})


def client(url, key="none"):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def asking(*parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "How much is it?"}]}]


@pytest.fixture(scope="module")
def python():
    return Python(Interpreter(allow_weaker=True))


def test_files_are_kept_listed_read_and_deleted_by_their_key_alone():
    keys = {"ada": "a" * 20, "bob": "b" * 20}
    with scripted("x", keys=keys) as (url, _):
        ada, bob = client(url, keys["ada"]), client(url, keys["bob"])
        file = ada.files.create(file=("../../etc/sales.csv", CSV), purpose="user_data")
        assert (file.filename, file.bytes) == ("sales.csv", len(CSV))
        assert [one.id for one in ada.files.list()] == [file.id] and not list(bob.files.list())
        assert ada.files.content(file.id).read() == CSV
        for refused in (bob.files.content, bob.files.retrieve, bob.files.delete):
            with pytest.raises(openai.NotFoundError, match="There is no file"):
                refused(file.id)
        assert ada.files.delete(file.id).deleted and not list(ada.files.list())


def test_a_file_lies_beside_the_code_and_what_the_code_makes_comes_back(python):
    with scripted(CALL, "Seven.", CALL, "Seven.", own_tools=[python]) as (url, script):
        here = client(url)
        file = here.files.create(file=("sales.csv", CSV), purpose="user_data")
        part = {"type": "file", "file": {"file_id": file.id}}
        said = here.chat.completions.create(model="tiny", messages=asking(part)).choices[0].message
        item = here.responses.create(
            model="tiny", input=[{"role": "user", "content": [{"type": "input_file", "file_id": file.id}]}]
        ).output[0]
        (used,), (made,) = said.tool_trace, said.tool_trace[0]["files"]
        assert "7" in used["output"] and (made["name"], made["bytes"]) == ("out.txt", 1)
        assert httpx.get(url + made["url"]).content == b"7" and here.files.content(item.files[0]["id"]).read() == b"7"
        assert "attachment" in httpx.get(url + made["url"]).headers["content-disposition"]
    assert "'sales.csv' (24 bytes) lies in the working folder" in script.prompts[0] and "ada,3" in script.prompts[0]


def test_files_of_earlier_turns_lie_beside_the_code_too(python):
    with scripted(CALL, "Seven.", "x", own_tools=[python]) as (url, _):
        file = client(url).files.create(file=("sales.csv", CSV), purpose="user_data")
        said = client(url).chat.completions.create(model="tiny", messages=asking(), extra_body={"files": [file.id]})
        assert "7" in said.choices[0].message.tool_trace[0]["output"]
        with pytest.raises(openai.BadRequestError, match="none runs"):
            more = {"files": [file.id], "server_tools": []}
            client(url).chat.completions.create(model="tiny", messages=asking(), extra_body=more)


def test_without_python_the_model_reads_the_text_in_every_dialect():
    document = io.BytesIO()
    with zipfile.ZipFile(document, "w") as archive:
        archive.writestr("word/document.xml", "<d><p><t>Keys cost forty euros.</t></p></d>")
    docx = base64.b64encode(document.getvalue()).decode()
    with scripted("Forty.") as (url, script):
        part = {"type": "file", "file": {"filename": "rules.docx", "file_data": f"data:x/y;base64,{docx}"}}
        client(url).chat.completions.create(model="tiny", messages=asking(part))
        part = {"type": "input_file", "filename": "rules.docx", "file_data": f"data:x/y;base64,{docx}"}
        client(url).responses.create(model="tiny", input=[{"role": "user", "content": [part]}])
        sources = [{"type": "text", "media_type": "text/plain", "data": "Keys cost forty euros."}]
        sources.append({"type": "base64", "media_type": "application/x", "data": docx})
        for source in sources:
            block = {
                "type": "document",
                "title": "rules.docx" if "base64" in source["type"] else None,
                "source": source,
            }
            body = {"max_tokens": 9, "messages": [{"role": "user", "content": [block, {"type": "text", "text": "?"}]}]}
            assert httpx.post(f"{url}/v1/messages", json=body).status_code == 200
            del body["max_tokens"]
            count = httpx.post(f"{url}/v1/messages/count_tokens", json=body).json()["input_tokens"]
            assert count == len(script.encode(script.prompts[-1]))
    assert len(script.prompts) == 4 and all("Keys cost forty euros." in prompt for prompt in script.prompts)


def test_what_cannot_be_read_or_is_not_there_is_refused_by_name():
    with scripted("x") as (url, _):
        for part, words in (
            ({"type": "file", "file": {"filename": "a.docx", "file_data": "QUJD"}}, "cannot be read"),
            ({"type": "file", "file": {"filename": "a.bin", "file_data": "AAAA"}}, "cannot be read"),
            ({"type": "file", "file": {"file_data": "%%%"}}, "no base64"),
            ({"type": "file", "file": {}}, "one of them"),
            ({"type": "file", "file": {"file_data": "QUJD", "file_id": "x"}}, "one of them"),
        ):
            with pytest.raises(openai.BadRequestError, match=words):
                client(url).chat.completions.create(model="tiny", messages=asking(part))
        with pytest.raises(openai.NotFoundError, match="no file `gone`"):
            client(url).chat.completions.create(
                model="tiny", messages=asking({"type": "file", "file": {"file_id": "gone"}})
            )


def test_what_is_kept_is_bounded_and_what_tools_made_gives_way_first():
    now = [0.0]
    store = FileStore(FileLimits(file_bytes=10, num_files=3, bytes=25, seconds=60), clock=lambda: now[0])
    mine, made = store.put("ada", "a", b"x" * 10), store.put("ada", "b", b"x" * 10, MADE)
    later = store.put("ada", "c", b"x" * 10, MADE)
    assert [one.id for one in store.listed("ada")] == [later.id, mine.id] and made.id not in store.listed("ada")
    with pytest.raises(Exception, match="no more room"):
        store.put("ada", "d", b"x" * 10)
    with pytest.raises(Exception, match="10 bytes"):
        store.put("ada", "d", b"x" * 11)
    store.put("bob", "d", b"x" * 10)
    now[0] = 59
    store.get("ada", mine.id)
    now[0] = 61
    assert [one.id for one in store.listed("ada")] == [mine.id] and not store.listed("bob")
    store.close()


def test_a_body_that_is_too_large_is_refused_before_it_is_kept():
    with scripted("x", files=FileStore(FileLimits(file_bytes=1000))) as (url, _):
        reply = httpx.post(f"{url}/v1/files", files={"file": ("a.txt", b"x" * 2000)}, data={"purpose": "user_data"})
        assert reply.status_code == 413 and "1,000 bytes" in reply.json()["error"]["message"]
        assert httpx.post(f"{url}/v1/files", data={"purpose": "x"}).status_code == 400
        shaped = httpx.get(f"{url}/v1/files", headers={"anthropic-version": "2023-06-01"}).json()
        assert shaped["data"] == []


@pytest.mark.parametrize(
    ("given", "name"),
    [("../../x.csv", "x.csv"), ("C:\\a\\b.txt", "b.txt"), ("..", "file"), (".tmp", "tmp"), ("a\0b\n.csv", "ab.csv")],
)
def test_names_lead_nowhere(given, name):
    assert plain_name(given) == name and len(plain_name(given + "y" * 500 + ".csv")) <= 120


def test_counting_knows_the_servers_own_tools(python):
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    with scripted("x", own_tools=[python]) as (url, script):
        httpx.post(f"{url}/v1/messages", json=body)
        del body["max_tokens"]
        count = httpx.post(f"{url}/v1/messages/count_tokens", json=body).json()["input_tokens"]
        other = httpx.post(f"{url}/v1/responses/input_tokens", json={"input": "hi"}).json()["input_tokens"]
        assert count == other == len(script.encode(script.prompts[0]))
