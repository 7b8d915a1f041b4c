"""The chat page as a person uses it, in a real browser."""

from __future__ import annotations

import json
import shutil

import pytest

from herd.data.shapes import talks_of
from herd.data.talks import Notes
from herd.infer.engine import Engine
from herd.serve.app import create_app
from tests.infer.models import small_tokenizer, tiny_model
from tests.serve.conftest import chat_engine, listening

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium here")]

NASTY = (
    "<img src=x onerror=window.hacked=1> **bold** `<b>` [link](javascript:alert(1)) [fine](https://example.org/?a=1&b)"
)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, server):
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    faults = []
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.goto(server.url)
    page.wait_for_selector("text=tiny")
    page.click("#options")
    page.fill("#max_tokens", "12")
    page.fill("#seed", "1")
    page.keyboard.press("Escape")
    yield page
    assert not faults
    context.close()


def ask(page, text: str) -> None:
    page.fill("#box", text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#send[aria-label=Send]")


def scripted(page, text: str) -> None:
    """Let the next answers be this text instead of the tiny model's noise."""
    event = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))


def test_a_question_is_answered_kept_and_there_after_a_reload(page):
    ask(page, "Who are you?")
    assert page.locator(".turn").count() == 2
    assert "12 tokens" in page.locator(".stats").inner_text()
    said = page.locator(".turn.model .said").inner_text()
    page.reload()
    page.click("text=Who are you?")
    assert page.locator(".turn.model .said").inner_text() == said


def test_answers_are_made_again_and_questions_edited(page):
    ask(page, "First")
    ask(page, "Second")
    page.click("[data-do=again]")
    page.wait_for_selector("#send[aria-label=Send]")
    assert page.locator(".turn").count() == 4
    page.locator(".turn.user").first.hover()
    page.locator(".turn.user [data-do=edit]").first.click()
    page.fill("#editBox", "Changed")
    page.click("[data-do=edit-done]")
    page.wait_for_selector("#send[aria-label=Send]")
    assert [text.strip() for text in page.locator(".turn.user .said").all_inner_texts()] == ["Changed"]
    assert page.locator("#title").inner_text() == "Changed"


def test_escape_stops_an_answer_and_the_server_hears_of_it(page, server, monkeypatch):
    import time

    step = server.engine.step
    monkeypatch.setattr(server.engine, "step", lambda: (time.sleep(0.05), step()))
    page.evaluate("settings.max_tokens = 1000")
    page.fill("#box", "Go on and on")
    page.keyboard.press("Enter")
    page.wait_for_selector(".caret")
    page.keyboard.press("Escape")
    page.wait_for_selector("#send[aria-label=Send]")
    assert "stopped" in page.locator(".stats").inner_text()
    server.wait_until_idle()


def test_settings_and_the_system_prompt_reach_the_server(page):
    bodies = []
    page.on("request", lambda request: request.method == "POST" and bodies.append(request.post_data_json))
    page.click("#options")
    page.fill("#system", "Answer in rhymes.")
    page.evaluate("temperature.value = 1.25; temperature.oninput()")
    page.fill("#top_k", "7")
    page.keyboard.press("Escape")
    ask(page, "Hello")
    assert bodies[0]["messages"][0] == {"role": "system", "content": "Answer in rhymes."}
    assert (bodies[0]["temperature"], bodies[0]["top_k"], bodies[0]["seed"]) == (1.25, 7, 1)
    page.reload()
    page.click("#options")
    assert page.input_value("#system") == "" or page.evaluate("settings.system") == "Answer in rhymes."


def test_tables_keep_their_sides_and_arabic_begins_at_the_right(page):
    scripted(page, "مرحبا\n\n| animal | kg | x |\n|---|---:|:-:|\n| llama | 150 | y |")
    ask(page, "مرحبا")
    side = "node => getComputedStyle(node).textAlign"
    assert [cell.evaluate(side) for cell in page.locator(".turn.model td").all()] == ["left", "right", "center"]
    assert page.locator(".turn.user .said").evaluate("node => getComputedStyle(node).direction") == "rtl"
    assert page.locator(".turn.model p").evaluate("node => getComputedStyle(node).unicodeBidi") == "plaintext"


