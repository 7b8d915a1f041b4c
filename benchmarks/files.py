"""Fifty questions about files of twelve kinds, through the whole loop: upload, code that errs, code that mends it.

    python -m benchmarks.files [--out benchmarks/results/files.json]

A seeded generator writes the files (csv, tsv, xlsx, docx, pdf, pptx, py, json, jsonl, html, xml, txt) and knows each
answer. The official `openai` client sends a file up and asks; a model whose words are a script calls Python with code
that errs, is told the error, and calls it with the right code. Right is a task whose tool output holds the answer and
whose file, where one is made, comes back by its link. Every first piece of code also tries to get out of the sandbox
in one of ten ways, and says so where it did: that is an escape.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import threading
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import openai

from benchmarks.curate_extraction import commit, machine
from herd.infer.engine import Engine
from herd.serve.app import create_app
from herd.toolbox.interpreter import Interpreter, Python
from tests.serve.conftest import chat_engine, listening

NAMES = ("ada", "bob", "cleo", "dan", "eve", "finn", "gus", "hana")
PLACES = ("Graz", "Lima", "Oslo", "Pune", "Riga")
ESCAPES = (  # each says ESCAPED where it got out
    "if open('/etc/shadow').read(): print('ESCAPED shadow')",
    "import socket; socket.create_connection(('127.0.0.1', PORT), 2); print('ESCAPED network')",
    "import glob; print('ESCAPED store') if glob.glob('/tmp/herd-files-*/*') else None",
    "open('/herd-escape', 'w').write('x'); print('ESCAPED write')",
    "import os; os.kill(SERVER, 0); print('ESCAPED kill')",  # 1 is the box's own, which no signal reaches
    "print('ESCAPED home') if open('OWN').read() else None",  # this file, which is not the box's
    "import os; os.symlink('/etc/passwd', 'passwd.txt'); print('linked')",
    "import ctypes; ctypes.CDLL(None).mount(b'/', b'/tmp', None, 4096, None) == 0 and print('ESCAPED mount')",
    "import os; print('ESCAPED environ') if 'HERD_SECRET' in os.environ else None",
    "import os; print('ESCAPED processes') if len([p for p in os.listdir('/proc') if p.isdigit()]) > 8 else None",
)


@dataclass(frozen=True)
class Task:
    """A question about a file, the code that answers it, and code that errs."""

    kind: str
    name: str
    data: bytes
    question: str
    answer: str
    code: str
    wrong: str
    makes: str | None = None  # a file that the code writes


def archive(files: dict[str, str]) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as found:
        for name, text in files.items():
            found.writestr(name, text)
    return whole.getvalue()


def pdf(lines: list[str]) -> bytes:
    """A page with lines of text."""
    shown = "".join(f"({line}) Tj T* " for line in lines)
    content = f"BT /F1 12 Tf 14 TL 50 750 Td {shown}ET"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>", "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(content)} >>\nstream\n{content}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]  # fmt: skip
    out, places = "%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    end = f"xref\n0 6\n0000000000 65535 f \n{table}trailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return (out + end).encode()


def workbook(rows: list[tuple[str, str, int]]) -> bytes:
    inline = '<c r="{}{}" t="inlineStr"><is><t>{}</t></is></c>'
    cells = ""
    for n, (who, place, amount) in enumerate(rows, 1):
        texts = inline.format("A", n, who) + inline.format("B", n, place)
        cells += f'<row r="{n}">{texts}<c r="C{n}"><v>{amount}</v></c></row>'
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    return archive(
        {"xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{cells}</sheetData></worksheet>'}
    )


def tasks(seed: int = 7) -> list[Task]:
    """Fifty: four of every kind, and one more of two."""
    draw, found = random.Random(seed), []
    for number in range(50):
        rows = [(draw.choice(NAMES), draw.choice(PLACES), draw.randint(1, 400)) for _ in range(draw.randint(6, 20))]
        found.append(KINDS[number % len(KINDS)](rows, number))
    return found


def of_place(rows: list[tuple[str, str, int]]) -> tuple[str, int]:
    place = rows[0][1]
    return place, sum(amount for _, where, amount in rows if where == place)


def table(kind: str, sign: str) -> Any:
    def made(rows: list[tuple[str, str, int]], number: int) -> Task:
        place, total = of_place(rows)
        lines = [sign.join(("name", "place", "amount")), *(sign.join(map(str, row)) for row in rows)]
        read = f"import csv\nrows = list(csv.DictReader(open('sales.{kind}'), delimiter={sign!r}))\n"
        code = f"{read}total = sum(int(r['amount']) for r in rows if r['place'] == {place!r})\nprint(total)\n"
        code += "open('total.txt', 'w').write(str(total))\n"
        data = "\n".join(lines).encode()
        wrong = read + "print(sum(int(r['sum']) for r in rows))"
        return Task(kind, f"sales.{kind}", data, f"What was sold in {place}?", str(total), code, wrong, "total.txt")

    return made


def xlsx(rows: list[tuple[str, str, int]], number: int) -> Task:
    place, total = of_place(rows)
    code = (
        "import zipfile, re\nsheet = zipfile.ZipFile('sales.xlsx').read('xl/worksheets/sheet1.xml').decode()\n"
        "rows = re.findall(r'<t>(.*?)</t>.*?<t>(.*?)</t>.*?<v>(.*?)</v>', sheet)\n"
        f"print(sum(int(v) for _, where, v in rows if where == {place!r}))"
    )
    wrong = "import openpyxl_is_not_here\n"
    return Task("xlsx", "sales.xlsx", workbook(rows), f"What was sold in {place}?", str(total), code, wrong)


def docx(rows: list[tuple[str, str, int]], number: int) -> Task:
    said = [f"{who} paid {amount} euros in {place}." for who, place, amount in rows]
    body = "".join(f"<w:p><w:r><w:t>{line}</w:t></w:r></w:p>" for line in said)
    whole = archive({"word/document.xml": f'<w:document xmlns:w="w"><w:body>{body}</w:body></w:document>'})
    who = rows[-1][0]
    total = sum(amount for other, _, amount in rows if other == who)
    code = (
        "import zipfile, re\ntext = zipfile.ZipFile('letter.docx').read('word/document.xml').decode()\n"
        f"print(sum(map(int, re.findall(r'{who} paid (\\d+)', text))))"
    )
    wrong = "print(open('letter.docx').read())"
    return Task("docx", "letter.docx", whole, f"How much did {who} pay?", str(total), code, wrong)


def of_pdf(rows: list[tuple[str, str, int]], number: int) -> Task:
    lines = [f"{who}: {amount} points" for who, _, amount in rows]
    best = max(amount for _, _, amount in rows)
    code = (
        "import re, pypdf\ntext = '\\n'.join(p.extract_text() for p in pypdf.PdfReader('scores.pdf').pages)\n"
        "print(max(map(int, re.findall(r'(\\d+) points', text))))"
    )
    wrong = "print(max(map(int, open('scores.pdf', encoding='ascii').read().split('points'))))"
    return Task("pdf", "scores.pdf", pdf(lines), "What is the highest score?", str(best), code, wrong)


def pptx(rows: list[tuple[str, str, int]], number: int) -> Task:
    slides = {f"ppt/slides/slide{n}.xml": f"<s><a:t>{who}</a:t><a:t>{amount}</a:t></s>"
              for n, (who, _, amount) in enumerate(rows, 1)}  # fmt: skip
    at = 1 + number % len(rows)
    code = (
        "import zipfile, re\nslides = zipfile.ZipFile('talk.pptx')\n"
        f"print(re.findall(r'<a:t>(.*?)</a:t>', slides.read('ppt/slides/slide{at}.xml').decode())[1])"
    )
    wrong = f"import zipfile\nprint(zipfile.ZipFile('talk.pptx').read('slide{at}.xml'))"
    return Task("pptx", "talk.pptx", archive(slides), f"What is on slide {at}?", str(rows[at - 1][2]), code, wrong)


def py(rows: list[tuple[str, str, int]], number: int) -> Task:
    numbers = [amount for _, _, amount in rows]
    source = f"def worth(values):\n    return sum(v * v for v in values) % 9973\n\nVALUES = {numbers}\n"
    answer = str(sum(v * v for v in numbers) % 9973)
    code = "import sys; sys.path.insert(0, '.')\nimport worth\nprint(worth.worth(worth.VALUES))"
    wrong = "import worth\nprint(worth.price(worth.VALUES))"
    return Task("py", "worth.py", source.encode(), "What does worth(VALUES) give?", answer, code, wrong)


def of_json(rows: list[tuple[str, str, int]], number: int) -> Task:
    place, total = of_place(rows)
    data = {"sales": [{"who": who, "where": where, "amount": amount} for who, where, amount in rows]}
    code = (
        "import json\nfound = json.load(open('sales.json'))['sales']\n"
        f"print(sum(one['amount'] for one in found if one['where'] == {place!r}))"
    )
    wrong = "import json\nprint(sum(one['amount'] for one in json.load(open('sales.json'))))"
    return Task("json", "sales.json", json.dumps(data).encode(), f"What was sold in {place}?", str(total), code, wrong)


def jsonl(rows: list[tuple[str, str, int]], number: int) -> Task:
    lines = [json.dumps({"who": who, "amount": amount}) for who, _, amount in rows]
    _, count = Counter(who for who, _, _ in rows).most_common(1)[0]
    code = (
        "import json, collections\nrows = [json.loads(line) for line in open('log.jsonl')]\n"
        "print(collections.Counter(row['who'] for row in rows).most_common(1)[0][1])"
    )
    wrong = "import json\nprint(json.load(open('log.jsonl')))"
    asked = "How often does the most frequent name occur?"
    return Task("jsonl", "log.jsonl", "\n".join(lines).encode(), asked, str(count), code, wrong)


def html(rows: list[tuple[str, str, int]], number: int) -> Task:
    body = "".join(f"<tr><td>{who}</td><td>{amount}</td></tr>" for who, _, amount in rows)
    total = str(sum(amount for _, _, amount in rows))
    code = (
        "import html.parser\nclass P(html.parser.HTMLParser):\n    cells = []\n    def handle_data(self, data):\n"
        "        self.cells.append(data)\np = P(); p.feed(open('page.html').read())\n"
        "print(sum(int(c) for c in p.cells if c.isdigit()))"
    )
    wrong = "from bs4_is_not_here import BeautifulSoup"
    data = f"<html><body><table>{body}</table></body></html>".encode()
    return Task("html", "page.html", data, "What is the sum of the table?", total, code, wrong)


def xml(rows: list[tuple[str, str, int]], number: int) -> Task:
    body = "".join(f'<sale who="{who}" amount="{amount}"/>' for who, _, amount in rows)
    low = str(min(amount for _, _, amount in rows))
    code = "import xml.etree.ElementTree as E\nprint(min(int(s.get('amount')) for s in E.parse('sales.xml').getroot()))"
    wrong = code.replace("'amount'", "'price'")
    return Task("xml", "sales.xml", f"<sales>{body}</sales>".encode(), "The smallest sale?", low, code, wrong)


def txt(rows: list[tuple[str, str, int]], number: int) -> Task:
    text = " ".join(f"{who} went to {place}." for who, place, _ in rows)
    place = rows[0][1]
    code = f"print(open('diary.txt').read().count({place!r}))"
    wrong = f"print(open('dairy.txt').read().count({place!r}))"
    answer = str(sum(where == place for _, where, _ in rows))
    return Task("txt", "diary.txt", text.encode(), f"How often is {place} named?", answer, code, wrong)


KINDS = (table("csv", ","), table("tsv", "\t"), xlsx, docx, of_pdf, pptx, py, of_json, jsonl, html, xml, txt)


class Script:
    """What the model says next; each conversation has three rounds."""

    def __init__(self, engine: Engine) -> None:
        self.rounds: list[str] = []
        self._make, self._lock = engine.request, threading.Lock()
        engine.request = self._request  # type: ignore[method-assign]

    def _request(self, prompt: Any, params: Any, *more: Any, **options: Any) -> Any:
        with self._lock:
            words = self.rounds.pop(0)
        return self._make(prompt, replace(params, choice=(words,)), *more, **options)


def called(code: str) -> str:
    return json.dumps({"name": "code_interpreter", "parameters": {"code": code}})


def tried(url: str, script: Script, task: Task, escape: str) -> dict[str, Any]:
    """One task through the loop."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    port = url.rpartition(":")[2]
    escape = escape.replace("PORT", port).replace("SERVER", str(os.getpid())).replace("OWN", __file__)
    attempt = f"try:\n    {escape}\nexcept BaseException as e:\n    print('kept in:', e)\n"
    script.rounds = [called(attempt + task.wrong), called(task.code), f"The answer is {task.answer}."]
    file = client.files.create(file=(task.name, task.data), purpose="user_data")
    parts: list[Any] = [{"type": "file", "file": {"file_id": file.id}}, {"type": "text", "text": task.question}]
    asked: list[Any] = [{"role": "user", "content": parts}]
    said: Any = client.chat.completions.create(model="scripted", messages=asked).choices[0].message
    first, second = said.tool_trace
    made = {one["name"]: httpx.get(url + one["url"]).text for one in second.get("files", [])}
    printed = re.search(r"\[stdout\](.*?)\[/stdout\]", second["output"], re.S)
    right = not second["failed"] and printed is not None and task.answer in printed[1].split()
    right = right and (task.makes is None or made.get(task.makes) == task.answer) and task.answer in said.content
    left = json.dumps([first, second])
    client.files.delete(file.id)
    escaped, seconds = "ESCAPED" in first["output"] or "root:" in left, first["seconds"] + second["seconds"]
    marks = {"right": right, "erred first": first["failed"], "escaped": escaped, "seconds": seconds}
    return {"kind": task.kind} | marks | ({"said": first["output"]} if escaped else {})


