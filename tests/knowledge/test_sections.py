import io
import json
import zipfile

import pytest

from herd.curate.read.warc import warc_record
from herd.knowledge.build import index_folder
from herd.knowledge.index import Index
from herd.knowledge.passages import passages_of
from herd.knowledge.sections import Section, read_sections

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
S = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
LINKS = "http://schemas.openxmlformats.org/package/2006/relationships"


def zipped(**parts: str) -> bytes:
    """An archive of parts; `__` in a name stands for a slash, and every name ends with `.xml` or `.rels`."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            path = name.replace("__", "/")
            archive.writestr(path.replace("rels/", "_rels/") + (".xml.rels" if "rels/" in path else ".xml"), text)
    return memory.getvalue()


def paragraph(text: str, style: str = "") -> str:
    mark = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{mark}<w:r><w:t>{text}</w:t></w:r></w:p>"


def test_markdown_keeps_its_headings_and_lines():
    text = "# Guide\nIntro.\n\n```\n# no heading\n```\n\n## Install\n\nRun make.\n\nUse\n---\nAsk.\n"
    found, problem = read_sections("a.md", text.encode())
    assert problem is None
    assert found == [
        Section("Guide", "Intro.\n\n```\n# no heading\n```", line=2),
        Section("Guide > Install", "Run make.", line=10),
        Section("Guide > Use", "Ask.", line=14),
    ]


def test_a_page_keeps_headings_with_their_anchors_and_drops_the_furniture():
    body = "<h1>Keys</h1><p>All about the keys of this house and who has them.</p>"
    body += '<section id="lost"><h2>Lost keys<a class="headerlink" href="#lost">¶</a></h2>'
    body += "<p>The tenant pays forty euros for one.</p></section>"
    page = f"<html><title>House</title><body><nav><a href=/>Home</a></nav><main>{body}</main></body></html>"
    found, problem = read_sections("a.html", page.encode())
    assert problem is None
    assert found[-1] == Section("Keys > Lost keys", "The tenant pays forty euros for one.", "#lost")
    assert "Home" not in " ".join(section.text for section in found)


def test_code_is_cut_at_its_definitions():
    found, _ = read_sections(
        "a.py", b"import os\n\nclass A:\n    def f(self):\n        return 1\n\ndef g():\n    pass\n"
    )
    assert [(s.heading, s.line) for s in found] == [
        ("", 1),
        ("class A", 3),
        ("class A > def f(self)", 4),
        ("def g()", 7),
    ]


def test_rows_of_tables_and_json_bear_their_names():
    assert read_sections("a.csv", b"name,price\npear,3\n")[0][1] == Section("", "name: pear\nprice: 3", "row 2")
    assert read_sections("a.json", json.dumps({"pear": {"price": 3}}).encode())[0] == [Section("pear", "price: 3")]
    assert read_sections("a.jsonl", b'{"a": 1}\nbroken {\n')[0] == [
        Section("", "a: 1", line=1),
        Section("", "broken {", line=2),
    ]


def test_office_files_are_read_with_their_places():
    text = (
        paragraph("Rules", "Heading1")
        + paragraph("No dogs.")
        + paragraph("Fines", "Heading2")
        + paragraph("Ten euros.")
    )
    found, problem = read_sections(
        "a.docx", zipped(word__document=f"<w:document {W}><w:body>{text}</w:body></w:document>")
    )
    assert problem is None
    assert found == [Section("Rules", "No dogs.", "paragraph 2"), Section("Rules > Fines", "Ten euros.", "paragraph 4")]
    slide = f"<s {A}><a:p><a:r><a:t>Plan</a:t></a:r></a:p><a:p><a:r><a:t>Ship it.</a:t></a:r></a:p></s>"
    assert read_sections("a.pptx", zipped(ppt__slides__slide2=slide))[0] == [
        Section("Plan", "Plan\nShip it.", "slide 2")
    ]
    rows = '<row r="1"><c r="A1" t="s"><v>0</v></c></row><row r="2"><c r="A2"><v>3</v></c></row>'
    book = zipped(
        xl__workbook=f'<workbook {S} {R}><sheets><sheet name="Fruit" r:id="x"/></sheets></workbook>',
        xl__rels__workbook=f'<R xmlns="{LINKS}"><Relationship Id="x" Target="worksheets/s.xml"/></R>',
        xl__worksheets__s=f"<worksheet {S}><sheetData>{rows}</sheetData></worksheet>",
        xl__sharedStrings=f"<sst {S}><si><t>price</t></si></sst>",
    )
    assert read_sections("a.xlsx", book)[0][1] == Section("Fruit", "price: 3", "sheet Fruit, row 2")


def test_a_pdf_is_read_page_by_page():
    pytest.importorskip("pypdf")
    font = "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
    objects = ["<</Type/Catalog/Pages 2 0 R>>", "<</Type/Pages/Kids[3 0 R 5 0 R]/Count 2>>"]
    for number, text in ((4, "No dogs."), (6, "Ten euros.")):
        objects.append(f"<</Type/Page/Parent 2 0 R/Contents {number} 0 R/Resources<</Font<</F {font}>>>>>>")
        stream = f"BT /F 12 Tf 72 700 Td ({text}) Tj ET"
        objects.append(f"<</Length {len(stream)}>>\nstream\n{stream}\nendstream")
    body, starts = "%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        starts.append(len(body))
        body += f"{number} 0 obj\n{one}\nendobj\n"
    table = "".join(f"{start:010} 00000 n \n" for start in starts)
    end = f"xref\n0 7\n0000000000 65535 f \n{table}trailer\n<</Size 7/Root 1 0 R>>\nstartxref\n{len(body)}\n%%EOF"
    found, problem = read_sections("rules.pdf", (body + end).encode())
    assert problem is None
    assert found == [Section("", "No dogs.", "page 1"), Section("", "Ten euros.", "page 2")]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("bomb.docx", zipped(word__document=" " * 40_000_000), "too large"),
        ("entities.docx", zipped(word__document='<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'), "too large"),
        ("broken.docx", b"PK\x03\x04 no archive", "damaged"),
        ("half.pptx", zipped(ppt__slides__slide1="<p><t>not closed"), "damaged"),
        ("other.xlsx", zipped(word__document="<a/>"), "damaged"),
        ("locked.docx", b"\xd0\xcf\x11\xe0" + bytes(100), "encrypted"),
        ("broken.pdf", b"%PDF-1.7 nothing more", "pdf"),
        ("deep.json", b"[" * 200_000, "damaged"),
        ("picture.png", b"\x89PNG" + bytes(50), "kind not read"),
    ],
)
def test_what_cannot_be_read_is_told_and_not_raised(name, content, reason):
    found, problem = read_sections(name, content)
    assert found == [] and problem is not None and problem[0] == reason


def test_passages_end_where_the_text_does_and_know_their_line():
    text = "\n\n".join(f"Paragraph {number} says a little." for number in range(100))
    found = list(passages_of([Section("A", text, line=5)], most=200))
    assert "".join(one.text for one in found).replace("\n", "") == text.replace("\n", "")
    assert all(len(one.text) <= 200 and one.text.endswith(".") for one in found)
    lines = text.split("\n")
    for one in found:
        assert lines[int(one.place.removeprefix("line ")) - 5] == one.text.split("\n")[0]


def test_the_pages_of_a_crawl_are_read_and_its_other_records_counted(tmp_path):
    page = (
        b"<html><title>Keys</title><h1 id=lost>Lost keys</h1><p>Who loses a key pays forty euros, says the house.</p>"
    )
    records = [warc_record("http://a/keys.html", "2024", "text/html", page)]
    records += [warc_record("http://a/x.css", "2024", "text/css", b"a { color: red }")]
    (tmp_path / "house.warc.gz").write_bytes(b"".join(records))
    found = index_folder(tmp_path, tmp_path.parent / "house.index")
    assert found.left_out == {"not a page, in a crawl": ["house.warc.gz: 1 records"]}
    [hit] = Index(tmp_path.parent / "house.index").search("forty euros", limit=1)
    assert hit.file == "house.warc.gz" and hit.place.startswith("http://a/keys.html")