def test_a_fault_without_an_answer_offers_nothing_to_copy(page):
    message = {"error": {"message": "Try again in 3 s."}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, json=message))
    ask(page, "Hello")
    assert page.locator(".fault").inner_text() == "Try again in 3 s."
    assert page.locator(".turn.model [data-do=copy]").count() == 0
    assert page.locator(".turn.model [data-do=again]").count() == 1


def test_a_key_of_any_characters_opens_the_page(browser):
    with listening(create_app(chat_engine(), name="locked", key="ключ voilà")) as url:
        page = browser.new_context().new_page()
        page.goto(url)
        page.click("#options")
        page.fill("#key", "ключ voilà")
        page.keyboard.press("Escape")
        page.wait_for_selector("text=locked")
        page.context.close()


def test_what_a_model_writes_never_runs(page):
    scripted(page, NASTY)
    ask(page, NASTY)
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None
    assert page.locator(".turn img").count() == 0
    assert page.locator(".turn.model strong").inner_text() == "bold"
    assert [link.get_attribute("href") for link in page.locator(".turn.model a").all()] == [
        "https://example.org/?a=1&b"
    ]


@pytest.mark.parametrize("mark", [">", "- ", "1. ", "**", "[", "| ", "- > "])
def test_an_answer_of_twenty_thousand_marks_is_shown_and_the_page_opens_again(page, mark):
    scripted(page, mark * 20_000 + " end of it")
    ask(page, "Quote")
    assert "end of it" in page.locator(".turn.model .said").inner_text()
    page.reload()
    page.click("text=Quote")
    assert "end of it" in page.locator(".turn.model .said").inner_text()


def test_an_error_is_shown_and_can_be_tried_again(page):
    ask(page, "word " * 3000)
    assert "context is 2048 tokens" in page.locator(".fault").inner_text()
    assert page.locator("[data-do=again]").count() == 1


def test_conversations_are_deleted_with_a_way_back(page):
    ask(page, "Keep me")
    page.hover(".list .row")
    page.click(".list .drop")
    assert page.locator(".list .row").count() == 0
    page.click("text=Undo")
    assert page.locator(".list .row").count() == 1


def test_the_keyboard_alone_is_enough(page):
    ask(page, "one")
    page.keyboard.press("Alt+n")
    ask(page, "two")
    assert page.locator(".list .row").count() == 2
    page.keyboard.press("Alt+ArrowDown")
    assert page.locator("#title").inner_text() == "one"
    page.keyboard.press("ArrowUp")
    assert page.input_value("#editBox") == "one"
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+s")
    assert page.locator("#sheet").get_attribute("open") is not None


