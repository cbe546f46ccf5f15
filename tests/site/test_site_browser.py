"""The site in a real browser, opened from disk: every page, desktop and phone, light and dark."""

import contextlib
import json
import re

import pytest
from browsing import (
    NOTEBOOKS,
    build_once,
    chromium,
    need_a_browser,
    need_the_sites_packages,
    page_of,
    too_wide,
    violations,
    wait_until,
)

need_the_sites_packages()
need_a_browser()

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
PAGES = [
    "index", "search", "model", "api", "mistakes", "ledger", "glossary", "bibliography", "card",
    "changelog", "playground/index", *(f"notebooks/{path.stem}" for path in NOTEBOOKS),
]  # fmt: skip
FRAME_SEEN_ON = ("index", "search", "playground/index", f"notebooks/{NOTEBOOKS[0].stem}")
BAD = """<!doctype html><html lang="en"><title>bad</title><main><h1>Bad</h1>
  <p style="color: #999; background: #fff">pale</p><div style="width: 2000px">wide</div>
  <img src="none.png"><script>console.error("loud"); fetch("https://example.com/x")</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build_once(tmp_path_factory)


@pytest.fixture(scope="module")
def browser(site):
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser, site):
    """-> a page that may open the site's files; any complaint or other request fails the test."""
    clipboard = ["clipboard-read", "clipboard-write"]
    with page_of(browser, site.as_uri(), permissions=clipboard) as (page, wrong):
        yield page
        assert not wrong


def test_every_page_is_visited(site):
    built = {path.relative_to(site).with_suffix("").as_posix() for path in site.rglob("*.html")}
    assert built == set(PAGES)


@pytest.fixture(scope="module")
def windows(browser, site):
    """{(size, theme): a page of that kind and its complaints}, kept open for all visits."""
    with contextlib.ExitStack() as stack:
        yield {(size, theme): stack.enter_context(page_of(
            browser, site.as_uri(), viewport={"width": width, "height": height},
            color_scheme=theme, reduced_motion="reduce", has_touch=size == "phone",
        )) for size, (width, height) in SIZES.items() for theme in ("light", "dark")}  # fmt: skip


def open_whole(page, site, name):
    """Open a page with its folds open and its pictures loaded; look for what is quickly found."""
    page.goto((site / f"{name}.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((fold) => { fold.open = true; })")
    page.evaluate("document.querySelectorAll('img').forEach((i) => { i.loading = 'eager'; })")
    wait_until(page, "[...document.images].every((image) => image.complete)")
    wait_until(page, "document.fonts.status === 'loaded'")
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert too_wide(page) == 0


@pytest.mark.parametrize("name", [name for name in PAGES if name not in FRAME_SEEN_ON])
def test_a_page_fits_and_is_whole(windows, site, name):
    """On the phone, where space is short. `test_a_page_has_no_fault` looks longer, in CI."""
    page, wrong = windows["phone", "light"]
    open_whole(page, site, name)
    assert not wrong


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in FRAME_SEEN_ON else pytest.mark.thorough)
    for name in PAGES
])  # fmt: skip
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_a_page_has_no_fault(windows, site, size, theme, name):
    """No message, no other host, nothing too wide, no missing picture, no fault by axe-core.

    Contrast takes most of the time. It is checked in both themes on every page on the phone; on the
    desktop, which adds the same frame to every page, on one page of each kind.
    """
    page, wrong = windows[size, theme]
    open_whole(page, site, name)
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    left_out = [] if size == "phone" or name in FRAME_SEEN_ON else ["color-contrast"]
    assert not violations(page, *left_out)
    assert not wrong


def test_a_box_that_begins_to_scroll_can_be_reached_by_keyboard(windows, site):
    """When letters of another width have been loaded, or a fold was opened."""
    page, wrong = windows["phone", "light"]
    page.goto((site / "notebooks/06_swiglu_feed_forward.html").as_uri())
    page.evaluate("document.fonts.ready")
    tab = """(box) => [box.scrollWidth > box.clientWidth + 1, box.tabIndex]"""
    formula = page.locator("div.formula").first
    formula.evaluate("(box) => { box.firstElementChild.style.paddingLeft = '2000px'; }")
    formula.evaluate("(box) => { box.removeAttribute('tabindex'); }")
    assert formula.evaluate(tab) == [True, -1]  # the control
    page.evaluate("document.fonts.dispatchEvent(new Event('loadingdone'))")
    assert formula.evaluate(tab) == [True, 0]
    page.evaluate("""() => {
        const fold = document.createElement("details");
        fold.id = "new";
        fold.append(document.createElement("pre"));
        fold.firstChild.textContent = "wide ".repeat(200);
        document.querySelector("article").append(fold);
        fold.open = true;
    }""")
    wait_until(page, "document.querySelector('#new pre').tabIndex === 0")
    assert not wrong


def test_faults_are_found(browser, tmp_path):
    """The control of the test above: a page with one of each."""
    (tmp_path / "bad.html").write_text(BAD)
    phone = {"width": 390, "height": 844}
    with page_of(browser, tmp_path.as_uri(), viewport=phone) as (page, wrong):
        page.goto((tmp_path / "bad.html").as_uri())
        page.wait_for_timeout(300)
        assert page.evaluate("document.images[0].naturalWidth") == 0
        assert too_wide(page) > 1000
        assert {rule for rule, *_ in violations(page)} == {"color-contrast", "image-alt"}
        assert [rule for rule, *_ in violations(page, "color-contrast")] == ["image-alt"]
    assert "console: loud" in wrong
    assert "request: https://example.com/x" in wrong
    assert any(text.startswith("failed: file:") for text in wrong)


