"""What the tests of the site and of the playground share: one build of the site, and a browser."""

import contextlib
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from helpers import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


def run(*arguments, **environment):
    """Run a Python script or command in the project's folder, with its output as text."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip


def need_the_sites_packages():
    """Skip a file of tests where the site cannot be built."""
    for package in ("sphinx", "myst_nb", "sphinx_book_theme", "tinycss2"):
        pytest.importorskip(package, reason=f"no {package} here: make test installs it")


def need_a_browser():
    """Skip a file of tests, in one line, where there is no browser."""
    pytest.importorskip("playwright.sync_api", reason="no playwright here: make test installs it")
    if not CHROMIUM:
        pytest.skip(
            "no Chromium here, so nothing is tried in a browser: install it (on Debian "
            "`apt-get install chromium`), or name one in CHROMIUM", allow_module_level=True,
        )  # fmt: skip


def build_once(tmp_path_factory):
    """Build the site in the first xdist worker that asks; the others wait -> its folder."""
    base = tmp_path_factory.getbasetemp()
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    folder = (base if alone else base.parent) / "site" / "built"
    folder.parent.mkdir(exist_ok=True)
    from filelock import FileLock

    with FileLock(folder.parent / "lock"):
        if not folder.exists():
            fetched = run("site/katex.py")
            if fetched.returncode:
                pytest.skip(f"no node, or no KaTeX and no npm for it: {fetched.stderr[-200:]}")
            done = run("site/build.py", folder, LAUNCH_REPOSITORY="")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "WARNING" not in done.stdout + done.stderr
    return folder


@contextlib.contextmanager
def chromium():
    """A browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@contextlib.contextmanager
def page_of(browser, *allowed, **how):
    """-> (a page, a list that fills with its complaints and with requests that are not allowed)."""
    context = browser.new_context(**how)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(f"console: {message.text}")
            if message.type in ("error", "warning") else None)  # fmt: skip
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("requestfailed", lambda request: wrong.append(f"failed: {request.url[:99]}"))
    page.on("request", lambda request: wrong.append(f"request: {request.url[:99]}") if (
            not request.url.startswith((*allowed, "data:", "blob:"))) else None)  # fmt: skip
    yield page, wrong
    context.close()


def wait_until(page, expression, argument=None):
    """Wait until JavaScript gives something true.

    Playwright's own waiting is evaluated in the page, which the page's policy forbids.
    """
    for _ in range(200):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


@cache
def axe_script():
    """Return the text of axe-core, from the package that contains it."""
    axe = pytest.importorskip("axe_playwright_python", reason="no axe-playwright-python here")
    return (Path(axe.__path__[0]) / "axe.min.js").read_text(encoding="utf-8")


def violations(page, *left_out):
    """Return axe-core's complaints about the page (WCAG 2.2, AA), except by the rules left out."""
    page.evaluate(axe_script())
    options = {
        "runOnly": LEVELS, "preload": False, "selectors": False, "resultTypes": ["violations"],
        "rules": {rule: {"enabled": False} for rule in left_out},
    }  # fmt: skip
    found = page.evaluate("(options) => axe.run(document, options)", options)
    return [(v["id"], len(v["nodes"]), v["nodes"][0]["html"][:120]) for v in found["violations"]]


def too_wide(page):
    """Return by how many pixels the page is wider than the window; 0 if it fits."""
    return max(0, page.evaluate("document.documentElement.scrollWidth - innerWidth"))