@pytest.mark.parametrize("width", [320, 390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_and_both_themes_have_contrast(browser, server, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 700}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("text=tiny", state="attached")
    scripted(
        page, "A `word` " + "unbreakable" * 30 + "\n\n```python\nx = " + "1 + " * 80 + "1\n```\n\n|a|b|\n|--|--|\n|1|2|"
    )
    ask(page, "x" * 300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('#log').scrollWidth") <= width
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert contrast(ink, paper) > 7
    context.close()


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two `rgb(...)` colours."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_a_base_model_goes_on_with_a_text(browser):
    with listening(create_app(Engine.of(tiny_model(), small_tokenizer()), name="base")) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("text=Begin a text, and it goes on")
        page.evaluate("settings.max_tokens = 5")
        ask(page, "def main(")
        first = page.locator(".turn.base .said").inner_text()
        assert first.startswith("def main(")
        page.click("text=Continue")
        page.wait_for_selector("#send[aria-label=Send]")
        assert page.locator(".turn.base .said").inner_text().startswith(first.rstrip("\ufffd"))
        page.close()


def test_a_key_is_asked_for_and_kept(browser):
    with listening(create_app(chat_engine(), name="tiny", key="sesame")) as url:
        page = browser.new_page()
        page.goto(url)
        page.wait_for_selector("text=A valid key is required")
        page.click("#options")
        page.fill("#key", "sesame")
        page.locator("#key").blur()
        page.wait_for_selector("text=tiny ·")
        page.close()


def test_another_model_can_be_chosen_and_stays_chosen(browser):
    engines = {"assistant": chat_engine(), "writer": Engine.of(tiny_model(), small_tokenizer())}
    with listening(create_app(engines)) as url:
        page = browser.new_context().new_page()
        page.goto(url)
        page.wait_for_selector("#models:visible")
        assert page.locator("#models option").all_inner_texts() == ["assistant", "writer"]
        page.select_option("#models", "writer")
        page.wait_for_selector("text=Begin a text, and it goes on")
        bodies = []
        page.on("request", lambda request: request.method == "POST" and bodies.append(request.post_data_json))
        page.evaluate("settings.max_tokens = 3")
        ask(page, "def main(")
        assert bodies[0]["model"] == "writer" and bodies[0]["prompt"] == "def main("
        page.reload()
        page.wait_for_selector("#models:visible")
        assert page.input_value("#models") == "writer"
        page.context.close()


def test_conversations_are_taken_out_and_read_in_again(page, tmp_path):
    ask(page, "Who are you, *really*?")
    said = page.locator(".turn.model .said").inner_text()
    with page.expect_download() as markdown:
        page.click("#save")
    assert markdown.value.suggested_filename == "Who-are-you-really.md"
    assert "Who are you, *really*?" in markdown.value.path().read_text(encoding="utf-8")
    page.click("#options")
    with page.expect_download() as everything:
        page.click("#export")
    (line,) = everything.value.path().read_text(encoding="utf-8").splitlines()
    assert [message["role"] for message in talks_of(json.loads(line), Notes())[0].messages] == ["user", "assistant"]
    page.click("#clear")
    page.click("#clear")
    assert page.locator(".list .row").count() == 0
    page.set_input_files("#file", everything.value.path())
    page.wait_for_selector("text=1 conversation read")
    page.locator(".list .open").first.click()
    assert page.locator(".turn.model .said").inner_text() == said
    bad = tmp_path / "bad.json"
    bad.write_text('{"messages": [{"role": "user", "content": {"a": 1}}]}')
    page.set_input_files("#file", bad)
    page.wait_for_selector("text=holds no conversations")


def test_everything_that_can_be_used_has_a_name_and_a_place_in_the_order(page):
    """What a screen reader says, and what the Tab key reaches."""
    ask(page, "one")
    page.click("#options")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, a[href]")]
            .filter(node => {
                const names = [node.ariaLabel, node.innerText, node.labels?.[0]?.innerText, node.title];
                return !names.some(name => name?.trim());
            })
            .map(node => node.outerHTML)"""
    )
    assert nameless == []
    page.keyboard.press("Escape")
    seen = set()
    page.focus("#box")
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"new", "options", "theme", "save", "open", "drop", "tool"} <= seen
    assert "one" not in page.locator("#spoken").inner_text() and page.locator("#spoken").inner_text().strip()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_small_print_can_be_read_in_both_themes(browser, server, scheme):
    """WCAG AA for text: 4.5 to 1, also where it is faint."""
    context = browser.new_context(viewport={"width": 1200, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("text=tiny")
    page.evaluate("settings.max_tokens = 4")
    ask(page, "one")
    for selector in (".stats", ".hint", ".list .day", ".side footer span", ".tool"):
        colours = page.evaluate(
            """selector => {
                const node = document.querySelector(selector);
                let behind = node;
                while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
                return [getComputedStyle(node).color, getComputedStyle(behind).backgroundColor];
            }""",
            selector,
        )
        assert contrast(*colours) >= 4.5, (selector, scheme, colours)
    context.close()
