"""Examine: every filter's verdict on a page."""

from herd.cli import main
from tests.curate.extract.test_posts import POSTS, thread

PROSE = "The hive stands at the edge of the wood, and every morning the bees leave it with the first light. " * 2


def test_a_page_is_shown_with_every_verdict(tmp_path, capsys):
    (tmp_path / "page.html").write_text(f"<title>Bees</title><p>{PROSE} Write to jane@garden.org.</p>")
    assert main(["examine", str(tmp_path / "page.html"), "text=true"]) == 0
    told = capsys.readouterr().out
    assert "title: Bees" in told and "language       en" in told and "kind: prose" in told
    assert "DROP           gopher_word_count: 43 words" in told and "email          'jane@garden.org'" in told
    assert "verdict        DROP gopher_word_count: 43 words" in told and "The hive stands" in told


def test_what_an_exemption_spares_is_marked(tmp_path, capsys):
    lines = "\n".join(f"def bee_{i}(honey):\n    return honey[{i}]  # {{}}" for i in range(30))
    (tmp_path / "page.html").write_text(f"<p>{PROSE}</p><pre>{lines}</pre>")
    assert main(["examine", str(tmp_path / "page.html")]) == 0
    told = capsys.readouterr().out
    assert "kind: code" in told and "spared         c4_curly_bracket" in told and "verdict        kept" in told


def test_blocked_and_empty_pages_say_so_and_a_missing_one_is_refused(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"url": "http://casino.example/", "html": "\\u0000"}\n')
    words = ["rules.blocked.domains={adult: [casino.example]}"]
    assert main(["examine", str(tmp_path / "a.jsonl"), *words]) == 0
    assert "DROP blocked_domain_adult: casino.example" in capsys.readouterr().out
    assert main(["examine", str(tmp_path / "a.jsonl"), "first=2"]) == 2
    assert "has no page 2" in capsys.readouterr().err


def test_the_blocks_of_a_thread_are_shown_with_scores_and_reasons(tmp_path, capsys):
    (tmp_path / "thread.html").write_text(thread("xenforo"))
    assert main(["examine", str(tmp_path / "thread.html"), "blocks=true"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert any("a thread: 6 of " in line for line in lines)
    post = next(line for line in lines if POSTS[0][:40] in line)
    assert post.startswith("    +  +") and post.count(",") >= 2 and post.endswith(")")
