"""The chat page in a real Chromium: what a person does there, by mouse, by keys and on a phone."""

import contextlib
import csv
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.chat_server import ROOT, Scripted, chat, running, stand_in
from tests.test_lab import chromium

MODEL, TOKENIZER = stand_in()
TEXT = "Hello <script>window.hacked = 1</script> <img src=x onerror='window.hacked = 2'> 🙂 & goodbye."
PATIENCE = 60_000  # milliseconds
PICTURES = ROOT / "build" / "chat"


def scripted(name, text=TEXT, pause=0.0):
    return chat.serve(name, Scripted(TOKENIZER, text, pause), TOKENIZER)


SLOW = scripted("slow", "word " * 200)


@pytest.fixture(scope="module")
def votes(tmp_path_factory):
    return tmp_path_factory.mktemp("votes") / "votes.csv"


@pytest.fixture(scope="module")
def url(votes):
    served = [scripted("base"), scripted("tuned", "Another answer."), SLOW]
    with running(chat.create_app(served, votes=votes)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@contextlib.contextmanager
def opened(browser, url, **settings):
    """A page of the service, which may ask nobody else and must raise nothing."""
    context = browser.new_context(**settings)
    page, wrong = context.new_page(), []
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: None if request.url.startswith((url, "data:")) else wrong.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.goto(f"{url}/")
    page.locator("#model option").first.wait_for(state="attached")
    yield page
    context.close()
    wrong = [words for words in wrong if "Failed to load resource" not in words]  # which the page tells in words
    assert not wrong


@pytest.fixture
def page(browser, url):
    with opened(browser, url, viewport={"width": 1180, "height": 800}) as page:
        page.evaluate("localStorage.clear()")
        greedy(page)
        yield page


def greedy(page):
    """The temperature at 0, by keys: then the scripted model says its text."""
    page.locator("#open-settings").click()
    page.locator("#temperature").press("Home")
    page.locator("#close-settings").click()


def say(page, words):
    page.locator("#text").fill(words)
    page.locator("#text").press("Enter")


def answered(page):
    page.wait_for_selector(".answer .meta, .answer .tools")
    page.wait_for_selector("#send", state="visible")


def texts(page):
    return page.locator(".words").all_inner_texts()


def picture(page, name):
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{name}.png")


def test_two_turns_stream_and_the_models_text_stays_text(page):
    say(page, "<b>first</b>")
    answered(page)
    say(page, "second")
    expect(page.locator(".words")).to_have_count(2, timeout=PATIENCE)
    answered(page)
    assert texts(page) == [TEXT, TEXT] and page.locator(".said").all_inner_texts() == ["<b>first</b>", "second"]
    assert page.evaluate("window.hacked") is None
    assert page.locator("#log script, #log img, #log b").count() == 0
    meta = page.locator(".meta").first.inner_text()
    n = len(TOKENIZER.encode_ordinary(TEXT))
    assert re.fullmatch(rf"{n} tokens · [\d.]+ tokens/s · the first after [\d.]+ s · ended by itself", meta)
    picture(page, "two_turns")


def test_the_conversation_that_is_sent_holds_both_turns_and_the_system_message(page):
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.method == "POST" else None)
    page.locator("#open-settings").click()
    page.locator("#system").fill("Be kind.")
    page.locator("#seed").fill("12")
    page.locator("#close-settings").click()
    say(page, "first")
    answered(page)
    say(page, "second")
    expect(page.locator(".meta")).to_have_count(2, timeout=PATIENCE)
    assert bodies[1]["messages"] == [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "first"},
        {"role": "assistant", "content": TEXT}, {"role": "user", "content": "second"}]  # fmt: skip
    assert bodies[1]["seed"] == 12 and bodies[1]["temperature"] == 0 and bodies[1]["stream"] is True


