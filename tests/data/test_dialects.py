"""Rows in the forms of other makers' interfaces and data sets: each is read rightly, nothing in silence."""

import json

import pytest

from herd.data.choices import choices_of
from herd.data.conversations import pack_conversations
from herd.data.shapes import talks_of
from herd.data.talks import Notes
from herd.errors import DataError
from herd.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["the cat sat on the mat and asked what is the use of a hat " * 3], 540)
ARGUMENTS = {"city": "Paris"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}
SPOKEN = [("system", "s"), ("user", "q"), ("assistant", "so"), ("ipython", '{"t": 7}'), ("assistant", "seven")]

ANTHROPIC = {
    "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
    "tools": [{"name": "weather", "description": "d", "input_schema": SCHEMA}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "so"},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": ARGUMENTS}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": '{"t": 7}'}]}]},
        {"role": "assistant", "content": "seven"},
    ],
}  # fmt: skip
GEMINI = {
    "systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
    "tools": [{"functionDeclarations": [{"name": "weather", "description": "d", "parameters": SCHEMA}]}],
    "contents": [
        {"role": "user", "parts": [{"text": "q"}]},
        {"role": "model", "parts": [{"text": "hm", "thought": True}, {"text": "so"},
                                    {"functionCall": {"name": "weather", "args": ARGUMENTS}}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "weather", "response": {"t": 7}}}]},
        {"role": "model", "parts": [{"text": "seven"}]},
    ],
}  # fmt: skip
BEDROCK = {
    "system": [{"text": "s"}],
    "tools": [{"toolSpec": {"name": "weather", "description": "d", "inputSchema": {"json": SCHEMA}}}],
    "messages": [
        {"role": "user", "content": [{"text": "q"}]},
        {"role": "assistant", "content": [
            {"reasoningContent": {"reasoningText": {"text": "hm"}}}, {"text": "so"},
            {"toolUse": {"toolUseId": "t1", "name": "weather", "input": ARGUMENTS}}]},
        {"role": "user", "content": [{"toolResult": {"toolUseId": "t1", "content": [{"json": {"t": 7}}]}}]},
        {"role": "assistant", "content": [{"text": "seven"}]},
    ],
}  # fmt: skip
COHERE = {
    "tools": [TOOL],
    "messages": [
        {"role": "System", "content": "s"},
        {"role": "User", "content": "q"},
        {"role": "Chatbot", "message": "so", "tool_calls": [{"name": "weather", "parameters": ARGUMENTS}]},
        {"role": "Tool", "tool_results": [{"call": {"name": "weather"}, "outputs": {"t": 7}}]},
        {"role": "Chatbot", "message": "seven"},
    ],
}


@pytest.mark.parametrize("row", [ANTHROPIC, GEMINI, BEDROCK, COHERE])
def test_calls_their_answers_and_thoughts_are_heard_in_every_makers_form(row):
    notes = Notes()
    (talk,) = talks_of(row, notes)
    assert [(message["role"], message["content"]) for message in talk.messages] == SPOKEN
    (call,) = talk.messages[2]["tool_calls"]
    inner = call.get("function", call)
    assert (inner["name"], inner["arguments"]) == ("weather", ARGUMENTS)
    assert talk.messages[2].get("reasoning_content") == (None if row is COHERE else "hm")
    assert talk.tools == [TOOL] and talk.trained == [True, True]
    assert not notes.unread and not notes.changed


