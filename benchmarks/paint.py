"""What it costs a browser to show the site's pages: `make site`, then `python benchmarks/paint.py`.

Medians of seven visits, the pages in turn, at a phone's width, from the folder build/site: the time
of the largest paint, and the processor time of the page's thread, which includes all that it does
after that paint. Compared with a page of one word. Needs playwright and Chromium.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

PAGES = "index", "notebooks/03_rope", "notebooks/07_the_full_loop", "playground/index"
PAINT = """new Promise((done) => new PerformanceObserver((list) =>
  done(list.getEntries().at(-1).startTime)).observe(
  { type: "largest-contentful-paint", buffered: true }))"""


def visit(browser, url):
    """URL -> milliseconds: the largest paint, and the thread's processor time."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(url)
    paint = page.evaluate(PAINT)
    metrics = devtools.send("Performance.getMetrics")["metrics"]
    page.close()
    return paint, 1000 * next(m["value"] for m in metrics if m["name"] == "TaskDuration")


if __name__ == "__main__":
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "build/site").resolve()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        word = Path(folder, "word.html")
        word.write_text("<p>word</p>")
        urls = {"a page of one word": word.as_uri()}
        urls |= {name: (site / f"{name}.html").as_uri() for name in PAGES}
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        rounds = [[visit(browser, url) for url in urls.values()] for _ in range(7)]
    for name, *times in zip(urls, *rounds, strict=True):
        paint, work = map(statistics.median, zip(*times, strict=True))
        print(f"| {name} | {paint:.0f} | {work:.0f} |")
