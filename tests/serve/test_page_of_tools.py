"""The chat page shows what tools did and which passage says what, in a real browser."""

from __future__ import annotations

import shutil

import pytest

from herd.knowledge.build import index_folder
from herd.knowledge.grounding import Library
from herd.knowledge.index import Index
from herd.serve.app import create_app
from herd.toolbox.errand import function
from tests.serve.conftest import chat_engine, listening
from tests.serve.scripts import Script, scripted

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium here")]
CALL = '{"name": "lookup", "parameters": {"word": "<b>key</b>"}}'
ANSWER = "Who loses a key pays **forty** euros. Dogs fly on Sundays."


class Lookup:
    function = function("lookup", "Looks a word up.", word="the word")

    async def call(self, arguments, errand):
        errand.made({"dot.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"})
        return "<script>window.hacked = 1</script> found"


def test_a_trace_unfolds_and_a_citation_opens_its_passage(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/rules.md").write_text("# Keys\n\nWho loses a key pays forty euros.\n")
    index_folder(tmp_path / "notes", tmp_path / "index")
    library = Library(Index(tmp_path / "index"))
    with (
        scripted(CALL, ANSWER, own_tools=[Lookup()], library=library, from_library=True) as (url, _),
        playwright.sync_playwright() as started,
    ):
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page, faults = browser.new_page(viewport={"width": 390, "height": 844}), []
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.goto(url)
        page.wait_for_selector("#box[placeholder*=tiny]")
        page.fill("#box", "Who pays for a lost key?")
        page.keyboard.press("Enter")
        page.wait_for_selector(".cites")
        page.click(".trace summary")
        assert "window.hacked" in page.locator(".trace pre").last.inner_text()
        page.wait_for_selector(".files img[src^=blob]")
        assert page.locator(".files img").get_attribute("alt") == "dot.svg"
        assert page.locator(".said button.ref").inner_text() == "[1]"
        assert page.locator(".said span.ref").count() == 1
        page.click(".cites button")
        assert page.locator(".passage mark").inner_text() == "Who loses a key pays forty euros."
        page.reload()
        page.click("#menu")
        page.click("#list .open")
        assert page.locator(".cites button").count() == 1 and page.locator(".trace").count() == 1
        assert page.evaluate("window.hacked") is None and not faults
        width = "document.documentElement.scrollWidth"
        assert page.evaluate(width) <= 390
        browser.close()


def test_files_go_up_and_two_models_answer_side_by_side():
    first, second = chat_engine(max_position_embeddings=4096), chat_engine(max_position_embeddings=4096)
    scripts = Script(first, ("One.", "Three.")), Script(second, ("Two.", "Four."))
    with (
        listening(create_app({"first": first, "second": second})) as url,
        playwright.sync_playwright() as started,
    ):
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page, faults = browser.new_page(viewport={"width": 390, "height": 844}), []
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        page.goto(url)
        page.get_by_label("beside").select_option("second")
        page.set_input_files("#files", {"name": "keys.txt", "mimeType": "text/plain", "buffer": b"Forty euros."})
        page.wait_for_selector("#attached >> text=12 bytes")
        for question in ("Who pays?", "And then?"):
            page.fill("#box", question)
            page.keyboard.press("Enter")
            page.wait_for_selector("#send[aria-label=Send]")
        assert page.locator(".pairs .said").all_inner_texts() == ["One.", "Two.", "Three.", "Four."]
        assert page.get_by_role("group", name="second").count() == 2
        assert page.get_by_role("button", name="Save keys.txt").count() == 1
        assert all("Forty euros." in prompt for script in scripts for prompt in script.prompts)
        assert "One." in scripts[0].prompts[1] and "Two." in scripts[1].prompts[1]
        assert not faults and page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
