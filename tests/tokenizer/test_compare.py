"""Comparing chat templates: Herd's own, one like Hugging Face's, and broken ones."""

import json
import os

import pytest

from herd.cli import main
from herd.errors import DataError
from herd.formats.vocabulary import open_tokenizer
from herd.tokenizer import jinja
from herd.tokenizer.compare import TALKS, compare
from herd.tokenizer.io import save_tokenizer
from herd.tokenizer.llama3 import DATE

TODAY = f"""\
{{{{- bos_token }}}}
{{%- if messages[0].role == "system" %}}
{{%- set system = messages[0].content | trim %}}
{{%- set messages = messages[1:] %}}
{{%- endif %}}
{{{{- "<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n" }}}}
{{{{- "Today Date: " + (date_string or "{DATE}") + "\\n\\n" + (system or "") + "<|eot_id|>" }}}}
{{%- for message in messages %}}
{{{{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" }}}}
{{%- if message.tool_calls %}}
{{%- set call = message.tool_calls[0].function %}}
{{{{- '{{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + "}}" }}}}
{{%- elif message.role == "ipython" %}}
{{{{- message.content | tojson }}}}
{{%- else %}}
{{{{- message.content | trim }}}}
{{%- endif %}}
{{{{- "<|eot_id|>" }}}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}
{{{{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}}}
{{%- endif %}}
"""
"""The manner of Hugging Face's Llama 3.1 template, without tools."""


def outcomes(*arguments):
    return {result.talk: result.outcome for result in compare(*arguments)}


def test_the_template_that_herd_saves_agrees_with_herd(tokenizer):
    found = outcomes(tokenizer, tokenizer.chat_template, "meta")
    assert found.pop("a line break first") == "ids differ"  # the template's output is encoded whole
    assert set(found.values()) == {"same"}


def test_a_template_of_the_hf_manner_agrees_with_style_hf(tokenizer):
    without_tools = [talk for talk in TALKS if not talk.tools]
    results = compare(tokenizer, TODAY, "hf", without_tools)
    assert all(result.same for result in results), [result for result in results if not result.same]
    assert outcomes(tokenizer, TODAY, "meta")["a question"] == "text differs"


def test_refusals_of_either_side_are_told(tokenizer):
    found = outcomes(tokenizer, "{{ raise_exception('no ' + messages[0].role) }}", "meta")
    assert found["a system prompt"] == "refused: the chat template refuses: no system"
    found = outcomes(tokenizer, "{{ messages[0].content.nothing.there }}", "meta")
    assert found["a question"].startswith("refused: the chat template fails")


@pytest.mark.parametrize("text", ["{% if %}", "{{ 'open", "{% endfor %}"])
def test_what_is_no_jinja_is_refused(tokenizer, text):
    with pytest.raises(DataError, match="is not valid Jinja"):
        jinja.write(text, {})


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('touch /') }}",
        "{% for i in range(10000000000) %}{% endfor %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(tokenizer, attack):
    with pytest.raises(DataError):
        jinja.write(attack, {"messages": [{"role": "user", "content": "x"}]})


def test_a_users_own_checkpoint_agrees(tokenizer, tmp_path):
    """Set HERD_CHECKPOINT to a Llama 3 folder to compare its chat template with `render`."""
    folder = os.environ.get("HERD_CHECKPOINT") or save_tokenizer(tokenizer, tmp_path)
    own = open_tokenizer(folder)
    results = compare(own, own.chat_template, own.chat_style)
    different = [result for result in results if not result.same and result.talk != "a line break first"]
    assert not different


def test_the_command_names_the_first_difference(tokenizer, tmp_path, capsys):
    folder = save_tokenizer(tokenizer, tmp_path / "tokenizer")
    (tmp_path / "other.jinja").write_text(tokenizer.chat_template.replace("<|eot_id|>", "<|end|>"))
    talk = {"messages": [{"role": "user", "content": "Own?"}, {"role": "assistant", "content": "Yes."}]}
    (tmp_path / "talks.jsonl").write_text(json.dumps(talk) + "\n")
    words = ["template", str(tmp_path / "other.jinja"), f"tokenizer={folder}", f"conversations={tmp_path}/talks.jsonl"]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert "a question             text differs" in shown and "talks.jsonl" in shown
    assert "<|end|>" in shown and shown.endswith("0 of 12 conversations have the same ids\n")
    assert main(["template", str(folder)]) == 1  # the one whose ids differ
    assert "10 of 11 conversations" in capsys.readouterr().out
    assert main(["template", str(tmp_path / "other.jinja")]) == 2
