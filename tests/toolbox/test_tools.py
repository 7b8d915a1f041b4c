"""Each tool by itself."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

from herd.errors import ConfigError, SandboxError
from herd.knowledge.build import index_folder
from herd.knowledge.index import Index
from herd.toolbox.calculator import Calculator, written
from herd.toolbox.errand import Errand, Failed
from herd.toolbox.functions import Function, functions_of
from herd.toolbox.interpreter import Interpreter, Python
from herd.toolbox.settings import ToolSettings, open_tools
from tests.scripted import Scripted, http


def call(tool, errand=None, **arguments):
    return asyncio.run(tool.call(arguments, errand or Errand()))


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2*(3+4)^2", "98"),
        ("1/3 + 1/6", "1/2 (about 0.5)"),
        ("2**100", "1267650600228229401496703205376"),
        ("sqrt(16) + factorial(5)", "124"),
        ("10 % 3 - 7 // 2", "-2"),
        ("0.1 + 0.2", "0.30000000000000004"),
        ("round(2/3, 2)", "0.67"),
        ("max(1, 2, gcd(12, 18))", "6"),
    ],
)
def test_arithmetic_is_exact(expression, value):
    assert written(expression) == value


@pytest.mark.parametrize("expression", ["1/0", "9**9**9", "factorial(1000)**9999", "2^-99999999", "10**400 * 1.0"])
def test_what_has_no_value_or_too_large_a_one_is_said_at_once(expression):
    with pytest.raises(Failed, match=r"no value"):
        call(Calculator(), expression=expression)


@pytest.mark.parametrize("expression", ["__import__('os').getcwd()", "().__class__", "open('x')", "(" * 5000, "x = 1"])
def test_nothing_but_arithmetic_is_read_here(expression):
    with pytest.raises(Failed):
        call(Calculator(), expression=expression)


@pytest.fixture(scope="module")
def boxed():
    try:
        return Interpreter(packages=["sympy"])
    except SandboxError as error:
        pytest.skip(f"no sandbox: {error}")


def test_algebra_is_worked_out_in_the_sandbox(boxed):
    calculator, errand = Calculator(boxed), Errand()
    assert call(calculator, errand, expression="x^2 - 2 = 0") == "x = [-sqrt(2), sqrt(2)]"
    assert call(calculator, errand, expression="integrate(x^2, (x, 0, 3))") == "9"
    with pytest.raises(Failed, match="cannot be worked out"):
        call(calculator, errand, expression="open('/etc/passwd').read() +")
    errand.close()


def test_python_keeps_its_names_from_call_to_call_and_hands_files_back(boxed):
    python, errand = Python(boxed), Errand()
    assert call(python, errand, code="x = 6\nprint('set')") == "completed\n[stdout]set[/stdout]"
    assert "42" in call(python, errand, code="x * 7")
    assert "files: a.txt" in call(python, errand, code="open('a.txt', 'w').write('hello')")
    assert errand.files == {"a.txt": b"hello"}
    with pytest.raises(Failed, match=r"failed\n\[stderr\][^$]*ZeroDivisionError"):
        call(python, errand, code="1/0")
    errand.close()
    with pytest.raises(Failed, match="over"):
        call(python, errand, code="1")


def convert(amount: float, unit: Literal["km", "mi"] = "km", tags: list[str] | None = None) -> dict:
    """Turn a distance
    into metres.

    Args:
        amount: how far it is
        unit: of which kind
    """
    return {"metres": amount * (1000 if unit == "km" else 1609.344), "tags": tags}


def test_a_functions_schema_comes_from_its_signature_and_its_words():
    tool = Function(convert)
    assert tool.function["description"] == "Turn a distance into metres."
    parameters = tool.function["parameters"]
    assert parameters["required"] == ["amount"] and parameters["additionalProperties"] is False
    assert parameters["properties"]["amount"] == {"type": "number", "description": "how far it is"}
    assert parameters["properties"]["unit"]["enum"] == ["km", "mi"]
    assert call(tool, amount=2) == '{"metres": 2000.0, "tags": null}'
    with pytest.raises(Failed, match="unit: Input should be 'km' or 'mi'"):
        call(tool, amount=2, unit="lightyear")
    with pytest.raises(Failed, match="not permitted"):
        call(tool, amount=2, planet="Mars")


def test_the_functions_of_a_file_are_tools_but_private_and_borrowed_ones(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from os.path import join\n"
        "async def greet(name: str) -> str:\n    'Say hello.'\n    return 'hello ' + name\n"
        "def fails(schema: int):\n    raise OSError('no disk')\n"
        "def _hidden(x): pass\n"
    )
    greet, fails = functions_of(file)
    assert call(greet, name="Ada") == "hello Ada"
    with pytest.raises(Failed, match="OSError: no disk"):
        call(fails, schema=1)
    file.write_text("def untyped(x): pass")
    with pytest.raises(ConfigError, match="parameter `x` has no type"):
        functions_of(file)
    file.write_text("1/0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        functions_of(file)


def test_settings_name_the_tools_and_refuse_what_is_none(tmp_path):
    with pytest.raises(ConfigError, match="no `wolfram`"):
        open_tools(["wolfram"], ToolSettings())
    with pytest.raises(ConfigError, match="documents=INDEX"):
        open_tools(["documents"], ToolSettings())
    with pytest.raises(ConfigError, match="no file"):
        open_tools([str(tmp_path / "none.py")], ToolSettings())
    with pytest.raises(ConfigError, match="place for the words"):
        open_tools(["search"], ToolSettings(), search="http://localhost/search")


def test_documents_are_searched_and_their_passages_numbered(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/rules.md").write_text(
        "# Keys\n\nWho loses a key pays forty euros.\n\n# Dogs\n\nDogs may enter.\n"
    )
    index_folder(tmp_path / "notes", tmp_path / "index")
    (tool,) = open_tools(["documents"], ToolSettings(), index=Index(tmp_path / "index"))
    errand = Errand()
    assert "[1] rules.md · Keys" in call(tool, errand, query="lost key pays")
    assert errand.passages[0].text == "Who loses a key pays forty euros."
    with pytest.raises(Failed, match="nothing on this"):
        call(tool, errand, query="zeppelin")
    with pytest.raises(Failed, match="needs `query`"):
        call(tool, errand)


def test_a_search_engine_is_asked_and_its_answer_read():
    found = http('{"results": [{"url": "http://a", "title": "A", "content": "<b>Llamas</b> hum."}]}')
    with Scripted(found, http("nonsense"), http("{}", status="500 Internal")) as engine:
        address = engine.url.replace("/v1", "/search?format=json&q={query}")
        (tool,) = open_tools(["search"], ToolSettings(), search=address)
        assert call(tool, query="what do llamas do?") == "[1] http://a · A\nLlamas hum."
        assert engine.requests[0][0] == "GET /search?format=json&q=what+do+llamas+do%3F HTTP/1.1"
        with pytest.raises(Failed, match="JSON"):
            call(tool, query="x")
        with pytest.raises(Failed, match="500"):
            call(tool, query="x")
