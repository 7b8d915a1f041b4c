"""A real Llama, from its GGUF file and from its folder: what `transformers` answers, Herd answers."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import herd
from herd.cli import main
from herd.infer.engine import Engine
from herd.types import SamplingParams
from tests.infer.prompts import CHATS, TEXTS

CLOSE = 1e-3  # of logits: where two tokens are as likely as that, either may come first
FEW, MOST = 24, 40


def their_answers(folder, prompts, num_tokens):
    """Greedy answers of `transformers` in float32, and at each place how far the second token is behind."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt in prompts:
        if isinstance(prompt, str):
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        else:
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        options = {"do_sample": False, "max_new_tokens": num_tokens, "output_logits": True}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, **options)
        best = [step[0].topk(2).values for step in out.logits]
        yield out.sequences[0, ids.shape[1] :].tolist(), [float(two[0] - two[1]) for two in best]


def compare(base_model, path, prompts, num_tokens):
    engine = Engine(path, dtype=torch.float32, max_sequences=4)
    assert engine.speaks_chat
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens)
    for prompt, (theirs, gaps) in zip(prompts, their_answers(base_model.folder, prompts, num_tokens)):
        request = engine.request(prompt, params)
        engine.submit(request)
        while not request.finished:
            engine.step()
        ours = request.leader.tokens
        theirs = theirs[:-1] if theirs[-1] in engine.stop_ids and len(ours) < len(theirs) else theirs
        parted = next((i for i, (one, other) in enumerate(zip(ours, theirs)) if one != other), None)
        assert (parted is None and len(ours) == len(theirs)) or gaps[parted] < CLOSE, prompt


@pytest.mark.parametrize("place", ["file", "folder"])
def test_greedy_answers_equal_those_of_transformers(base_model, place):
    compare(base_model, getattr(base_model, place), [CHATS[0], TEXTS[0]], FEW)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["file", "folder"])
def test_greedy_answers_to_fifty_prompts_equal_those_of_transformers(base_model, place):
    prompts = [*CHATS, *TEXTS]
    assert len(prompts) == 50
    compare(base_model, getattr(base_model, place), prompts, MOST)


def test_the_chat_command_answers_in_the_models_own_format(base_model, capsys, monkeypatch, tmp_path):
    answers = []
    for place in (base_model.file, base_model.folder):
        engine = herd.Engine(place, max_sequences=1)
        found = engine.generate(CHATS[0], SamplingParams(temperature=0.0, max_tokens=30))
        assert found.text.strip() and "<|im_" not in found.text
        assert engine.tokenizer.decode(engine.encode(CHATS[0])).startswith("<|im_start|>system\nYou are a helpful AI")
        answers.append(found.text)
    capsys.readouterr()
    assert main(["inspect", str(base_model.file)]) == 0
    shown = capsys.readouterr().out
    assert "cut as smollm" in shown and "ChatML" in shown and "the end of a turn is '<|im_end|>'" in shown
    assert shown.endswith("Nothing odd.\n")


def test_a_file_without_its_template_is_a_base_model_until_a_format_is_named(base_model, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in base_model.folder.iterdir():
        (folder / file.name).symlink_to(file)
    config = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer_config.json").write_text(config.replace('"chat_template"', '"no_template"'))
    base = Engine(folder, max_sequences=1)
    assert not base.speaks_chat
    with pytest.raises(herd.errors.DataError, match="has no chat template"):
        base.generate(CHATS[0])
    named = Engine(folder, max_sequences=1, template="chatml")
    assert named.speaks_chat and named.encode(CHATS[0])[-1] == named.tokenizer.encode("\n")[0]


_SILENT = [  # on additionalProperties: what kinds of values are wanted under which names, and which may be left out
    ("Is the sky blue?", {"yes": {"type": "boolean"}}, bool),
    ("Rate the film 'Alien'.", {"stars": {"enum": [1, 2, 3, 4, 5]}, "seen": {"type": "boolean"}}, int),
    ("Name a colour.", {"colour": {"enum": ["red", "green", "blue"]}}, str),
]


@pytest.mark.slow
def test_twenty_answers_to_schemas_silent_on_other_fields_hold_no_other_fields(base_model):
    engine, num_valid = Engine(base_model.file, max_sequences=7), 0
    for (question, properties, kind), n in zip(_SILENT, (7, 7, 6), strict=True):
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        params = SamplingParams(temperature=1.0, seed=3, max_tokens=40, n=n, json_schema=schema)
        for answer in engine.generate([{"role": "user", "content": f"{question} Answer in JSON."}], params):
            found = json.loads(answer.text)
            assert answer.finish_reason == "stop" and found.keys() == properties.keys(), answer.text
            assert all(isinstance(value, kind) for value in found.values())
            num_valid += 1
    assert num_valid == 20
