"""Quality: from labels, addresses or a judge's grades to a classifier, on the command line."""

import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from herd.cli import main
from herd.curate.judge.classifier import Classifier
from herd.formats.encoder import load_head, open_encoder
from herd.stages.quality import QualitySettings, run

GOOD = ["theory", "measure", "experiment", "result", "describes", "therefore", "evidence"]
BAD = ["buy", "cheap", "click", "offer", "now", "free", "win"]


def page(seed, good):
    draw = random.Random(seed)
    return " ".join(draw.choice((GOOD if good else BAD) + ["the", "of", "and"]) for _ in range(60))


@pytest.fixture
def pages(tmp_path):
    for name, good in (("good", True), ("bad", False)):
        rows = [{"text": page(i, good), "url": f"http://{name}.org/{i}"} for i in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def check(out):
    model = Classifier.load(out)
    assert model.score(page(900, True)) > 0.7 > 0.3 > model.score(page(901, False))
    assert json.loads((out / "calibration.json").read_text())["auc"] > 0.95
    assert (out / "calibration.svg").read_text().count("<path") > 3


def test_positives_and_negatives_make_a_classifier(pages):
    words = ["quality", f"out={pages}/run", f"positives={pages}/good.jsonl", f"negatives={pages}/bad.jsonl"]
    assert main([*words, "training.bits=12"]) == 0
    check(pages / "run")
    assert main([*words, "training.bits=12"]) == 0  # done already


def test_pages_that_a_list_of_addresses_references_are_the_good_ones(pages, capsys):
    (pages / "urls.txt").write_text("".join(f"https://good.org/{i}\n" for i in range(60)))
    words = [f"documents=[{pages}/good.jsonl,{pages}/bad.jsonl]", f"positive_urls={pages}/urls.txt"]
    assert main(["quality", f"out={pages}/run", *words, "training.bits=12"]) == 0
    check(pages / "run")
    (pages / "urls.txt").write_text("https://nowhere.org/\n")
    assert main(["quality", f"out={pages}/none", *words]) == 2
    assert "none of the documents is at a listed address" in capsys.readouterr().err


def test_labels_make_a_classifier_of_classes(pages):
    rows = [{"text": page(i, bool(i % 2)), "label": ["shop", "science"][i % 2]} for i in range(100)]
    (pages / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["quality", f"out={pages}/run", f"labelled={pages}/labels.jsonl", "training.bits=12"]) == 0
    assert Classifier.load(pages / "run").label(page(7, True))[0] == "science"


class FakeJudge(BaseHTTPRequestHandler):
    """Grades by counting words of offers; the first question is answered with 503."""

    asked = 0
    counting = threading.Lock()

    def do_POST(self):
        with self.counting:
            type(self).asked += 1
            busy = type(self).asked == 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        grade = 1 if "cheap" in body["messages"][0]["content"] else 4
        data = json.dumps({"choices": [{"message": {"content": f"It is so.\nGrade: {grade}"}}]}).encode()
        self.send_response(503 if busy else 200)
        self.end_headers()
        self.wfile.write(b"busy" if busy else data)

    def log_message(self, *args):
        pass


@pytest.fixture
def judge():
    FakeJudge.asked = 0
    patient = type("Server", (ThreadingHTTPServer,), {"request_queue_size": 64})  # a busy machine resets no connection
    server = patient(("127.0.0.1", 0), FakeJudge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_the_grades_of_a_judge_are_distilled(pages, judge):
    words = [f"documents=[{pages}/good.jsonl,{pages}/bad.jsonl]", "rubric=recipes/rubrics/quality.yaml"]
    words += [f"judge.endpoint={judge}", "judge.sample=100", "training.bits=12"]
    assert main(["quality", f"out={pages}/run", *words]) == 0
    assert FakeJudge.asked == 101 and len((pages / "run/grades.jsonl").read_text().splitlines()) == 100
    model = Classifier.load(pages / "run")
    assert model.score(page(900, True)) > 0.6 > 0.4 > model.score(page(901, False))


def test_a_file_that_is_good_and_bad_at_once_is_refused(pages, capsys):
    words = [f"positives={pages}/good.jsonl", f"negatives=[{pages}/bad.jsonl,{pages}/good.jsonl]"]
    assert main(["quality", f"out={pages}/both", *words]) == 2
    assert "is in both" in capsys.readouterr().err


def test_a_judge_with_a_cache_is_asked_once_and_its_cost_is_told(pages, judge, capsys, monkeypatch):
    monkeypatch.setenv("HERD_QUIET", "")
    words = [f"documents=[{pages}/good.jsonl,{pages}/bad.jsonl]", "rubric=recipes/rubrics/quality.yaml"]
    words += [f"judge.endpoint={judge}", "judge.sample=100", "training.bits=12", f"judge.cache={pages}/cache"]
    assert main(["quality", f"out={pages}/one", *words]) == 0
    assert "judge: 100 requests (1 retried), 0 + 0 tokens; 100 answers without token counts" in capsys.readouterr().err
    assert main(["quality", f"out={pages}/two", *words]) == 0
    assert "judge: 0 requests, 100 from the cache" in capsys.readouterr().err and FakeJudge.asked == 101


def test_a_local_checkpoint_can_be_the_judge(pages, capsys):
    """A tiny random model gives no grades: the run says so, and shows what it answered."""
    from herd.formats.checkpoint import save
    from herd.model.config import ModelConfig
    from herd.model.init import initialize
    from herd.model.llama import LlamaForCausalLM
    from herd.tokenizer.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["the bees leave the hive"] * 3, 600)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, num_key_value_heads=1, head_dim=16, max_position_embeddings=4096, **sizes
    )
    model = LlamaForCausalLM(config)
    initialize(model, 0)
    save(model, tiny_chat := pages / "checkpoint", tokenizer)
    words = [f"documents={pages}/good.jsonl", "rubric=rubrics/quality.yaml", f"judge.checkpoint={tiny_chat}"]
    words += ["judge.sample=8", "judge.characters=50", "judge.answer_tokens=4"]
    assert main(["quality", f"out={pages}/run", *words]) == 2
    assert "answers hold a grade; the first answer:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of: positives with negatives"),
        (["positives=x"], "give both positives and negatives"),
        (["rubric=x", "documents=y"], "needs a judge"),
        (["positive_urls=x"], "give the documents to sample"),
        (["rubric=x", "documents=y", "judge.endpoint=nonsense"], "expected an address such as"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words, message, capsys, tmp_path):
    assert main(["quality", f"out={tmp_path}/run", *words]) == 2
    assert message in capsys.readouterr().err


