"""What a page writes exactly comes out exactly: code in all its frames, formulas once, tables with their spans."""

import pytest

from herd.curate.extract.html import html_to_text

SAID = "<p>The bees of the northern garden fly earlier in the year than anyone had written down before.</p>"


def shown(inner):
    return html_to_text(f"<article>{SAID * 3}{inner}{SAID * 2}</article>")


CODE = "def bee(n):\n    # source: my own notes\n    if n:\n\n        return <Hive on />\n    print"
LINES = [line.replace("<", "&lt;") for line in CODE.split("\n")]
FRAMES = {
    "elements in pre": "<pre><code>" + "".join(f"<div>{line}</div>" for line in LINES) + "</code></pre>",
    "elements with breaks in pre": "<pre>\n" + "\n".join(f"<div>{line}<br></div>" for line in LINES) + "\n</pre>",
    "blocks by style": "<pre>" + "".join(f"<span style='display:block'>{line}</span>" for line in LINES) + "</pre>",
    "Pygments": "<div class=highlight><table class=highlighttable><tr><td class=linenos><div class=linenodiv><pre>"
    + "\n".join(f"<span class=normal>{n}</span>" for n in range(1, 7))
    + "</pre></div></td><td class=code><div><pre><span></span>"
    + "\n".join(LINES)
    + "\n</pre></div></td></tr></table></div>",
    "a numbered row a line": "<table class=code>"
    + "".join(f"<tr><th><a href='#{n}'>{n}</a></th><td>{line}</td></tr>" for n, line in enumerate(LINES))
    + "</table>",
    "a file on a forge": "<table>"
    + "".join(
        f"<tr><td class=blob-num data-line-number={n}></td><td class='blob-code'>{line or chr(10)}</td></tr>"
        for n, line in enumerate(LINES)
    )
    + "</table>",
    "a code element a line": "<div class=syntaxhighlighter>"
    + "".join(f"<div><code>{line.replace('    ', '&nbsp;' * 4)}</code></div>" for line in LINES)
    + "</div>",
    "an editor": "<div class=CodeMirror-code>"
    + "".join(f"<div><pre class='CodeMirror-line'>{line}</pre></div>" for line in LINES)
    + "</div>",
    "a style": f"<div style='font-family: monospace; white-space: pre'>{chr(10).join(LINES)}</div>",
    "a gutter beside": "<div class=gutter><pre>1\n2\n3</pre></div><pre>" + "\n".join(LINES) + "</pre>",
}


@pytest.mark.parametrize("frame", FRAMES)
def test_code_comes_out_as_it_was_written(frame):
    assert f"\n\n{CODE}\n\n" in shown(FRAMES[frame])


@pytest.mark.parametrize(
    ("inner", "wanted"),
    [
        ("about 10<sup>6</sup> bees", "about 10^6 bees"),
        ("3 cm<sup>-1</sup> and 2<sup>n+1</sup>", "3 cm^-1 and 2^{n+1}"),
        ("the 1<sup>st</sup> hive<sup>2</sup>, H<sub>2</sub>O", "the 1st hive2, H2O"),
        ("in 1998<sup><a href='#n3'>3</a></sup>", "in 1998[3]"),
        ("Bienen&shy;stock&shy;haus and honey&#8203;comb", "Bienenstockhaus and honeycomb"),
        ("<ruby>蜂<rp>(</rp><rt>hachi</rt><rp>)</rp></ruby>の巣", "蜂(hachi)の巣"),
        ("<ruby>蜂<rt>hachi</rt></ruby>の巣", "蜂(hachi)の巣"),
        ("salt &amp;amp; honey&amp;nbsp;too, <code>&amp;amp;</code>", "salt & honey too, &amp;"),
    ],
)
def test_small_marks_keep_what_they_mean(inner, wanted):
    assert f"It is {wanted}." in shown(f"<p>It is {inner}.</p>")


DRAWN = "<nobr><span class=math>x2</span></nobr>"
ASSISTED = "<span class=MJX_Assistive_MathML><math><msup><mi>x</mi><mn>2</mn></msup></math></span>"


@pytest.mark.parametrize(
    "formula",
    [
        "<span style='display:none'><math alttext='x^2'><mi>x</mi></math></span>",
        f"<span class=MathJax_Preview></span><span class=MathJax data-mathml='&lt;math&gt;'>{DRAWN}{ASSISTED}</span>"
        "<script type='math/tex'>x^2</script>",
        "<img src='data:image/gif;base64,R0' class=lazy><noscript><img src='f.png' class=latex alt='x^2'></noscript>",
        "<img alt='x^2' class=latex src=f.png><noscript><img src='f.png' class=latex alt='x^2'></noscript>",
        "<img src='https://latex.codecogs.com/gif.latex?%5Cinline%20x%5E2'>",
        "<img src='/cgi-bin/mimetex.cgi?x^2' alt='formula'>",
        "<img src='https://s0.wp.com/latex.php?latex=x%5E2&amp;bg=ffffff&amp;s=0'>",
    ],
)
def test_a_formula_comes_out_once_wherever_its_source_stands(formula):
    text = shown(f"<p>It grows as {formula} does.</p>")
    assert "It grows as $x^2$ does." in text and text.count("x") == 1


def test_cells_that_span_rows_stand_in_each_and_lists_stay_in_their_cell():
    row = "<tr><td rowspan=2>north</td><td><ul><li>wax</li><li>honey</li></ul></td></tr><tr><td>pollen</td></tr>"
    text = shown(f"<table><caption>What the hives gave</caption><tr><th>hive</th><th>gift</th></tr>{row}</table>")
    assert "What the hives gave\nhive\tgift\nnorth\twax honey\nnorth\tpollen\n" in text


def test_a_table_whose_first_column_is_links_stays():
    rows = "".join(f"<tr><td><a href='/{n}'>hive number {n}</a></td><td>{n} kg</td></tr>" for n in range(4))
    assert "hive number 2\t2 kg\n" in shown(f"<table>{rows}</table>")
