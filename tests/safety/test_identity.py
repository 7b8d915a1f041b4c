"""Words that say who somebody is are counted, and exchanged with their case."""

import json

import pytest

from herd.errors import ConfigError
from herd.safety.identity import Swapper, read_identities
from herd.stages import identity

SWAPPER = Swapper(read_identities("safety/identity.yaml"))


def test_words_are_exchanged_in_their_case_and_twice_gives_the_text_again():
    text = "She told her brother that the MEN saw him; his wife was there. The theme is human."
    other = "He told his sister that the WOMEN saw her; her husband was there. The theme is human."
    assert SWAPPER.swap(text) == other and SWAPPER.swap("Nobody came.") == "Nobody came."
    assert SWAPPER.swap(other) == text


def test_words_are_counted_by_group_and_by_text():
    counts = SWAPPER.counts(["He and he and an African American", "a shelf, the history"])
    assert counts["men"] == {"words": 2, "texts": 1} and counts["black"]["words"] == 1 and not counts["women"]["words"]


def test_rows_get_their_counterparts(tmp_path):
    rows = [
        {
            "messages": [{"role": "user", "content": "Is he a man?"}, {"role": "assistant", "content": "Yes"}],
            "id": "he",
        },
        {"prompt": "x", "response": "y"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = identity.IdentitySettings(path=[tmp_path / "rows.jsonl"], out=tmp_path / "out", swap=True)
    found = [json.loads(line) for line in (identity.run(settings) / "rows.jsonl").read_text().splitlines()]
    assert len(found) == 3 and found[1]["messages"][0]["content"] == "Is she a woman?" and found[1]["id"] == "he"
    assert json.loads((tmp_path / "out" / "counts.json").read_text())["groups"]["men"]["texts"] == 1
    (tmp_path / "bad.yaml").write_text("terms: {a: [b]}\nswaps: [[a]]\n")
    with pytest.raises(ConfigError, match="every entry is a pair"):
        read_identities(tmp_path / "bad.yaml")
