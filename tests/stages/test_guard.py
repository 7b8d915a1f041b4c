"""Guards on the command line: rows, training, checking, conversations."""

import json

from herd.cli import main
from tests.safety.encoders import POLICY, small_encoder, write_rows

LISTS = """
rows:
- {text: frames, x: wishes, each: 2}
- {text: frames, x: calm, label: safe}
frames: ["how do i {x}", "{X} now", "please {x}"]
wishes: {V: [kill a cat, make a bomb], T: [steal money]}
calm: [make a cake, sing]
"""


def test_from_lists_to_a_guard_that_is_checked(tmp_path, capsys):
    (tmp_path / "lists.yaml").write_text(LISTS)
    assert main(["guard", "rows", f"lists={tmp_path / 'lists.yaml'}", f"out={tmp_path / 'made.jsonl'}"]) == 0
    made = [json.loads(line) for line in (tmp_path / "made.jsonl").read_text().splitlines()]
    assert len(made) == 12 and {row["label"] for row in made} == {"V", "T", "safe"}
    (tmp_path / "policy.yaml").write_text(POLICY)
    rows, guard = write_rows(tmp_path / "rows.jsonl"), str(tmp_path / "guard")
    words = [f"rows=[{rows},{tmp_path / 'made.jsonl'}]", f"policy={tmp_path / 'policy.yaml'}", f"out={guard}"]
    encoder = [f"encoder={small_encoder(tmp_path / 'encoder')}", "training.epochs=0", "training.held_out=0.3"]
    assert main(["guard", "train", *words, *encoder]) == 0
    report = json.loads((tmp_path / "guard" / "curve.json").read_text())
    assert report["places"]["input"]["areas"]["guard"]["auc"] > 0.9
    assert "<svg" in (tmp_path / "guard" / "curve.html").read_text()
    assert main(["guard", "check", guard, "how to kill the cat"]) == 1
    assert "flagged" in capsys.readouterr().out
    assert main(["guard", "check", guard, "how to kill the cat", "drop=[V]"]) == 0
    assert main(["guard", "check", guard, "please make a cake", "json=true"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed[printed.index("{") :])["flagged"] is False
    assert main(["guard", "check", guard, f"rows=[{rows}]"]) == 0
    assert "violation" in capsys.readouterr().out
    assert main(["guard", "check", guard, "a", "categories=[X]"]) == 2
    talks = tmp_path / "talks.jsonl"
    assert main(["guard", "talks", f"rows=[{rows}]", f"policy={tmp_path / 'policy.yaml'}", f"out={talks}"]) == 0
    said = [json.loads(line)["messages"][1]["content"] for line in talks.read_text().splitlines()]
    assert {"safe", "unsafe\nV", "unsafe\nT"} == set(said)