def test_an_answer_grows_before_ones_eyes_and_stop_stops(page):
    go_on = SLOW.model.go_on
    page.locator("#model").select_option("slow")
    try:
        for turn, stop in enumerate((lambda: page.locator("#stop").click(), lambda: page.keyboard.press("Escape"))):
            go_on.clear()
            say(page, "talk")
            page.locator(".words").nth(turn).locator("span").nth(11).wait_for()
            assert page.locator(".words.growing").count() == 1
            stop()
            expect(page.locator(".meta")).to_have_count(turn + 1, timeout=PATIENCE)
            assert "you stopped it" in page.locator(".meta").nth(turn).inner_text()
            stopped = texts(page)[turn]
            go_on.set()
            for _ in range(500):
                if not SLOW.scheduler.running:
                    break
                page.wait_for_timeout(20)
            assert not SLOW.scheduler.running, "the row is not free"
            assert texts(page)[turn] == stopped, "something came later"
            assert len(stopped) < 100 and page.locator("#send").is_visible()
    finally:
        go_on.set()


def test_another_token_is_chosen_and_the_answer_goes_on_from_there(page):
    say(page, "hello")
    answered(page)
    ids = TOKENIZER.encode_ordinary(TEXT)
    words = [TOKENIZER.decode([i]) for i in ids]
    page.locator(".words span").nth(2).click()
    rows = page.locator("#alternatives button")
    shown = rows.all_inner_texts()
    assert len(shown) == 8 and "%" in shown[0] and rows.first.get_attribute("aria-current") == "true"
    assert rows.first.locator(".piece").inner_text() == words[2].replace(" ", "␣")
    assert rows.nth(1).locator(".piece").inner_text() == words[3].replace(" ", "␣")
    picture(page, "alternatives")
    rows.nth(1).click()
    page.wait_for_selector("text=2 of 2")
    answered(page)
    expected = "".join(words[:2] + [words[3]]) + TOKENIZER.decode(ids[3:])
    assert texts(page) == [expected] and page.locator(".words .chosen").inner_text() == words[3]
    page.get_by_label("Earlier version").click()
    assert texts(page) == [TEXT]
    page.locator(".words span").nth(1).click()
    page.keyboard.press("Escape")
    assert page.locator("#tokens").is_hidden()


def test_an_answer_again_and_a_question_changed(page):
    say(page, "one")
    answered(page)
    say(page, "two")
    expect(page.locator(".meta")).to_have_count(2, timeout=PATIENCE)
    page.get_by_label("Answer again").first.click()
    page.wait_for_selector("text=2 of 2")
    answered(page)
    assert page.locator(".said").all_inner_texts() == ["one"], "what came after belongs to the other answer"
    page.get_by_label("Edit this message").click()
    page.get_by_label("Your message, changed").fill("three")
    page.keyboard.press("Enter")
    expect(page.locator(".said")).to_have_text(["three"], timeout=PATIENCE)
    answered(page)
    assert texts(page) == [TEXT]
    page.locator("#new").click()
    assert page.locator("#welcome").is_visible() and texts(page) == []


def test_tokens_are_reached_by_keys(page):
    say(page, "hello")
    answered(page)
    assert page.locator("#status").inner_text() == f"Answer: {TEXT}", "a screen reader hears it when it is complete"
    assert page.locator(".words [tabindex]").count() == 0, "a screen reader reads a text, not its tokens"
    page.get_by_text("Look inside").focus()
    page.keyboard.press("Enter")
    focused = "document.activeElement.dataset.i"
    assert page.evaluate(focused) == "0"
    for key, place in (("ArrowRight", "1"), ("ArrowRight", "2"), ("ArrowLeft", "1")):
        page.keyboard.press(key)
        assert page.evaluate(focused) == place
    page.keyboard.press("Enter")
    assert page.locator("#tokens").is_visible()
    assert page.evaluate("document.activeElement.closest('#alternatives') !== null")
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == "1"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.textContent") == "Look inside"


def test_two_models_a_blind_vote_and_its_line_in_the_file(page, votes):
    page.locator("#compare").click()
    chosen = []
    for i, choice in enumerate(("Left", "Equally good", "Right")):
        say(page, f"question {i}")
        expect(page.locator(".vote")).to_have_count(i + 1, timeout=PATIENCE)
        left, right = page.locator(f"#turn-{i} .words").all_inner_texts()
        assert {left, right} == {TEXT, "Another answer."}
        pair = page.locator(f"#turn-{i}").inner_text()
        assert "base" not in pair and "tuned" not in pair and "tokens/s" not in pair
        page.locator(f"#turn-{i} .vote button", has_text=choice).click()
        page.wait_for_selector(f"#turn-{i} >> text=The vote is in the server's file.")
        who = {"Left": left, "Right": right}.get(choice)
        chosen.append("tie" if who is None else "base" if who == TEXT else "tuned")
        names = page.locator(f"#turn-{i} .who").all_inner_texts()
        assert names == ["base" if left == TEXT else "tuned", "base" if right == TEXT else "tuned"]
    with votes.open(newline="", encoding="utf-8") as file:
        assert [row["preferred"] for row in csv.DictReader(file)] == chosen
    picture(page, "compare")


