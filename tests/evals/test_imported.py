"""Task files of lm-evaluation-harness with local data, read as ours."""

import pytest

from herd.errors import ConfigError
from herd.evals.asking import graded
from herd.evals.task import items_of, load_task

SWAG = """
task: swag
dataset_path: json
dataset_kwargs: {data_files: {test: swag.jsonl, train: shown.jsonl}}
test_split: test
fewshot_split: train
fewshot_config: {sampler: first_n}
num_fewshot: 1
output_type: multiple_choice
description: "Go on.\\n\\n"
doc_to_text: "{{ctx}}:"
doc_to_choice: "{{endings}}"
doc_to_target: label
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 1}
"""
SUMS = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: sums.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["Q:"], max_gen_toks: 9}
filter_list:
  - {name: strict, filter: [{function: regex, regex_pattern: "is (\\\\d+)"}, {function: take_first}]}
metric_list: [{metric: exact_match}]
"""


def test_a_task_of_the_harness_is_asked_as_the_harness_asks_it(tmp_path):
    (tmp_path / "swag.yaml").write_text(SWAG)
    (tmp_path / "swag.jsonl").write_text('{"ctx": "A man", "endings": ["runs", "sits"], "label": 1}\n')
    (tmp_path / "shown.jsonl").write_text('{"ctx": "A dog", "endings": ["barks", "reads"], "label": 0}\n')
    task = load_task(tmp_path / "swag.yaml", None)
    (item,) = items_of(task)
    assert item.prompt(task, True) == "Go on.\n\nA dog: barks\n\nA man:"
    assert (item.choices, item.best, task.scorer, task.name) == (("runs", "sits"), 1, "accuracy_norm", "swag")


def test_answers_are_filtered_and_stopped_as_the_task_says(tmp_path):
    (tmp_path / "sums.yaml").write_text(SUMS)
    (tmp_path / "sums.jsonl").write_text('{"question": "1+1?", "answer": 2}\n')
    task = load_task(tmp_path / "sums.yaml", None)
    assert (task.stop, task.max_tokens) == (["Q:"], 9)
    (item,) = items_of(task)
    assert item.prompt(task, False) == "1+1?"
    told = graded(task, [item, item], ["it is 2, or is 3", "it is 3"])
    assert [one["scores"]["exact"] for one in told] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("dataset_kwargs: {data_files: {test: sums.jsonl}}", ""), "its data is fetched"),
        (("doc_to_text: question", "doc_to_text: !function utils.text"), "calls Python"),
        (("output_type: generate_until", "output_type: loglikelihood"), "output_type"),
        (("task: sums", "task: sums\nprocess_docs: x"), "process_docs"),
        (("exact_match", "rouge"), "none of its metrics"),
        (('doc_to_target: "{{answer}}"', ""), "lacks doc_to_target"),
        (("task: sums", "num_fewshot: 1\nfewshot_config: {samples: [{question: x}]}"), "fewshot_config: samples"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, change, words):
    (tmp_path / "sums.yaml").write_text(SUMS.replace(*change))
    with pytest.raises(ConfigError, match=words):
        load_task(tmp_path / "sums.yaml", None)


def test_what_is_not_read_of_a_task_is_told_and_drawn_answers_are_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HERD_QUIET", raising=False)
    text = SUMS.replace("max_gen_toks: 9", "max_gen_toks: 9, do_sample: true, temperature: 0.5, top_p: 0.9")
    text = text.replace("[{metric: exact_match}]", "[{metric: exact_match}, {metric: rouge}]\nrepeats: 3")
    (tmp_path / "sums.yaml").write_text("\ufeff" + text.strip().replace("\n", "\r\n"), newline="")
    assert load_task(tmp_path / "sums.yaml", None).temperature == 0.5
    told = "".join(capsys.readouterr())
    assert "not read: top_p" in told and "not read: rouge" in told and "repeats: 3 is read as 1" in told


def test_files_that_include_one_another_end(tmp_path):
    (tmp_path / "a.yaml").write_text("include: b.yaml\noutput_type: multiple_choice\n")
    (tmp_path / "b.yaml").write_text("include: a.yaml\n")
    with pytest.raises(ConfigError, match="include one another"):
        load_task(tmp_path / "a.yaml", tmp_path)
