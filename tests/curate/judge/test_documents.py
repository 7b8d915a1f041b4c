"""The judge: rules put together, what they spare counted, and nothing dropped without its reason."""

import json

import pytest

from herd.config import load
from herd.curate.filters.addresses import Blocked
from herd.curate.filters.decontaminate import Contamination
from herd.curate.funnel import Step
from herd.curate.judge.documents import Heuristics, Judge, Privacy, Rules, rule_files, rules_from_json, rules_to_json
from herd.errors import ConfigError, DataError
from herd.stages.curate import CurateSettings

PROSE = (
    "The hive stands at the edge of the wood, and every morning the bees leave it with the first light. They come back "
    "when the sun is low. Nobody who has watched them for a year would say that they are slow to learn where the best "
    "flowers are. One summer the keeper moved the hive by forty steps, and for that day they went to the old place."
)
CODE = "\n".join(f"def bee_{i}(flower, honey={i}):\n    return flower.take(honey)[{i}]  # {{}}" for i in range(20))
MATHS = " ".join(f"Let $x_{{{i}}} = \\frac{{{i}}}{{2}}$ be given." for i in range(30))


def judged(text, rules=None, kind="html", **row):
    judge, steps = Judge(rules or Rules()), {name: Step(name) for name in Judge.STEPS}
    row = {"url": "http://a.org", "text": text, "language": "en", "kind": kind, "source": "web", "drop": None} | row
    kept = judge.judge(row, steps)
    assert kept == (row["drop"] is None)
    return row, steps


def test_technical_pages_are_spared_and_the_funnel_shows_from_what():
    for kind, text in (("code", CODE), ("maths", MATHS)):
        row, steps = judged(text)
        assert row["drop"] is None
        tables = steps["heuristics"].as_dict()["tables"]
        assert tables["pages"][kind] == 1 and tables[f"{kind}: spared"]
        row, steps = judged(text, Rules(heuristics=Heuristics(exempt=[])))
        assert row["drop"] in tables[f"{kind}: spared"]
        assert steps["heuristics"].tables[f"{kind}: dropped"] == {row["drop"]: 1}


def test_lines_of_notices_go_from_prose_and_stay_in_technical_pages():
    notice = "Please enable JavaScript. We use cookies, see our privacy policy."
    row, steps = judged(f"{notice}\n{PROSE}\n{notice}")
    assert row["text"] == PROSE and steps["heuristics"].notes == {"notice lines dropped": 2}
    assert judged(f"{PROSE} {notice} {PROSE[:80]}")[0]["text"].count("cookies") == 1  # a paragraph, no notice
    assert judged(f"{notice}\n{CODE}")[0]["text"].startswith(notice)
    assert notice in judged(f"{notice}\n{PROSE}", Rules(heuristics=Heuristics(notices="keep")))[0]["text"]


def test_word_lists_of_the_user_are_read_and_are_inputs_of_the_run(tmp_path):
    (tmp_path / "words").write_text("# mine\nmead\nhoney wine\n")
    rules = Rules(heuristics=Heuristics(word_lists={"drinks": [tmp_path / "words"]}, max_listed_words=0))
    row, _ = judged(PROSE + " They drank honey wine.", rules)
    assert (row["drop"], row["drop_detail"]) == ("listed_words_drinks", "1 listed words, such as honey wine")
    assert judged(PROSE, rules)[0]["drop"] is None
    assert rule_files(rules) == [tmp_path / "words"]


def test_word_lists_can_be_for_one_language_and_must_not_be_empty(tmp_path):
    (tmp_path / "words").write_text("mead\n")
    for name, drop in (("drinks@en", "listed_words_drinks"), ("drinks@de", None)):
        rules = Rules(heuristics=Heuristics(word_lists={name: [tmp_path / "words"]}, max_listed_words=0))
        assert judged(PROSE + " They drank mead.", rules)[0]["drop"] == drop
    (tmp_path / "words").write_text("# nothing yet\n")
    with pytest.raises(DataError, match=r"word_lists.drinks@de: .*words holds no word"):
        Judge(rules)


