"""Text that a page does not show: it is taken where the page shows next to nothing else."""

import json

import pytest

from herd.curate.extract.html import html_to_text

SAID = [
    "The bees of the northern garden fly earlier in the year than anyone had written down.",
    "Nobody knows why, yet.",
]
SAID += ["A keeper counted them for nine springs, and wrote each number into a small green book that lay by the door."]
ARTICLE = {"title": "Bees", "blocks": [{"text": sentence} for sentence in SAID]}
STATE = {"props": {"pageProps": {"menu": ["Home", "News"], "article": ARTICLE}}}
LINKED = {"@type": "NewsArticle", "articleBody": "\n".join(SAID)}
MARKUP = "".join(f"<p>{sentence}</p>" for sentence in SAID)


@pytest.mark.parametrize(
    "held",
    [
        f"<noscript>{MARKUP}</noscript>",
        f"<script type='application/ld+json'>{json.dumps(LINKED)}</script>",
        f"<script id='__NEXT_DATA__' type='application/json'>{json.dumps(STATE)}</script>",
        f"<script>window.__INITIAL_STATE__ = {json.dumps(STATE)}; start()</script>",
        f"<script>var data = {json.dumps({'post': {'html': MARKUP}}).replace('</', '<' + chr(92) + '/')};</script>",
    ],
)
def test_what_only_scripts_and_readers_without_them_have_is_read(held):
    text = html_to_text(f"<html><body><div id=app>Loading</div>{held}</body></html>")
    assert text.replace("\n\n", "\n").split("\n")[0] == SAID[0] and SAID[2] in text and "Home" not in text


def test_what_a_page_shows_goes_before_what_it_holds():
    page = f"<body><article>{MARKUP * 2}</article><noscript>{MARKUP.replace('bees', 'wasps') * 3}</noscript></body>"
    assert "wasps" not in html_to_text(page)


@pytest.mark.parametrize("script", ["{" * 100_000, '{"a": [' * 5000, '{"a": "' + "x. " * 9, "[1, 2", "= {'a': 1}"])
def test_what_is_no_state_is_left_alone(script):
    page = f"<body><p>bee</p><script>window.state = {script}</script><script type='application/json'>{script}</script>"
    assert html_to_text(page) == "bee"
