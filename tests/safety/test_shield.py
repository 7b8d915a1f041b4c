"""Code Shield finds what is insecure by line and CWE, in many languages, and lets code in order pass."""

import json
import subprocess
import sys

import pytest

from herd.errors import ConfigError
from herd.safety.shield import Shield
from herd.safety.source import blocks_of, language_of, read_source
from herd.stages import shield as stage

SHIELD = Shield()
INSECURE = {
    "python": ("import os\nname = input()\nos.system('rm ' + name)", 3, "CWE-78"),
    "javascript": ("const q = `select a from b where c=${req.query.c}`;\n// eval(x)\ndb.query(q);", 3, "CWE-89"),
    "java": ('String q = "SELECT * FROM t WHERE n=" + name;\nst.executeQuery(q);', 2, "CWE-89"),
    "c": ("int main(int n, char **argv) {\n  char b[8];\n  strcpy(b, argv[1]);\n}", 3, "CWE-120"),
    "cpp": ("auto p = new int[rows * columns];", 1, "CWE-680"),
    "csharp": ("var f = new BinaryFormatter();", 1, "CWE-502"),
    "php": ("<?php\n\n$n = $_GET['n'];\nsystem(\"ping $n\");", 4, "CWE-78"),
    "rust": ("let program = args.next();\nCommand::new(program)", 2, "CWE-78"),
    "go": ('q := fmt.Sprintf("select a from b where c=%s", r.FormValue("c"))\ndb.Query(q)', 2, "CWE-89"),
    "ruby": ('system("ls #{params[:dir]}")', 1, "CWE-78"),
    "shell": ("set -e\ncurl https://example.org/install | sudo bash", 2, "CWE-494"),
}
IN_ORDER = {
    "python": "# os.system(name)\nos.system('ls')\nsay = 'eval(x)'\ncur.execute('select 1 from t where a=?', (a,))",
    "javascript": "db.query('select a from b where c=?', [c]);\nnode.textContent = name;\nconst x = Math.random();",
    "java": 'PreparedStatement s = c.prepareStatement("select a from b");\nMessageDigest.getInstance("SHA-256");',
    "c": 'snprintf(b, sizeof b, "%s", name);\nstrcpy(b, "x"); /* gets(b); */\nprintf("%s", b);',
    "php": "$s = $db->prepare('select a from b where c=?');\necho htmlspecialchars($_GET['c']);",
    "go": 'db.Query("select a from b where c=?", r.FormValue("c"))\nexec.Command("ls", "-l")',
    "shell": "curl -fsS https://example.org/a.tar.gz -o a.tar.gz\nrm -rf ./build\n# chmod 777 x",
}


@pytest.mark.parametrize("language", INSECURE)
def test_it_finds_what_is_insecure_with_line_and_cwe(language):
    code, line, cwe = INSECURE[language]
    found = [one for one in SHIELD.scan(code, language) if one.counts]
    assert (line, cwe) in [(one.line, one.cwe) for one in found]
    assert all(one.text == code.split("\n")[one.line - 1].strip() for one in found)


@pytest.mark.parametrize("language", IN_ORDER)
def test_code_that_is_in_order_passes(language):
    assert [one for one in SHIELD.scan(IN_ORDER[language], language) if one.counts] == []


def test_the_deeper_layer_clears_constants_and_blocks_what_comes_from_outside():
    code = "command = 'ls'\nos.system(command)\nos.system(given)\nother = sys.argv[1]\nos.system(other)"
    assert [(one.line, one.severity) for one in SHIELD.scan(code, "python")] == [(3, "warn"), (5, "block")]
    assert [one.line for one in SHIELD.scan(code, "python", layers="fast")] == [2, 3, 5]


def test_places_stay_when_comments_and_strings_are_blanked():
    code = "a = f'{x} # no' # 'yes\n'''\nb'''\nc"
    source = read_source(code, "python")
    assert len(source.bare) == len(source.text) == len(code)
    assert source.bare.split("\n") == ["a =  '{x}     '       ", "'  ", "   '", "c"] and source.text.endswith("b'''\nc")


