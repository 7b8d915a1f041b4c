"""The examples of docs/tokenizer.md run as they stand."""

import re
from pathlib import Path

from herd.tokenizer.io import save_tokenizer

PAGE = Path(__file__).parent.parent.parent / "docs" / "tokenizer.md"


def test_the_examples_of_the_page_run(tokenizer, tmp_path, monkeypatch, capsys):
    save_tokenizer(tokenizer, tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    exec("\n".join(blocks), {})
    assert "Return function calls in JSON format.\n\nIs it raining in Paris?" in capsys.readouterr().out