def hits(page, site, words):
    """Search the site on disk for words -> the pages that are found."""
    page.goto(f"{(site / 'search.html').as_uri()}?q={'+'.join(words)}")
    summary = "document.querySelector('.search-summary')"
    wait_until(page, f"{summary}?.innerText.match(/found|match/)")
    return {a.get_attribute("href") for a in page.locator("#search-results li a").all()}


def test_the_search_finds_every_notebook_by_its_title(visit, site):
    for path in NOTEBOOKS:
        title = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
        words = re.findall(r"[A-Za-z]{3,}", "".join(title).splitlines()[0])
        assert any(f"{path.stem}.html" in href for href in hits(visit, site, words)), words
    assert any("03_rope.html" in href for href in hits(visit, site, ["rope", "base"]))
    assert not hits(visit, site, ["xylophonist"])


def test_the_copy_button_copies_the_code(visit, site):
    visit.goto((site / "notebooks" / f"{NOTEBOOKS[0].stem}.html").as_uri())
    cells = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    code = ["".join(cell["source"]) for cell in code if "jupyter" not in cell["metadata"]]
    visit.evaluate("navigator.clipboard.writeText('before')")
    assert visit.evaluate("navigator.clipboard.readText()") == "before"
    for i in (0, 2):
        visit.locator("div.cell button.copy").nth(i).focus()
        visit.keyboard.press("Enter")
        wait_until(visit, "(i) => document.querySelectorAll('div.cell button.copy')[i]"
                                ".classList.contains('done')", i)  # fmt: skip
        assert visit.evaluate("navigator.clipboard.readText()") == code[i]


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_exercises_and_solutions_fold_by_keyboard(visit, site, path):
    """An exercise is open at first, its solution closed; headings toggle them."""
    visit.goto((site / "notebooks" / f"{path.stem}.html").as_uri())
    exercises = visit.locator("article details.exercise")
    folds = visit.locator("article details:not(.exercise)")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    solutions = [cell for cell in cells if "solution" in cell["metadata"].get("tags", [])]
    assert folds.count() >= len(solutions) >= 3
    assert exercises.count() == len(solutions)
    every = [(fold, False) for fold in folds.all()] + [(fold, True) for fold in exercises.all()]
    for fold, before in every:
        inside = fold.locator("> :not(summary)").first
        assert inside.is_visible() == before
        fold.locator("> summary").focus()
        visit.keyboard.press("Enter")
        assert inside.is_visible() != before


def test_the_map_leads_to_the_notebooks_by_keyboard(visit, site):
    visit.goto((site / "index.html").as_uri())
    parts = visit.locator("a.map-part")
    reached = {parts.nth(i).get_attribute("href")[:12] for i in range(parts.count())}
    assert reached == {f"notebooks/{number:02}" for number in range(1, 8)}
    parts.first.focus()
    visit.keyboard.press("Tab")
    assert visit.evaluate("document.activeElement.getAttribute('class')") == "map-part"
    visit.keyboard.press("Enter")
    visit.wait_for_url("**/notebooks/*")


def test_the_theme_is_switched_for_the_book_and_the_playground(visit, site):
    """A choice reaches other pages a moment later: the browser writes its storage when it likes."""
    ground = "getComputedStyle(document.body).backgroundColor"

    def shown_on(page, colour):
        for _ in range(20):
            visit.goto((site / page).as_uri())
            if visit.evaluate(ground) == colour:
                return True
            visit.wait_for_timeout(250)
        return False

    visit.goto((site / "index.html").as_uri())
    light = visit.evaluate(ground)
    for _ in range(3):  # the system's theme, light, dark
        visit.locator(".theme-switch-button:visible").first.click()
        if visit.locator("[data-mode='dark']:visible").count():
            visit.locator("[data-mode='dark']:visible").last.click()
        if visit.evaluate("document.documentElement.dataset.theme") == "dark":
            break
    dark = visit.evaluate(ground)
    assert dark != light
    assert shown_on("playground/index.html", dark)
    assert visit.input_value("#theme") == "dark"
    visit.select_option("#theme", "light")
    assert visit.evaluate(ground) == light
    assert shown_on("glossary.html", light)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_changed_model_has_no_fault(windows, site, theme):
    """What the playground shows only of a changed model: on the phone, and found by axe-core."""
    page, wrong = windows["phone", theme]
    page.goto((site / "playground" / "index.html").as_uri())
    page.wait_for_selector(".chip")
    page.click("#pair")
    wait_until(page, "() => !get('patch').disabled")
    page.click("#patch")
    page.click("#off")
    page.check("#int4")
    page.wait_for_selector("#changes li:nth-child(3)")
    assert page.is_visible("#comparison") and page.is_visible("#effect")
    assert too_wide(page) == 0
    assert not violations(page)
    page.evaluate("document.querySelector('label[for=from]').remove()")  # the control
    assert {rule for rule, *_ in violations(page, "color-contrast")} == {"select-name"}
    assert not wrong


def test_the_playground_links_back_to_the_book(visit, site):
    visit.goto((site / "playground" / "index.html").as_uri())
    hrefs = {a.get_attribute("href") for a in visit.locator("cite a").all()}
    named = {"01", "04", "05", "07", "08", "09", "13", "20"}  # those that exist are links
    names = [path.stem for path in NOTEBOOKS if path.stem[:2] in named]
    assert hrefs == {f"../notebooks/{name}.html" for name in names}
    visit.locator("nav a").first.click()
    visit.wait_for_url((site / "index.html").as_uri())
