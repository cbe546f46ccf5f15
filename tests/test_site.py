"""The site, as `make site` builds it: its links, its weight, and how it behaves in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

for package in ("sphinx", "myst_nb", "sphinx_book_theme"):
    pytest.importorskip(package, reason=f"the package {package} is not installed: make site does")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


def run(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def fetched():
    """KaTeX is here, or can be fetched."""
    done = run("site/katex.py")
    if done.returncode:
        pytest.skip(f"no node, or no KaTeX and no npm to fetch it: {done.stderr[-200:]}")


@pytest.fixture(scope="module")
def site(tmp_path_factory, fetched):
    folder = tmp_path_factory.mktemp("site") / "built"
    done = run("site/build.py", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return folder


class Page(HTMLParser):
    """What a page links to, loads and shows."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.links, self.loads, self.images, self.ids, self.lang = [], [], [], set(), None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if found.get("id"):
            self.ids.add(found["id"])
        if tag == "html":
            self.lang = found.get("lang")
        if tag in ("a", "link") and found.get("href"):
            (self.links if tag == "a" else self.loads).append(found["href"])
        if found.get("src"):
            self.loads.append(found["src"])
        if tag == "img":
            self.images.append(found)


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def target(page, address):
    """The file that an address on a page names, and the anchor in it."""
    parts = urlsplit(address)
    path = page.path.parent / unquote(parts.path) if parts.path else page.path
    return Path(os.path.normpath(path)), unquote(parts.fragment)


def outside(address):
    return urlsplit(address).scheme in ("http", "https") or address.startswith("//")


def test_every_notebook_and_page_is_there(site, pages):
    names = {path.relative_to(site).as_posix() for path in pages}
    assert {f"notebooks/{path.stem}.html" for path in NOTEBOOKS} <= names
    assert {"index.html", "search.html", "playground/index.html"} <= names
    assert {"model.html", "api.html", "mistakes.html", "ledger.html", "card.html"} <= names
    assert {"glossary.html", "bibliography.html", "changelog.html"} <= names


def test_links_and_anchors_exist(pages):
    lost = []
    for page in pages.values():
        for address in page.links:
            if urlsplit(address).scheme:
                continue
            path, anchor = target(page, address)
            scripted = {"pst-back-to-top", "", "main-content"}
            if not path.exists() or (
                path.suffix == ".html" and anchor not in pages[path].ids | scripted
            ):
                lost.append(f"{page.path.name}: {address}")
    assert not lost


def test_pages_load_nothing_from_elsewhere(site, pages):
    for page in pages.values():
        for address in page.loads:
            assert not outside(address), f"{page.path.name} loads {address}"
            path, _ = target(page, address)
            assert address.startswith("data:") or path.exists(), f"{page.path.name}: {address}"
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        for address in re.findall(r"url\([\"']?([^\"')]+)", text):
            assert not outside(address), f"{path.name} loads {address}"
            if not address.startswith(("data:", "#")):
                assert (path.parent / urlsplit(address).path).exists(), f"{path.name}: {address}"
        assert all(not outside(address) for address in re.findall(r'@import "([^"]+)', text))


def test_pictures_say_what_they_show(pages):
    for page in pages.values():
        assert page.lang == "en"
        for image in page.images:
            assert len(image.get("alt") or "") > 20, f"{page.path.name}: {image.get('src')}"


def test_the_alt_texts_are_those_of_the_notebooks(site):
    for path in NOTEBOOKS:
        page = Page(site / "notebooks" / f"{path.stem}.html")
        shown = {image["alt"] for image in page.images}
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    assert output["metadata"]["image/png"]["alt"] in shown


def loaded(page):
    """Bytes of a page and of all that it loads at once."""
    files = {page.path} | {target(page, address)[0] for address in page.loads
                           if not address.startswith("data:")}  # fmt: skip
    return sum(path.stat().st_size for path in files)


def test_it_is_light(site, pages):
    sizes = {path.relative_to(site).as_posix(): loaded(page) for path, page in pages.items()}
    total = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    print(f"\nfront page {sizes['index.html'] / 1e3:.0f} kB , site {total / 1e6:.1f} MB")
    assert sizes["index.html"] < 500e3
    for path in NOTEBOOKS:
        assert sizes[f"notebooks/{path.stem}.html"] < 1.5e6
    assert total < 40e6
    assert not list(site.rglob("*.map"))


