"""Kinds of pages whose text was taken for furniture, or whose furniture for text."""

import json.encoder
import pydoc

from herd.curate.extract.html import html_to_text

LONG = "The council voted on Tuesday to close the old bridge for repairs that will last until spring."
FOOT = "<footer><p>© 2020 The Site. All rights reserved.</p></footer>"


def test_sections_of_documentation_are_not_judged_by_ids_made_of_their_headings():
    names = ("Comments", "Search", "Related work", "Cookies")
    sections = "".join(
        f"<section id='{name.lower().replace(' ', '-')}'><h2>{name}</h2><p>What is said of it is true.</p></section>"
        for name in names
    )
    text = html_to_text(f"<html><body><main><h1>API</h1><p>{LONG} {LONG}</p>{sections}</main>{FOOT}</body></html>")
    assert all(name in text for name in names) and text.count("is true.") == 4
    readers = "<section id=comments><h2>Comments</h2><p>I always said that it would fall down one day.</p></section>"
    page = f"<html><body><article><h1>B</h1><p>{LONG} {LONG}</p></article>{readers}</body></html>"
    assert "I always said" not in html_to_text(page)


def test_a_short_first_paragraph_of_code_is_what_a_page_is_about():
    body = f"<p>{LONG} {LONG}</p>" * 3
    about = "<table><tr><td>bees.encoder</td></tr></table><p><span class=code>Implementation of Encoder</span></p>"
    assert "Implementation of Encoder" in html_to_text(about + body)
    assert "Jane Doe" not in html_to_text(f"<p>By Jane Doe</p>{body}")
    html = pydoc.HTMLDoc()
    assert "Implementation of JSONEncoder" in html_to_text(html.page("json", html.document(json.encoder)))


def test_sentences_about_copyright_stay_and_notes_of_rights_go():
    page = f"<main><p>{LONG}</p><p>Copyright law does not cover lamps.</p><p>{LONG}</p><p>Copyright 2020 Some Firm</p>"
    text = html_to_text(page)
    assert "does not cover lamps" in text and "Some Firm" not in text


def test_a_request_for_consent_that_is_longer_than_the_article_is_not_the_page():
    asks = "<p>We and our 834 partners store and access information on a device, such as cookies and personal data.</p>"
    asks += (
        "<p>You may object where legitimate interest is used, at any time on the privacy policy page of our site.</p>"
    )
    snow = "<article><h1>Snow</h1><p>It snowed in the night, and the school stays closed today.</p></article>"
    text = html_to_text(f"<html><body><div class=overlay><div class=text>{asks}</div></div>{snow}{FOOT}</body></html>")
    assert "It snowed" in text and "834 partners" not in text
    about = f"<main class=content><h1>Cookies and you</h1>{asks}<p>{LONG}</p></main>"
    assert "834 partners" in html_to_text(f"<html><body>{about}{FOOT}</body></html>")


def test_questions_and_panels_of_an_accordion_stay():
    items = "".join(
        f"<div class=item><h3><button aria-expanded=false>How do I cancel {what}?</button></h3><div class=panel hidden>"
        f"<p>Write to us about {what} a month before the end of the year, by letter or by mail.</p></div></div>"
        for what in ("a paper", "a ticket", "a room")
    )
    text = html_to_text(
        f"<html><body><main><h1>Help</h1>{items}<button>Send it now</button></main>{FOOT}</body></html>"
    )
    assert text.count("How do I cancel") == text.count("a month before") == 3 and "Send it" not in text