def test_settings_say_what_they_do_and_are_remembered(page):
    page.locator("#open-settings").click()
    says = page.locator("#temperature-says")
    assert "Always the most likely token" in says.inner_text()
    page.locator("#temperature").press("End")
    assert page.locator("#temperature-value").inner_text() == "2" and "Expect nonsense" in says.inner_text()
    page.locator("#top_k").press("ArrowRight")
    assert page.locator("#top_k-says").inner_text() == "Only the most likely token."
    page.locator("#seed").fill("1.5")
    assert "whole number" in page.locator("#seed-says").inner_text()
    picture(page, "settings")
    page.reload()
    page.locator("#model option").first.wait_for(state="attached")
    page.locator("#open-settings").click()
    assert page.locator("#temperature-value").inner_text() == "2"
    page.locator("#reset").click()
    assert page.locator("#temperature-value").inner_text() == "0.7"
    page.keyboard.press("Escape")
    assert page.locator("#settings").is_hidden()


@pytest.mark.parametrize(("status", "words"), [
    (429, "The server is busy with others. Try again in a moment."), (500, "Something broke in the server."),
    (400, "The server did not accept this: too <b>long</b>."),
    (None, "The server does not answer. Is it still running?"),
])  # fmt: skip
def test_errors_are_told_in_words(page, status, words):
    body = '{"error": {"message": "too <b>long</b>", "type": "x", "param": null, "code": null}}'
    page.route("**/v1/chat/completions", lambda route: route.abort() if status is None
               else route.fulfill(status=status, body=body, content_type="application/json"))  # fmt: skip
    say(page, "hello")
    page.wait_for_selector("#trouble", state="visible")
    assert words in page.locator("#trouble").inner_text() and page.locator("#trouble b").count() == 0
    page.unroute("**/v1/chat/completions")
    page.get_by_label("Answer again").click()
    page.wait_for_selector("#trouble", state="hidden")
    page.wait_for_selector(".meta >> text=ended by itself")


def test_a_key_is_asked_for_and_kept(browser):
    with running(chat.create_app([scripted("base")], api_key="secret")) as address:
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.locator("#key").fill("secret")
        page.keyboard.press("Enter")
        page.locator("#model option").wait_for(state="attached")
        assert page.locator("#compare").is_disabled()
        page.reload()
        page.locator("#model option").wait_for(state="attached")
        context.close()


@pytest.mark.parametrize("look", [
    {"color_scheme": "light", "viewport": {"width": 1180, "height": 800}},
    {"color_scheme": "dark", "viewport": {"width": 1180, "height": 800}},
    {"viewport": {"width": 360, "height": 700}, "has_touch": True, "is_mobile": True},
], ids=["light", "dark", "phone"])  # fmt: skip
def test_everybody_can_use_it(browser, url, look):
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).parent / "axe.min.js"
    with opened(browser, url, **look) as page:
        def check(name):
            page.evaluate(axe.read_text(encoding="utf-8"))
            found = page.evaluate("axe.run()")["violations"]
            serious = [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found
                       if one["impact"] in ("serious", "critical")]  # fmt: skip
            assert not serious, (name, serious)
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0, f"{name}: a page that must be scrolled to the side"

        check("welcome")
        greedy(page)
        page.locator("#compare").click()
        say(page, "a long question " * 12)
        page.wait_for_selector(".vote")
        page.get_by_text("Look inside").first.click()
        check("compare")
        page.locator(".words span").nth(1).click()
        check("tokens")
        page.keyboard.press("Escape")
        page.locator("#open-settings").click()
        check("settings")
        page.goto(f"{url}/docs")
        check("docs")
