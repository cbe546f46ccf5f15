"""Make one PDF and one EPUB from the built site: python site/book.py build/site build/book

The chapters are the pages of the site, in its order: the notebooks with their outputs, then what is
looked up. Links between them are links inside the book; exercises and solutions are unfolded. The
PDF is printed by Chromium (playwright drives it; CHROMIUM names another one). The EPUB has its
formulas as MathML.
"""

import argparse
import os
import re
import shutil
import sys
import zipfile
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pages
from bs4 import BeautifulSoup

from llama3_scratch import __version__

NAME = "llama3-from-scratch"
TITLE = "Llama 3 from scratch"
AFTER = ("model", "glossary", "bibliography", "card")  # what the notebooks' links lead to
DATE = "2000-01-01T00:00:00Z"  # the same sources give the same bytes
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PRINT = """
@page { size: A4; margin: 18mm 17mm 20mm; }
html { font-size: 13px; }
body { background: white; }
section.chapter { break-before: page; }
section.chapter section { break-before: auto; }
h1, h2, h3, summary { break-after: avoid; }
pre, .output, table, img, tr { break-inside: avoid-page; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 10.5px; }
img { max-width: 100%; height: auto; }
table { width: 100%; overflow-wrap: anywhere; font-size: 11px; }
div.cell { margin: 0.6em 0; }
div.formula, pre, .pst-scrollable-table-container { overflow: visible; max-height: none; }
.katex-display { font-size: 0.95em; }
nav.contents { background: none; border: none; box-shadow: none; }
nav.contents li { list-style: none; margin: 0.3em 0; }
div.cover { height: 230mm; display: flex; flex-direction: column; justify-content: center; }
div.cover img { width: 100%; }
"""
READ = """
body { line-height: 1.5; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.8em; background: #f6f6fa;
  padding: 0.5em; }
img { max-width: 100%; }
table { border-collapse: collapse; font-size: 0.85em; }
td, th { border: 1px solid #d3d3de; padding: 0.2em 0.4em; }
.output pre { background: none; border-left: 3px solid #d3d3de; }
"""


def chapters():
    """Return the names of the site's pages that are the book's chapters."""
    return [*(notebook.docname for notebook in pages.notebooks()), *AFTER]


def place(name):
    """Return a chapter's name as an anchor: notebooks/03_rope -> 03_rope."""
    return name.rpartition("/")[2]


def chapter(site, name, link):
    """A page of the site -> its article as a tree, with the addresses of a book.

    link: a function (chapter's anchor, the anchor in it, or "") -> an address in the book.
    """
    path = site / f"{name}.html"
    tree = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    article = tree.select_one("article.bd-article")
    for useless in article.select(".headerlink, .launch, .report, button, script, style"):
        useless.decompose()
    for fold in article.select("details"):
        summary = fold.find("summary")
        if "exercise" in fold.get("class", []):
            summary.decompose()
        else:
            summary.name, summary.string = "p", summary.get_text(" ").strip().split("  ")[0]
        fold.name = "div"
        fold.attrs.pop("open", None)
    for element in article.select("[id]"):
        element["id"] = f"{place(name)}--{element['id']}"
    known = {place(each) for each in chapters()}
    for anchor in article.select("a[href]"):
        parts = urlsplit(anchor["href"])
        target = place(unquote(parts.path).removesuffix(".html")) if parts.path else place(name)
        if "full-size" in anchor.get("class", []):
            anchor.unwrap()
        elif parts.scheme:
            pass
        elif target in known and (not parts.path or parts.path.endswith(".html")):
            anchor["href"] = link(target, parts.fragment)
        else:
            anchor.unwrap()  # a page that the book does not have
    for image in article.select("img"):
        image["src"] = os.path.relpath(path.parent / unquote(image["src"]), site)
        image.attrs.pop("loading", None)
    return article


def one_page(site):
    """Return all chapters as one HTML page, to be printed from the site's folder."""
    parts, contents = [], []
    for name in chapters():
        article = chapter(
            site, name, lambda target, inner: f"#{target}" + f"--{inner}" * bool(inner)
        )
        title = article.find("h1").get_text().strip()
        contents.append(f'<li><a href="#{place(name)}">{escape(title)}</a></li>')
        parts.append(
            f'<section class="chapter" id="{place(name)}">{article.decode_contents()}</section>'
        )
    styles = [
        *site.glob("_static/styles/*.css"),
        *site.glob("_static/mystnb*.css"),
        *(site / "_static" / name for name in ("pygments.css", "katex/katex.css", "book.css")),
    ]
    links = "".join(f'<link rel="stylesheet" href="{s.relative_to(site)}">' for s in styles)
    cover = (pages.ROOT / "images" / "overview.svg").as_uri()
    return f"""<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">
<title>{TITLE}</title>{links}<style>{PRINT}</style></head><body><article class="bd-article">
<div class="cover"><h1>{TITLE}</h1><p>Every operation, one tensor at a time. Version {__version__}.
</p><img src="{cover}" alt=""></div>
<nav class="contents"><h2>Contents</h2><ul>{"".join(contents)}</ul></nav>{"".join(parts)}
</article></body></html>"""


