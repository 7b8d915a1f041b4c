"""Feeds, LaTeX, Markdown and PDF become the text that they hold."""

import zlib

from herd.curate.extract.html import extract

FEED = """<?xml version="1.0"?><rss><channel><title>The &amp; Garden</title><link>http://a</link>
<item><title>Bees</title><description>&lt;p&gt;Bees fly &lt;b&gt;early&lt;/b&gt;.&lt;/p&gt;</description>
<pubDate>Mon, 01 Jan 2024</pubDate></item>
<item><title><![CDATA[Wasps & more]]></title><description>short</description>
<content:encoded><![CDATA[<p>Wasps sleep.</p><pre>x = 1
  y</pre>]]></content:encoded></item></channel></rss>"""


def test_a_feed_is_the_text_of_its_entries():
    found = extract(FEED.encode(), kind="feed")
    assert found.title == "The & Garden"
    assert found.text == "Bees\n\nBees fly early.\n\nWasps & more\n\nWasps sleep.\n\nx = 1\n  y"
    assert found.code_lines == [8, 10]


def test_atom_with_markup_of_its_own_is_read():
    entry = "<entry><title>A</title><content type='xhtml'><div><p>One.</p><p>Two.</p></div></content></entry>"
    assert extract(f"<feed><title>F</title>{entry}</feed>", kind="feed").text == "A\n\nOne.\n\nTwo."


LATEX = r"""\documentclass{article}
\usepackage{amsmath} % a comment
\title{On \emph{Bees}}
\begin{document}
\maketitle
\section{Flight}\label{sec:f}
Bees fly at $v = 3\,\mathrm{m/s}$~\cite{smith} in 50\% of cases, \textbf{always} early.
% not this
\begin{equation}
E = mc^2 \label{eq}
\end{equation}
\begin{itemize}
\item one
\item two
\end{itemize}
\begin{verbatim}
for bee in hive:  # 100%
    fly(bee)
\end{verbatim}
\end{document}
"""


def test_latex_keeps_prose_formulas_and_code_and_loses_its_commands():
    found = extract(LATEX.encode(), kind="latex")
    assert found.title == "On Bees"
    assert "Bees fly at $v = 3\\,\\mathrm{m/s}$ in 50% of cases, always early." in found.text
    assert "\\begin{equation}\nE = mc^2" in found.text and "usepackage" not in found.text
    lines = found.text.split("\n")
    start, end = found.code_lines
    assert lines[start:end] == ["for bee in hive:  # 100%", "    fly(bee)"]
    assert "not this" not in found.text and "sec:f" not in found.text and "Flight" in lines


def test_markdown_stays_and_its_code_is_known():
    source = "---\ntitle: 'Bees'\n---\n# Bees\n\nThey fly.\n\n```python\n# x\ny = 1\n```\n"
    found = extract(source, kind="markdown")
    assert found.title == "Bees" and found.text.startswith("# Bees\n\nThey fly.")
    assert found.text.split("\n")[found.code_lines[0] : found.code_lines[1]] == ["```python", "# x", "y = 1", "```"]


def pdf(text):
    stream = zlib.compress(f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode())
    parts = [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>"]
    parts += [b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>"]
    parts += [b"<</Length %d/Filter/FlateDecode>>stream\n" % len(stream) + stream + b"\nendstream"]
    parts += [b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"]
    body = b"".join(b"%d 0 obj" % i + part + b"endobj\n" for i, part in enumerate(parts, 1))
    return b"%PDF-1.4\n" + body + b"trailer<</Root 1 0 R/Size 6>>\nstartxref\n0\n%%EOF"


def test_a_pdf_gives_its_text_and_a_damaged_one_a_reason():
    assert extract(pdf("Bees fly early."), kind="pdf").text == "Bees fly early."
    assert extract(b"%PDF-1.4 broken", kind="pdf").problem[0] == "pdf"