def test_an_answers_code_is_found_by_its_fences_and_its_looks():
    answer = "Try:\n\n```python\nimport pickle\npickle.loads(data)\n```\nor `eval(x)` in ~~~ words.\n```bash\nls\n```\n"
    assert [(one.language, one.line) for one in blocks_of(answer)] == [("python", 4), ("shell", 9)]
    assert [(one.line, one.cwe) for one in SHIELD.answer(answer)] == [(5, "CWE-502")]
    assert [one.cwe for one in SHIELD.answer("import os\nos.system(x)")] == ["CWE-78"]
    assert SHIELD.answer("Never call eval(x), and do not use pickle.loads on strangers' data.") == []
    assert language_of("a/b.tsx") == "javascript" and language_of("mermaid", "def f():\n") is None


def test_calls_hand_over_code_and_commands():
    assert [one.cwe for one in SHIELD.call("bash", {"command": "rm -rf /"})] == ["CWE-73"]
    assert [one.cwe for one in SHIELD.call("python", json.dumps({"code": "eval(input())"}))] == ["CWE-95"]
    assert [one.cwe for one in SHIELD.call("run", {"cmd": ["curl", "-k", "https://example.org"]})] == ["CWE-295"]
    assert SHIELD.call("weather", {"city": "Rome; rm"}) == []


def test_secrets_count_and_placeholders_do_not():
    key = "AKIA" + "QZ7RPTWX4LM2HVBN"
    assert [one.cwe for one in SHIELD.scan(f"key = '{key}'", "python")] == ["CWE-798"]
    assert SHIELD.scan("password = 'your-password-here'\ntoken = os.environ['TOKEN']", "python") == []


def test_ones_own_rules_stand_beside_the_shipped_ones(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "rules:\n  no-print: {cwe: CWE-1, languages: [python], find: 'print\\(', says: No.}\n"
    )
    assert [one.rule for one in Shield(tmp_path / "mine.yaml").scan("print(1)\neval(x)", "python")] == [
        "no-print",
        "py-eval",
    ]
    (tmp_path / "bad.yaml").write_text("rules:\n  a: {cwe: 78, languages: [cobol], find: '(', says: No.}\n")
    with pytest.raises(ConfigError, match=r"rules\.a"):
        Shield(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match="'cobol' is not read"):
        SHIELD.scan("x", "cobol")


def test_the_command_tells_files_lines_and_ends_with_1_where_something_is_to_block(tmp_path, capsys):
    (tmp_path / "a.py").write_text("import sys\neval(sys.argv[1])\n")
    (tmp_path / "b.md").write_text("```js\nelement.innerHTML = name\n```\n")
    (tmp_path / "c.bin").write_bytes(b"\x00")
    assert stage.run(stage.ShieldSettings(path=[tmp_path])) == 1
    told = capsys.readouterr()
    assert "a.py:2: block CWE-95" in told.out and "b.md:2: warn CWE-79" in told.out
    assert stage.run(stage.ShieldSettings(path=[tmp_path / "b.md"], json=True)) == 0
    assert json.loads(capsys.readouterr().out)[0]["cwe"] == "CWE-79"
    done = subprocess.run([sys.executable, "-m", "herd", "shield", str(tmp_path / "none")], capture_output=True)
    assert done.returncode == 2 and b"no such file" in done.stderr


def test_hostile_code_is_read_to_its_end():
    for piece in ("eval(", "rm -rf ", "curl a ", "sprintf(%", '"', "(", "a = a\n", "```py\n"):
        text = piece * (20_000 // len(piece))
        for language in ("python", "c", "shell"):
            assert all(one.line <= text.count("\n") + 1 for one in SHIELD.scan(text, language))
        SHIELD.answer(text)
