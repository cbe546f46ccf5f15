"""The book as one PDF and one EPUB: whole, linked, nothing cut, small."""

import re
import sys
import xml.etree.ElementTree as ET
import zipfile

import pytest
from browsing import NOTEBOOKS, ROOT, build_once, chromium, need_a_browser, need_the_sites_packages

need_the_sites_packages()
for package in ("bs4", "pikepdf"):
    pytest.importorskip(package, reason=f"no {package} here: make test installs it")

XHTML = "{http://www.w3.org/1999/xhtml}"


@pytest.fixture(scope="module")
def book():
    sys.path.insert(0, str(ROOT / "site"))
    import book

    return book


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build_once(tmp_path_factory)


def lost(files):
    """Return the links of an EPUB that lead nowhere, and the pictures that are missing."""
    trees = {name: ET.fromstring(text) for name, text in files.items() if name.endswith(".xhtml")}
    ids = {name: {e.get("id") for e in tree.iter()} for name, tree in trees.items()}
    wrong = []
    for name, tree in trees.items():
        for element in tree.iter():
            address = element.get("href") or element.get("src") or ""
            if re.match(r"[a-z]+:", address) or not address or element.tag == f"{XHTML}link":
                continue
            target, _, inner = address.partition("#")
            if f"EPUB/{target}" not in files or (inner and inner not in ids[f"EPUB/{target}"]):
                wrong.append(f"{name}: {address}")
    return wrong


def test_the_epub_is_whole(book, site, tmp_path):
    """Well-formed, every chapter and picture there, formulas as MathML, no link lost."""
    book.write_epub(site, tmp_path / "one.epub")
    book.write_epub(site, tmp_path / "two.epub")
    assert (tmp_path / "one.epub").read_bytes() == (tmp_path / "two.epub").read_bytes()
    assert (tmp_path / "one.epub").stat().st_size < 25e6
    with zipfile.ZipFile(tmp_path / "one.epub") as archive:
        assert archive.namelist()[0] == "mimetype"
        files = {name: archive.read(name) for name in archive.namelist()}
    assert not lost(files)
    for path in NOTEBOOKS:
        text = files[f"EPUB/{path.stem}.xhtml"].decode()
        formulas = path.read_text(encoding="utf-8").count("$$") // 2
        assert text.count('display="block"') == formulas
        assert "katex" not in text.replace("katex-", "")
    files["EPUB/nav.xhtml"] = files["EPUB/nav.xhtml"].replace(b"03_rope.xhtml", b"x.xhtml")
    assert lost(files) == ["EPUB/nav.xhtml: x.xhtml"]  # the control


@pytest.mark.thorough
def test_the_pdf_cuts_nothing_and_has_its_links(book, site, tmp_path):
    """Laid out as wide as the paper, nothing is wider; each chapter is an entry of the outline."""
    need_a_browser()
    import pikepdf

    page = site / "laid-out.html"
    page.write_text(book.one_page(site), encoding="utf-8")
    try:
        with chromium() as browser:
            tab = browser.new_page(viewport={"width": 665, "height": 900})  # A4 less its margins
            tab.emulate_media(media="print")
            tab.goto(page.as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= 665
            cut = """[...document.querySelectorAll("pre, table, img, div.formula")].filter(
                (e) => e.scrollWidth > e.clientWidth + 1 && e.tagName !== "IMG"
                  || e.getBoundingClientRect().right > 666).map((e) => e.outerHTML.slice(0, 120))"""
            assert tab.evaluate(cut) == []
            lost = """[...document.querySelectorAll("a[href^='#']")].filter((a) =>
                !document.getElementById(decodeURIComponent(a.hash.slice(1))))"""
            assert tab.evaluate(f"{lost}.map((a) => a.hash)") == []
    finally:
        page.unlink()
    path = tmp_path / "book.pdf"
    book.write_pdf(site, path)
    assert path.stat().st_size < 25e6
    with pikepdf.open(path) as pdf, pdf.open_outline() as outline:
        titles = [str(entry.title) for top in outline.root for entry in [top, *top.children]]
    for path in NOTEBOOKS[1:]:
        assert any(title.startswith(path.stem[:2]) for title in titles), path.stem
