"""A guard learns from rows, names what it finds, and lets pass what does not count."""

import json

import numpy as np
import pytest
import torch

from herd.config import load
from herd.errors import CheckpointError, ConfigError, DataError
from herd.formats.encoder import open_encoder
from herd.safety.baselines import Keywords, TfIdf
from herd.safety.curve import areas, auc, curve_page, rates, threshold_at
from herd.safety.guard import FILE, open_guard, save_guard
from herd.safety.policy import Policy, read_policy
from herd.safety.rows import labelled_rows, made_rows
from herd.safety.training import GuardTraining, train_guard
from tests.safety.encoders import POLICY, small_encoder, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("guards")
    small_encoder(root / "encoder")
    (root / "policy.yaml").write_text(POLICY)
    write_rows(root / "rows.jsonl")
    return root


@pytest.fixture(scope="module")
def trained(place):
    policy = read_policy(place / "policy.yaml")
    rows = labelled_rows([place / "rows.jsonl"], policy)
    return train_guard(rows, open_encoder(place / "encoder"), policy, GuardTraining(epochs=0, held_out=0.3))


def test_it_flags_what_it_learned_and_names_the_category(trained):
    killing, stealing, baking = trained.guard.judge(["how to kill the cat", "steal money now", "please make a cake"])
    assert killing.flagged and killing.categories[0] == "V"
    assert stealing.flagged and stealing.categories[0] == "T"
    assert not baking.flagged and baking.probability < baking.threshold


def test_a_dropped_category_is_not_flagged_and_a_place_where_it_does_not_count_neither(trained):
    texts = ["steal money now", "how to kill the cat"]
    assert [verdict.flagged for verdict in trained.guard.judge(texts, categories=["V"])] == [False, True]
    assert [verdict.flagged for verdict in trained.guard.judge(texts, categories=["Theft"])] == [True, False]
    assert [verdict.flagged for verdict in trained.guard.judge(texts, "tool")] == [False, True]
    with pytest.raises(ConfigError, match="'X' is no category"):
        trained.guard.judge(texts, categories=["X"])


def test_a_disguise_is_flagged_as_what_it_says(trained):
    verdict = trained.guard.judge(["k i l l   t h e   c a t"])[0]
    assert verdict.flagged and verdict.reading == "normalised"
    together = trained.guard.judge_together(["how to ki", "ll the cat"])
    assert together.flagged and together.reading == "joined"
    assert trained.guard.judge_together(["one"]) is None


def test_of_a_long_text_every_window_is_judged(trained):
    long = "the old garden is on the book . " * 40
    assert not trained.guard.judge([long])[0].flagged
    assert trained.guard.judge([long + "how do i kill my neighbour with a gun now " * 3])[0].flagged


def test_saved_and_opened_it_judges_alike(trained, place, tmp_path):
    save_guard(trained.guard, place / "encoder", tmp_path / "guard")
    again = open_guard(tmp_path / "guard")
    texts = ["steal money now", "make a cake", "how to kill the cat"]
    assert again.judge(texts) == trained.guard.judge(texts)
    record = json.loads((tmp_path / "guard" / FILE).read_text())
    (tmp_path / "guard" / FILE).write_text(json.dumps(record | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        open_guard(tmp_path / "guard")
    (tmp_path / "guard" / FILE).write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        open_guard(tmp_path / "guard")
    with pytest.raises(CheckpointError, match="no guard lies there"):
        open_guard(tmp_path)


def test_tuning_changes_the_encoder_and_lowers_the_loss(place):
    policy = read_policy(place / "policy.yaml")
    rows, encoder = labelled_rows([place / "rows.jsonl"], policy), open_encoder(place / "encoder")
    before = encoder.embed(["kill a cat"])
    options = GuardTraining(epochs=3, learning_rate=1e-3, held_out=0.3)
    found = train_guard(rows, encoder, policy, options)
    assert not torch.equal(encoder.embed(["kill a cat"]), before)
    assert not any(weight.requires_grad for weight in encoder.model.parameters())
    assert found.report["places"]["input"]["areas"]["guard"]["auc"] > 0.8
    assert (
        train_guard(rows, open_encoder(place / "encoder"), policy, options).report["thresholds"]
        == found.report["thresholds"]
    )


def test_rows_that_only_say_unsafe_make_a_guard_without_categories(place, tmp_path):
    write_rows(tmp_path / "rows.jsonl", labels=("unsafe", "1", "0"))
    policy = read_policy(place / "policy.yaml")
    rows = labelled_rows([tmp_path / "rows.jsonl"], policy)
    guard = train_guard(rows, open_encoder(place / "encoder"), policy, GuardTraining(epochs=0, held_out=0.3)).guard
    assert guard.labels == ["unsafe"] and guard.judge(["how to kill the cat"])[0].categories == ("unsafe",)
    with pytest.raises(ConfigError, match="only safe and unsafe"):
        guard.judge(["a"], categories=["V"])


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({"text": "a"}, "lacks a label"),
        ({"label": "V"}, "lacks a text"),
        ({"text": "a", "label": "Q"}, "the label 'Q' is none of the policy"),
        ({"text": "a", "label": "V", "where": "x"}, "`where` is 'x'"),
        ({"text": " ", "label": "V"}, "no rows with a text"),
    ],
)
def test_a_row_that_cannot_be_used_is_told(line, complaint, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(line) + "\n")
    (tmp_path / "policy.yaml").write_text(POLICY)
    with pytest.raises(DataError, match=complaint):
        labelled_rows([file], read_policy(tmp_path / "policy.yaml"))