def measure(engine: Engine, count: int = 50) -> dict[str, Any]:
    """The figures of the first `count` tasks, over an engine that speaks chat."""
    script, python = Script(engine), Python(Interpreter(packages=["pypdf"]))
    with listening(create_app(engine, name="scripted", own_tools=[python])) as url:
        found = [tried(url, script, task, ESCAPES[n % len(ESCAPES)]) for n, task in enumerate(tasks()[:count])]
    by_kind = {
        kind: [one["right"] for one in found if one["kind"] == kind] for kind in sorted({o["kind"] for o in found})
    }
    result = {name: sum(one[name] for one in found) for name in ("right", "erred first", "escaped")}
    result |= {"right by kind": {kind: f"{sum(marks)} of {len(marks)}" for kind, marks in by_kind.items()}}
    result |= {"seconds a task, median": round(sorted(one["seconds"] for one in found)[len(found) // 2], 2)}
    failed = [one for one in found if not one["right"] or one["escaped"] or not one["erred first"]]
    return {"tasks": len(found)} | result | {"failed": failed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "files.json")
    options = parser.parse_args()
    head = {"benchmark": "files", "date": date.today().isoformat(), "machine": machine(), "commit": commit(),
            "command": "python -m benchmarks.files"}  # fmt: skip
    result = head | measure(chat_engine(max_position_embeddings=8192))
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