def test_the_same_sources_give_the_same_bytes(site, tmp_path):
    assert run("site/build.py", tmp_path / "again").returncode == 0
    names = [
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (site, tmp_path / "again")
    ]
    assert names[0] == names[1]
    for name in names[0]:
        assert (site / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_no_formula_is_left_as_text(site):
    for path in NOTEBOOKS:
        text = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        source = path.read_text(encoding="utf-8")
        assert text.count('<span class="katex-display">') == source.count("$$") // 2


def test_a_bad_formula_is_refused():
    done = run("-c", "import sys; sys.path.insert(0, 'site'); from katex import Renderer\n"
               "Renderer().render(r'\\frac{1', True)")  # fmt: skip
    assert "ValueError" in done.stderr and "KaTeX" in done.stderr


# In a browser


@pytest.fixture(scope="module")
def browser(site):
    driver = pytest.importorskip(
        "playwright.sync_api", reason="the package playwright is not installed"
    )
    if not CHROMIUM:
        pytest.skip("no Chromium here: install Debian's chromium, or name one by CHROMIUM")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, site):
    """-> a function (how) -> a page that opens the site's files, and a list of what went wrong."""
    contexts = []

    def visit(**how):
        contexts.append(browser.new_context(**how))
        page, wrong = contexts[-1].new_page(), []
        page.on("console", lambda message: wrong.append(f"console: {message.text}")
                if message.type in ("error", "warning") else None)  # fmt: skip
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url[:99]}"))
        page.on("request", lambda request: wrong.append(request.url[:99]) if (
            not request.url.startswith((site.as_uri(), "data:", "blob:"))) else None)  # fmt: skip
        return page, wrong

    yield visit
    for context in contexts:
        context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_pages_open_from_disk_without_a_complaint(visit, pages, size, theme):
    width, height = SIZES[size]
    page, wrong = visit(viewport={"width": width, "height": height}, color_scheme=theme)
    for path in pages:
        page.goto(path.as_uri())
        if path.parent.name != "playground":
            assert page.evaluate("document.documentElement.dataset.theme") == theme
        for fold in page.query_selector_all("main details"):
            fold.evaluate("(fold) => { fold.open = true; }")
        page.evaluate("document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; })")
        page.wait_for_function("[...document.images].every(i => i.complete)")
        assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)"), path.name
        inside = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert inside <= 0, f"{path.name} is {inside} px too wide at {size}"
        assert not wrong, f"{path.name}: {wrong}"


def test_the_search_finds_a_term_of_every_notebook(visit, site):
    page, wrong = visit()
    for path in NOTEBOOKS:
        title = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
        words = re.findall(r"[A-Za-z]{4,}", "".join(title).splitlines()[0])
        page.goto(f"{(site / 'search.html').as_uri()}?q={'+'.join(words)}")
        page.wait_for_selector(f"#search-results a[href*='{path.stem}.html']", timeout=10_000)
    assert not wrong


def test_copy_copies_the_code(visit, site):
    page, wrong = visit(permissions=["clipboard-read", "clipboard-write"])
    page.goto((site / "notebooks" / f"{NOTEBOOKS[0].stem}.html").as_uri())
    cells = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))["cells"]
    code = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    button = page.locator("button.copy").first
    button.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("button.copy.done")
    assert page.evaluate("navigator.clipboard.readText()") == code
    assert not wrong


def test_the_map_leads_to_the_notebooks_by_keyboard(visit, site):
    page, wrong = visit()
    page.goto((site / "index.html").as_uri())
    parts = page.locator("a.map-part")
    reached = {parts.nth(i).get_attribute("href")[:12] for i in range(parts.count())}
    assert {f"notebooks/{path.stem}"[:12] for path in NOTEBOOKS[1:]} <= reached
    parts.first.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('class')") == "map-part"
    page.keyboard.press("Enter")
    page.wait_for_url("**/notebooks/*")
    assert not wrong


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(visit, pages, theme):
    """WCAG 2.2, level AA, with all folds open."""
    axe = pytest.importorskip(
        "axe_playwright_python", reason="the package axe-playwright-python is not installed"
    )
    script = (Path(axe.__path__[0]) / "axe.min.js").read_text(encoding="utf-8")
    levels = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    size = {"width": 1280, "height": 900}
    page, _ = visit(viewport=size, color_scheme=theme, reduced_motion="reduce")
    for path in pages:
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        page.evaluate(script)
        options = {"runOnly": levels, "preload": False, "resultTypes": ["violations"]}
        found = page.evaluate("(options) => axe.run(document, options)", options)
        faults = [(v["id"], v["nodes"][0]["html"][:120]) for v in found["violations"]]
        assert not faults, f"{path.name}: {faults}"


def test_the_theme_can_be_switched(visit, site):
    page, wrong = visit(color_scheme="light")
    page.goto((site / "index.html").as_uri())
    page.evaluate("document.documentElement.dataset.mode")
    page.locator(".theme-switch-button").first.click()
    page.locator("[data-mode='dark']:visible").last.click()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert not wrong