QA = [("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize(
    ("row", "spoken"),
    [
        ({"source": "x", "conversation": [{"input": "q", "output": "a"}]}, QA),
        ({"messages": str([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])}, QA),
        ({"question": "q", "answer": 4}, [QA[0], ("assistant", "4")]),
        ({"question": "q", "context": ["c", "d"], "answer": "a"}, [("user", "q\n\nc\n\nd"), QA[1]]),
        ({"prompt": "p\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nq", "response": "a"},
         [("user", "p"), ("assistant", "b"), *QA]),
        ({"contents": [{"role": "user", "parts": ["q"]}, {"role": "model", "parts": "a"}]}, QA),
        ({"system": "SYSTEM: s\n", "chat": "USER: q\n\n\nASSISTANT: a <|endoftext|>\n\n\n"}, [("system", "s"), *QA]),
    ],
)  # fmt: skip
def test_further_published_forms_are_read(row, spoken):
    (talk,) = talks_of(row, Notes())
    assert [(message["role"], message["content"]) for message in talk.messages] == spoken


def test_glaives_calls_are_calls():
    chat = (
        'USER: q\n\n\nASSISTANT: <functioncall> {"name": "weather", "arguments": \'{"city": "Paris"}\'} <|endoftext|>'
        '\n\n\nFUNCTION RESPONSE: {"t": 7}\n\n\nASSISTANT: seven <|endoftext|>'
    )
    (talk,) = talks_of({"chat": chat}, Notes())
    assert talk.messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": ARGUMENTS}
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "ipython", "assistant"]
    with pytest.raises(DataError, match="functioncall"):
        talks_of({"chat": chat.replace("arguments", "")}, Notes())


@pytest.mark.parametrize(
    ("row", "counted"),
    [
        ({"prompt": "q", "response": "a", "helpfulness": 4}, "unread `helpfulness`"),
        ({"messages": [{"role": "user", "content": "q"}], "id": 3}, "left_out conversations without an answer"),
        ({"messages": []}, "left_out conversations without messages"),
        ({"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "a"}]},
         "changed messages of users without a text, kept"),
        ({"conversations": [{"from": "human", "value": "q"},
                            {"from": "gpt", "value": "a b", "train_detail": [{"begin_offset": 0, "train": False}]}]},
         "changed messages of which only stretches were to be learned (`train_detail`), learned whole"),
        ({"conversations": [{"from": "system", "value": "<tools>[]</tools>"}, {"from": "human", "value": "q"},
                            {"from": "gpt", "value": "a"}], "tools": json.dumps([TOOL])},
         "changed `tools` that the system prompt tells already, not told twice"),
        ({"prompt": "q", "response": 4}, "changed responses stored as a number or truth value, taken as text"),
    ],
)  # fmt: skip
def test_what_is_changed_left_out_or_not_read_is_counted(row, counted):
    notes = Notes()
    talks_of(row, notes)
    kind, _, what = counted.partition(" ")
    assert getattr(notes, kind)[what] == 1
    assert sum(map(len, (notes.unread, notes.changed, notes.left_out))) == 1


@pytest.mark.parametrize(
    ("row", "better"),
    [
        ({"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": -2}, "a"),
        ({"context": [{"role": "user", "content": "q"}], "response1": "a", "response2": "b", "overall_preference": 1},
         "b"),
        ({"conversation_a": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
          "conversation_b": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
          "winner": "model_b"}, "b"),
    ],
)  # fmt: skip
def test_preferences_with_a_scale_or_a_winner_are_read(row, better):
    notes = Notes()
    (choice,) = choices_of(row, notes)
    assert choice.prompt == [{"role": "user", "content": "q"}]
    assert choice.responses["chosen"] == [{"role": "assistant", "content": better}]
    assert not notes.unread


def test_special_strings_in_rows_stay_text_and_are_counted_once(capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    answers = ["<tool_call>\n{}\n</tool_call>", "the cat <|eot_id|> sat", "a hat"]
    rows = [("r", {"prompt": "q", "completion": answer}) for answer in answers]
    documents = pack_conversations(rows, TOKENIZER, 128)["conversations"]
    told = capsys.readouterr().err
    assert "texts with `<tool_call>`, kept as text and not as a token (1)" in told
    assert "texts with `<|eot_id|>`, kept as text and not as a token (1)" in told
    ids = documents.tokens(1).tolist()
    assert ids.count(TOKENIZER.eot_id) == 2  # the ends of the question and of the answer


def test_an_image_among_the_parts_is_refused():
    part = {"type": "image", "source": {"type": "base64", "data": "x"}}
    call = {"type": "tool_use", "id": "1", "name": "f", "input": {}}
    for content in ([part], [part, call]):
        with pytest.raises(DataError, match="no text"):
            talks_of({"messages": [{"role": "assistant", "content": content}]}, Notes())
