"""The page in a headless browser. It runs where playwright and a Chromium are: `pip install playwright`, then
`playwright install chromium`, or a browser of the system, or one that the variable DIT_CHROMIUM names."""

import os
import shutil

import pytest

from .test_server import PROMPT, Running

playwright = pytest.importorskip("playwright.sync_api", reason="the page needs a browser: pip install playwright")
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("DIT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as started:
        try:
            found = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        except playwright.Error as error:
            pytest.skip(f"the page needs a browser: playwright install chromium ({str(error).splitlines()[0]})")
        yield found
        found.close()


def checked(content):
    """Takes the place of the verification: what it says of a file is how it ends."""
    if not content.startswith(b"\x89PNG"):
        raise ValueError("this is no picture")
    return {"in_words": "Signed by tiny." if content.endswith(b"signed") else "No signature."}


@pytest.fixture(scope="module")
def running():
    found = Running(check=checked)
    yield found
    found.stop()


@pytest.fixture(params=SIZES)
def page(request, browser, running):
    """The page on a desktop and on a phone. Its script may not fail, and nothing is loaded from elsewhere."""
    width, height = SIZES[request.param]
    page, faults = browser.new_page(viewport={"width": width, "height": height}), []
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console", lambda line: line.type == "error" and "Failed to load" not in line.text and faults.append(line.text)
    )
    page.on("request", lambda one: one.url.startswith((running.url, "data:")) or faults.append(one.url))
    page.goto(running.url)
    yield page
    assert faults == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    page.close()


def wait_for_text(page, id, text):
    playwright.expect(page.locator(f"#{id}")).to_contain_text(text)


def test_pictures_are_made_saved_and_verified_and_a_refusal_says_why(page):
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Pictures").fill("2")
    page.get_by_label("Guidance").fill("2.5")
    page.get_by_role("button", name="Make pictures").click()
    wait_for_text(page, "message", "2 pictures, 16 network calls")
    figures = page.locator("figure")
    assert figures.locator("figcaption").all_inner_texts() == [f"{PROMPT}, seed 3", f"{PROMPT}, seed 4"]
    assert page.evaluate("[...document.images].map(i => i.naturalWidth)") == [32, 32]
    figures.first.get_by_role("button", name="Verify").click()
    wait_for_text(page, "verdict", "Signed by tiny.")
    with page.expect_download() as saved:
        figures.first.get_by_role("link", name="Save").click()
    page.set_input_files("#file", saved.value.path())
    assert saved.value.suggested_filename == "seed_3.png"

    page.get_by_label("Prompt", exact=True).fill("a red circle")
    page.get_by_role("button", name="Make pictures").click()
    wait_for_text(page, "message", "Refused: the policy refuses 'circle'")
    assert "refused" in page.locator("#message").get_attribute("class")
    assert figures.count() == 2, "the gallery stays"


def test_a_file_that_is_no_picture_and_a_server_that_has_gone_are_said(page):
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"text"})
    wait_for_text(page, "verdict", "Refused: this is no picture")
    page.route("**/v1/images/generations", lambda route: route.abort())
    page.get_by_label("Prompt", exact=True).fill("<img src=x onerror=alert(1)>")
    page.get_by_role("button", name="Make pictures").click()
    wait_for_text(page, "message", "The server did not answer")
    assert page.get_by_role("button", name="Make pictures").is_enabled()


def test_fingers_reach_everything(page):
    page.get_by_text("Sampler, size, negative prompt").click()
    page.get_by_label("Negative prompt").fill("star")
    heights = page.eval_on_selector_all("input, select, button, textarea", "all => all.map(e => e.offsetHeight)")
    assert min(height for height in heights if height) >= 40
    assert page.get_by_label("Sampler").locator("option").all_inner_texts() == ["ddim", "heun"]
    assert not page.get_by_label("Key").is_visible(), "this server has no keys"