def test_the_page_shows_what_the_exemption_spared():
    from herd.curate.funnel_page import page

    _, steps = judged(CODE)
    shown = page({"steps": [step.as_dict() for step in steps.values()], "tables": {}}, "Bees")
    assert "What the exemption spared" in shown and "<td>c4_curly_bracket<td class=n>100.0 %" in shown


def test_personal_data_is_masked_or_drops_the_page():
    text = PROSE + " Write to jane@garden.org, password: Zk3vQ9xT7mL2pW8r."
    row, steps = judged(text)
    assert "jane@" not in row["text"] and steps["pii"].notes == {"email": 1, "secret": 1}
    row, _ = judged(text, Rules(privacy=Privacy(drop=["secret"])))
    assert (row["drop"], row["drop_detail"]) == ("pii_secret", "1 found")
    row, _ = judged(text, Rules(privacy=Privacy(mask=["email"])))
    assert "Zk3vQ9xT7mL2pW8r" in row["text"] and "jane@" not in row["text"]
    code, _ = judged(CODE + "\nHOST = '81.2.69.142'\nMAIL = 'jane@garden.org'", kind="code")
    assert "81.2.69.142" in code["text"] and "jane@garden.org" not in code["text"]


def test_filters_can_be_skipped_and_limited():
    short = " ".join(PROSE.split()[:40]) + "."
    assert judged(short)[0]["drop"] == "gopher_word_count"
    skip = Heuristics(skip=["gopher_word_count", "c4_sentences"])
    assert judged(short, Rules(heuristics=skip))[0]["drop"] is None


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rules.heuristics.limits={de: {gopher_wordcount: {least: 1}}}", "no filter `gopher_wordcount`"),
        ("rules.heuristics.limits={de: {gopher_word_count: {leest: 1}}}", "no limit `leest`; it has: least, most"),
        ("rules.heuristics.skip=[none_such]", "no filter `none_such`"),
        ("rules.cutoff=soon", "expected a date such as"),
        ("rules.privacy.mask=[face]", "rules.privacy.mask"),
    ],
)
def test_impossible_rules_are_refused_by_name(word, message):
    with pytest.raises(ConfigError, match=message):
        load(CurateSettings, None, ["out=x", "pages=[y]", word])


def test_rules_travel_as_plain_data(tmp_path):
    rules = Rules(
        cutoff="2023",
        blocked=Blocked(domains={"adult": ["a.example"]}, word_files={"x": [tmp_path]}),
        heuristics=Heuristics(limits={"*": {"gopher_bullets": {"most": 0.5}}}, outliers=None),
    )
    assert rules_from_json(json.loads(json.dumps(rules_to_json(rules)))) == rules


def test_benchmarks_are_read_once_for_all_parts_and_again_when_they_change(tmp_path):
    import os

    file = tmp_path / "bench.jsonl"
    file.write_text(json.dumps({"question": PROSE[:120]}) + "\n")
    rules = Rules(contamination=Contamination(benchmarks=[file]))
    row, steps = judged(PROSE, rules)
    assert row["drop"] == "contaminated" and row["drop_detail"].startswith("bench, row 1: ")
    assert steps["decontaminate"].tables["questions found"] == {"bench": 1}
    assert Judge(rules).benchmarks is Judge(rules).benchmarks
    flag = Rules(contamination=Contamination(benchmarks=[file], action="flag"))
    row, steps = judged(PROSE, flag)
    assert row["drop"] is None and steps["decontaminate"].tables["documents with questions"] == {"bench": 1}
    file.write_text(json.dumps({"question": "something else that is long enough to be told from chance here"}) + "\n")
    os.utime(file, ns=(1, 1))
    assert judged(PROSE, rules)[0]["drop"] is None
