"""Facts read out of sources, pydoc pages and anybody's pages."""

import inspect
import pydoc
from pathlib import Path

import pytest

from herd.demo import facts
from herd.demo.facts import Fact, facts_of, first_sentence, read_page, read_pydoc, read_source

BEES = Path(__file__).with_name("bees.py").read_text(encoding="utf-8")


def by_name(found):
    return {fact.name: fact for fact in found}


def test_a_source_gives_its_public_documented_names_with_signature_and_first_sentence():
    found = by_name(read_source(BEES, "bees", "bees").facts)
    assert list(found) == [
        "bees",
        "bees.count_bees",
        "bees.smoke",
        "bees.swarm",
        "bees.Hive",
        "bees.Hive.open",
        "bees.Hive.weight",
        "bees.Hive.build",
    ]
    assert found["bees"] == Fact(
        name="bees", kind="module", module="bees", group="bees", summary="A hive of bees, for the tests."
    )
    assert found["bees.count_bees"].parameters == "hive, *, sleeping=False"
    assert found["bees.count_bees"].summary == "Count the bees that are at home."
    assert found["bees.smoke"].parameters == "hive, seconds=3.0, /, *puffs, colour='white', **options"
    assert found["bees.smoke"].summary == "Calm the bees of a hive with seconds of smoke (see count_bees)."
    assert found["bees.swarm"].parameters == ""
    assert (found["bees.Hive"].kind, found["bees.Hive"].parameters) == ("class", "frames=10")
    assert found["bees.Hive.open"].parameters == "gently=True"
    assert (found["bees.Hive.weight"].kind, found["bees.Hive.weight"].parameters) == ("attribute", None)
    assert found["bees.Hive.build"].summary == "Build a new hive from a piece of wood."
    assert found["bees.Hive.build"].parameters == "wood"


def test_a_source_tells_what_it_uses():
    assert {"os.path", "os.path.join"} <= read_source(BEES, "bees", "bees").uses


@pytest.mark.parametrize("broken", ["def (", "\0", "(" * 5000, "x = 1\n\tif"])
def test_a_source_that_does_not_parse_has_no_facts(broken):
    assert read_source(broken, "m", "m").facts == []


def test_names_are_given_as_people_know_them():
    decode = '    def decode(self, s):\n        """Decode one document."""\n'
    decoder = 'class JSONDecoder:\n    """Simple JSON decoder."""\n' + decode
    package = '"""JSON for everybody here."""\nfrom .decoder import JSONDecoder\n'
    posix = 'def join(a, *p):\n    """Join two or more pathname components."""\n'
    hidden = 'def f():\n    """Do something that nobody sees."""\n'
    rows = [
        ("python://3.11/lib/json/decoder.py", decoder, "json"),
        ("python://3.11/lib/json/__init__.py", package, "json"),
        ("python://3.11/lib/posixpath.py", posix, "posixpath"),
        ("python://3.11/lib/_hidden.py", hidden, "_hidden"),
    ]
    documents = [{"url": url, "text": text, "source": "library", "group": g, "title": ""} for url, text, g in rows]
    found, uses = facts_of(documents, {})
    assert [fact.name for fact in found] == ["json.JSONDecoder", "json.JSONDecoder.decode", "json", "os.path.join"]
    assert uses["builtins"] == 4


def test_a_pydoc_page_tells_about_functions_classes_and_own_methods():
    page = pydoc.html.page("itertools", pydoc.html.document(__import__("itertools"), "itertools"))
    found = by_name(read_pydoc(page, "itertools", "itertools"))
    assert found["itertools.tee"].kind == "function"
    assert found["itertools.combinations"].parameters == "iterable, r"
    assert found["itertools.chain.from_iterable"].kind == "method"
    assert all("__" not in name for name in found)
    page = pydoc.html.page("builtins", pydoc.html.document(__import__("builtins"), "builtins"))
    found = by_name(read_pydoc(page, "builtins", "builtins"))
    assert found["len"].summary == "Return the number of items in a container."
    assert found["str.strip"].parameters == "chars=None, /"
    assert "bool.bit_length" not in found  # inherited from int


def test_a_pydoc_page_adds_only_what_the_source_did_not_tell():
    page = pydoc.html.page("textwrap", pydoc.html.document(__import__("textwrap"), "textwrap"))
    source = inspect.getsource(__import__("textwrap"))
    documents = [
        {"url": "python://3.11/doc/textwrap.html", "text": "", "source": "pydoc", "group": "textwrap", "title": ""},
        {"url": "python://3.11/lib/textwrap.py", "text": source, "source": "library", "group": "textwrap", "title": ""},
    ]
    manuals = {"python://3.11/doc/textwrap.html": page}
    assert facts_of(documents, manuals)[0] == facts_of(documents[1:], {})[0]


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Return the list. Then more.", "Return the list."),
        ("return it in lower case", "Return it in lower case."),
        ("Take e.g. this one, i.e. That one, and more.", "Take e.g. this one, i.e. That one, and more."),
        ("f(x) -> int\n\nReturn the number of x.", "Return the number of x."),
        ("f(x) -> int -- return the number of x", "Return the number of x."),
        ("S.join(iterable) -> str\nS.join() -> str\n\nConcatenate any strings.", "Concatenate any strings."),
        ("Module bees -- all about bees.", "All about bees."),
        ("bees.py - all about bees", "All about bees."),
        ("Register *cls* with ``this`` class.", "Register cls with this class."),
        ("One two", None),
        ("word " * 40, None),
        (">>> f(1) is one example", None),
        ("See the other one for this.", None),
        ("", None),
        (None, None),
        ("Grüße an alle von hier.", None),
    ],
)
def test_the_first_sentence_of_a_docstring_stands_alone_or_is_left_out(docstring, expected):
    assert first_sentence(docstring) == expected


PAGE = """Bees

Bees are winged insects closely related to wasps and ants. They live in colonies.

Honey production

Honey is a sweet food made by bees from the nectar of flowers. It keeps for years.

Prices

12 euro

It is a pity that this is not a definition of anything.
"""


def test_a_page_gives_its_title_its_sections_and_its_definitions():
    found = {(fact.kind, fact.name): fact.summary for fact in read_page("Bees - Wiki of Animals", PAGE, "u")}
    assert found == {
        ("page", "Bees"): "Bees are winged insects closely related to wasps and ants.",
        ("section", "Honey production"): "Honey is a sweet food made by bees from the nectar of flowers.",
        ("term", "Honey"): "Honey is a sweet food made by bees from the nectar of flowers.",
    }
    assert read_page("", "", "u") == []
    assert all(fact.module == "Bees" and fact.group == "u" for fact in read_page("Bees", PAGE, "u"))


def test_modules_are_known_from_urls():
    assert facts.module_of("python://3.11/lib/json/__init__.py") == "json"
    assert facts.module_of("python://3.11/doc/os.path.html") == "os.path"
    assert facts.module_of("src/bees.py") == "bees"
