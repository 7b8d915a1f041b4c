"""The template that Herd saves marks what the assistant writes: the masks of `transformers` are Herd's own."""

from transformers import AutoTokenizer

from herd.tokenizer.chat import render
from herd.tokenizer.compare import TALKS
from herd.tokenizer.io import load_tokenizer, save_tokenizer


def test_masks_of_transformers_equal_herds(tokenizer, tmp_path):
    theirs = AutoTokenizer.from_pretrained(save_tokenizer(tokenizer, tmp_path))
    ours = load_tokenizer(tmp_path)
    for talk in TALKS:
        answered = [*talk.messages, {"role": "assistant", "content": "So it is."}]
        as_openai = [
            message | {"tool_calls": [{"type": "function", "function": call} for call in message["tool_calls"]]}
            if message.get("tool_calls")
            else message
            for message in answered
        ]
        options = {"tools": talk.tools, "return_assistant_tokens_mask": True, "return_dict": True}
        found = theirs.apply_chat_template(as_openai, **options)
        rendered = render(ours, answered, tools=talk.tools)
        if rendered.tokens == found["input_ids"]:
            assert [int(trained) for trained in rendered.mask] == found["assistant_masks"], talk.name
        else:
            assert talk.name == "a line break first"  # Herd encodes content apart from its header
