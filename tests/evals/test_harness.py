"""lm-evaluation-harness over Herd's engine, beside its own `hf` backend and Herd's own task files: the same answers."""

import gzip
import json
import logging

import pytest

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from herd import cli  # noqa: E402
from herd.evals.asking import ask  # noqa: E402
from herd.evals.harness import HarnessModel  # noqa: E402
from herd.evals.subject import Local  # noqa: E402
from herd.evals.task import items_of, load_task  # noqa: E402
from tests.post.models import save_model  # noqa: E402

TASKS = {
    "swag": """
task: swag
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/swag.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{ctx}}}}"
doc_to_choice: endings
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
""",
    "sums": """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/sums.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 24, do_sample: false}}
metric_list: [{{metric: exact_match}}]
""",
    "text": """
task: text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/text.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
""",
}
SWAG = """\
ask: choices
data: swag.jsonl
prompt: "{{ ctx }}"
choices: endings
answer: "{{ label }}"
scorer: accuracy_norm
"""
SUMS = """\
ask: generate
data: sums.jsonl
prompt: "Question: {{ question }}\\nAnswer:"
answer: "{{ answer }}"
chat: false
max_tokens: 24
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder of the harness's tasks over local files, and Herd's beside them."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(text.format(folder=tmp_path))
    (tmp_path / "herd").mkdir()
    (tmp_path / "herd" / "swag.yaml").write_text(SWAG)
    (tmp_path / "herd" / "sums.yaml").write_text(SUMS)
    return tmp_path


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def results(model, folder, names):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, tasks=names, task_manager=manager, bootstrap_iters=0, verbosity="ERROR", batch_size=1
    )
    return {name: sorted((row["doc_id"], row["resps"]) for row in found["samples"][name]) for name in names}, found[
        "results"
    ]


def agree(folder, path, names):
    """All three on the same weights and files, item by item."""
    ours, our_scores = results(HarnessModel(path), folder, names)
    theirs, their_scores = results(HFLM(pretrained=str(path), dtype="float32", device="cpu"), folder, names)
    for (_, mine), (_, its) in zip(ours["swag"], theirs["swag"], strict=True):
        assert [one[0][0] for one in mine] == pytest.approx([one[0][0] for one in its], abs=2e-3)
        assert [one[0][1] for one in mine] == [one[0][1] for one in its]
    for metric in ("acc,none", "acc_norm,none"):
        assert our_scores["swag"][metric] == their_scores["swag"][metric]
    assert ours["sums"] == theirs["sums"]
    if "text" in names:
        for (_, mine), (_, its) in zip(ours["text"], theirs["text"], strict=True):
            assert mine[0] == pytest.approx(its[0], rel=1e-4)
    subject = Local(path)
    for name in ("swag", "sums"):
        task = load_task(folder / "herd" / f"{name}.yaml", folder)
        own = ask(task, items_of(task), subject, base=True)
        if name == "swag":
            for one, (_, its) in zip(own, theirs["swag"], strict=True):
                assert one["nats"] == pytest.approx([value[0][0] for value in its], abs=2e-3)
            shares = [sum(one["scores"][metric] for one in own) / len(own) for metric in ("accuracy", "accuracy_norm")]
            assert shares == pytest.approx([their_scores["swag"][f"{metric},none"] for metric in ("acc", "acc_norm")])
        else:
            assert [one["answer"] for one in own] == [its[0][0].strip() for _, its in theirs["sums"]]


def test_on_a_tiny_model_all_three_agree_item_by_item(tasks, tmp_path):
    save_model(tmp_path / "model", seed=2)
    words = ["Open the thing", "with care", "takes no arguments", "mode path"]
    asked = [f"What does mod{n}.open do? {words[n % 4]}" for n in range(8)]
    write(tasks / "swag.jsonl", [{"ctx": one, "endings": words[:3], "label": n % 3} for n, one in enumerate(asked)])
    write(tasks / "sums.jsonl", [{"question": f"What does {word} do?", "answer": "x"} for word in words])
    write(tasks / "text.jsonl", [{"text": " ".join(words * n)} for n in (1, 4, 40)])  # beyond the context too
    agree(tasks, tmp_path / "model", ["swag", "sums", "text"])


@pytest.mark.slow
def test_on_a_real_model_all_three_agree_item_by_item(tasks, base_model, shared_data):
    for name, file, count in (("swag", "bench-hellaswag/val.jsonl.gz", 12), ("sums", "bench-gsm8k/test.jsonl.gz", 3)):
        with gzip.open(shared_data / file, "rt") as lines:
            write(tasks / f"{name}.jsonl", [json.loads(next(lines)) for _ in range(count)])
    agree(tasks, base_model.folder, ["swag", "sums"])


def test_a_conversation_is_written_in_the_checkpoints_own_template(tmp_path):
    model = HarnessModel(save_model(tmp_path / "model"))
    messages = [{"role": "user", "content": "Open?"}]
    text = model.apply_chat_template(messages)
    assert model._encode(text) == model.subject.engine.encode(messages)  # noqa: SLF001


def test_the_harness_runs_from_the_command_line_without_a_network(tasks, tmp_path):
    save_model(tmp_path / "model", seed=2)
    write(
        tasks / "swag.jsonl", [{"ctx": "Open", "endings": ["the thing", "with care"], "label": n % 2} for n in range(4)]
    )
    (tasks / "sums.yaml").unlink()
    (tasks / "text.yaml").unlink()
    words = [f"path={tmp_path / 'model'}", f"tasks_folder={tasks}", f"out={tmp_path / 'out'}"]
    assert cli.main(["harness", *words]) == 0
    long = {"ctx": "Open the thing " * 90, "endings": ["the thing", "with care"], "label": 0}
    write(tasks / "swag.jsonl", [long, long])
    words[2] = f"out={tmp_path / 'long'}"
    assert cli.main(["harness", *words]) == 2
    assert cli.main(["harness", *words, "cut=true"]) == 0
    assert json.loads((tmp_path / "long" / "run.json").read_text())["figures"]["prompts_cut"] == 4
    assert json.loads((tmp_path / "out" / "results.json").read_text())["swag"]["acc,none"] == 0.5
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 4
    assert cli.main(["harness", *words[:2], "tasks=[nonesuch]", f"out={tmp_path / 'other'}"]) == 2