def write_pdf(site, path):
    """Print the book."""
    import pikepdf
    from playwright.sync_api import sync_playwright

    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        sys.exit("the PDF is printed by Chromium, which is not here: install it, or name one in "
                 "CHROMIUM")  # fmt: skip
    whole = site / "book.html"
    whole.write_text(one_page(site), encoding="utf-8")
    number = (
        '<div style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber">'
    )
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=found)
            page = browser.new_page()
            page.goto(whole.as_uri())
            page.evaluate("document.fonts.ready")
            page.pdf(path=path, prefer_css_page_size=True, outline=True, tagged=True,
                     print_background=True, display_header_footer=True, header_template="<span/>",
                     footer_template=f"{number}</span></div>")  # fmt: skip
            browser.close()
    finally:
        whole.unlink()
    with pikepdf.open(path, allow_overwriting_input=True) as book:
        book.save(path, recompress_flate=True, deterministic_id=True,
                  object_stream_mode=pikepdf.ObjectStreamMode.generate)  # fmt: skip


def xhtml(title, body, styles="book.css"):
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE html>\n'
        '<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops" '
        f'lang="en"><head><title>{escape(title)}</title><link rel="stylesheet" href="{styles}"/>'
        f"</head><body>{body}</body></html>"
    )


def as_mathml(article):
    """Leave of each formula its MathML, which a reader of EPUBs draws."""
    for formula in article.select(".katex"):
        mathml = formula.select_one("math")
        for annotation in mathml.select("annotation"):
            annotation.decompose()
        mathml["xmlns"] = "http://www.w3.org/1998/Math/MathML"
        formula.replace_with(mathml)
    for element in article.select("[aria-hidden], [role], [tabindex], [loading]"):
        for name in ("aria-hidden", "role", "tabindex", "loading"):
            element.attrs.pop(name, None)


def write_epub(site, path):
    """Write the book as EPUB 3."""
    files, entries, images = {}, [], {}
    for name in chapters():
        article = chapter(
            site,
            name,
            lambda target, inner: f"{target}.xhtml" + f"#{target}--{inner}" * bool(inner),
        )
        as_mathml(article)
        title = article.find("h1").get_text().strip()
        for image in article.select("img"):
            images[image["src"]] = site / image["src"]
            image["src"] = image["src"].replace("_images/", "images/")
        text = xhtml(title, article.decode_contents(formatter="minimal"))
        files[f"{place(name)}.xhtml"] = re.sub(r"&nbsp;", "\N{NO-BREAK SPACE}", text)
        entries.append((place(name), title))
    listed = "".join(
        f'<li><a href="{stem}.xhtml">{escape(title)}</a></li>' for stem, title in entries
    )
    nav = f'<nav epub:type="toc" id="toc"><h1>Contents</h1><ol>{listed}</ol></nav>'
    files["nav.xhtml"] = xhtml(TITLE, nav)
    kinds = {".png": "image/png", ".svg": "image/svg+xml"}
    manifest = [f'<item id="c{stem}" href="{stem}.xhtml" media-type="application/xhtml+xml"'
                + (' properties="mathml"' if "<math" in files[f"{stem}.xhtml"] else "") + "/>"
                for stem, _ in entries]  # fmt: skip
    manifest += [
        f'<item id="i{i}" href="{src.replace("_images/", "images/")}" '
        f'media-type="{kinds[Path(src).suffix]}"/>'
        for i, src in enumerate(images)
    ]
    spine = "".join(f'<itemref idref="c{stem}"/>' for stem, _ in entries)
    files["content.opf"] = (
        '<?xml version="1.0" encoding="utf-8"?>\n<package xmlns="http://www.idpf.org/2007/opf" '
        'version="3.0" unique-identifier="id" xml:lang="en"><metadata '
        'xmlns:dc="http://purl.org/dc/elements/1.1/">'
        f'<dc:identifier id="id">{NAME}-{__version__}</dc:identifier><dc:title>{TITLE}</dc:title>'
        "<dc:language>en</dc:language><dc:creator>The llama3-scratch authors</dc:creator>"
        f'<meta property="dcterms:modified">{DATE}</meta></metadata><manifest>'
        '<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
        '<item id="css" href="book.css" media-type="text/css"/>'
        f'{"".join(manifest)}</manifest><spine><itemref idref="nav"/>{spine}</spine></package>'
    )
    files["book.css"] = READ
    container = (
        '<?xml version="1.0"?><container version="1.0" '
        'xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile '
        'full-path="EPUB/content.opf" media-type="application/oebps-package+xml"/></rootfiles>'
        "</container>"
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr(zipfile.ZipInfo("mimetype"), "application/epub+zip")
        for name, data in [("META-INF/container.xml", container),
                           *((f"EPUB/{name}", text) for name, text in files.items()),
                           *((f"EPUB/{src.replace('_images/', 'images/')}", file.read_bytes())
                             for src, file in images.items())]:  # fmt: skip
            book.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="the built site")
    parser.add_argument("folder", type=Path, help="where the two files go")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for kind, write in (("epub", write_epub), ("pdf", write_pdf)):
        path = options.folder / f"{NAME}.{kind}"
        write(options.site.resolve(), path)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