def test_labels_of_two_sorts_are_refused(tmp_path, capsys):
    (tmp_path / "l.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "score": 0.5}\n')
    assert main(["quality", f"out={tmp_path}/run", f"labelled={tmp_path}/l.jsonl"]) == 2
    assert "holds scores and labels" in capsys.readouterr().err


@pytest.mark.slow
def test_an_encoder_judges_beside_the_linear_classifier_on_the_same_texts(base_model, tmp_path):
    """Subjects told by other words in each half of the labels: the encoder knows that the words belong together."""
    draw = random.Random(4)
    subjects = {
        "sea": ("harbour", "ship", "sailor", "wave", "anchor", "tide", "captain", "coral", "vessel", "deck", "gull"),
        "kitchen": ("oven", "butter", "recipe", "dough", "sugar", "pan", "onion", "flour", "soup", "spoon", "cheese"),
    }
    rows = []
    for number in range(120):
        subject = "sea" if number % 2 else "kitchen"
        words = draw.sample(subjects[subject], 2)
        rows.append({"text": f"Yesterday we spoke about the {words[0]} and the {words[1]}.", "label": subject})
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out"
    encoder = base_model.folder.parent / "all-MiniLM-L6-v2"
    if not encoder.is_dir():
        pytest.skip("the encoder is not here: make base-model")
    run(QualitySettings(out=out, labelled=tmp_path / "labels.jsonl", encoder=encoder))
    linear, beside = (json.loads((out / f"{name}.json").read_text()) for name in ("calibration", "calibration-encoder"))
    assert beside["held_out"] == linear["held_out"] and beside["gain"] == pytest.approx(
        beside["accuracy"] - linear["accuracy"], abs=1e-3
    )
    assert beside["accuracy"] >= 0.9 and beside["calibration"]
    head = load_head(out / "encoder", open_encoder(encoder))
    assert head.labels == ["kitchen", "sea"]
    assert head.probabilities(["The boat left the port."])[0, 1] > 0.5