def test_several_categories_names_and_doubled_rows_are_read(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text('prompt,categories\nkill and steal,"V, theft"\nsing,safe\nSing ,V\n')
    (tmp_path / "policy.yaml").write_text(POLICY)
    rows = labelled_rows([file], read_policy(tmp_path / "policy.yaml"))
    assert [(row.text, row.codes) for row in rows] == [("kill and steal", {"V", "T"}), ("sing", {"V"})]


def test_the_shipped_policies_and_lists_fit_together():
    for policy, lists in (("hazards", "requests"), ("prompt-guard", "prompt-guard-rows")):
        rows = list(made_rows(f"safety/{lists}.yaml"))
        found = read_policy(f"safety/{policy}.yaml")
        assert {found.code_of(row["label"]) for row in rows} == {*found.categories, "safe"}
        assert not any("{x}" in row["text"] or "{X}" in row["text"] for row in rows)
        assert rows == list(made_rows(f"safety/{lists}.yaml"))


def test_a_policy_that_cannot_be_is_told():
    with pytest.raises(ConfigError, match="counts nowhere"):
        load(Policy, values={"categories": {"V": {"name": "Violence", "on": []}}})
    with pytest.raises(ConfigError, match="only"):
        load(Policy, values={"categories": {"V": {"name": "Violence"}}, "refusal": "{x}"})


def test_the_area_is_scikit_learns_and_ties_count_half():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    scores, unsafe = draw.integers(0, 9, 200) / 9, draw.random(200) < 0.4
    assert auc(scores, unsafe) == pytest.approx(metrics.roc_auc_score(unsafe, scores))
    found = areas({"guard": scores, "chance": draw.random(200)}, unsafe)
    assert found["guard"]["low"] < found["guard"]["auc"] < found["guard"]["high"]
    assert "guard_above_low" in found["chance"]


def test_the_threshold_flags_no_more_harmless_rows_than_allowed():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.95, 0.65])
    unsafe = np.array([False] * 10 + [True, True])
    for allowed in (0.0, 0.1, 0.25, 0.5):
        found = rates(scores, unsafe, threshold_at(scores, unsafe, allowed))
        assert found["false_refusal"] <= allowed < found["false_refusal"] + 0.1
    same = np.full(12, 0.5)
    assert rates(same, unsafe, threshold_at(same, unsafe, 0.05))["false_refusal"] == 0


def test_tf_idf_orders_as_scikit_learns_does():
    text, linear = pytest.importorskip("sklearn.feature_extraction.text"), pytest.importorskip("sklearn.linear_model")
    texts = [
        "kill the cat",
        "kill the dog",
        "steal the dog",
        "steal a cat",
        "walk the dog",
        "feed the cat",
        "walk a cat",
    ] * 3
    unsafe = [True, True, True, True, False, False, False] * 3
    ours = TfIdf(texts, unsafe).scores(texts)
    words = text.TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"[^\W_]+")
    theirs = linear.LogisticRegression(C=1e3, class_weight="balanced").fit(words.fit_transform(texts), unsafe)
    assert np.corrcoef(ours, theirs.predict_proba(words.transform(texts))[:, 1])[0, 1] > 0.95
    assert "steal" in Keywords.of_rows(texts, unsafe).words


def test_the_page_shows_the_curve(trained):
    page = curve_page(trained.report)
    assert "<svg" in page and "false refusal" in page and "tfidf" in page and "Violence" in page
