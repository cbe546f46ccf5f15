"""The site's files, as `make site` builds them: links, pictures, formulas, size, same bytes."""

import filecmp
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browsing import NOTEBOOKS, build_once, need_the_sites_packages, run

need_the_sites_packages()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build_once(tmp_path_factory)


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


def read(folder):
    return {path: Page(path) for path in sorted(folder.rglob("*.html"))}


@pytest.fixture(scope="module")
def pages(site):
    return read(site)


def target(page, address):
    """The file that an address on a page names, and the anchor in it."""
    parts = urlsplit(address)
    path = page.path.parent / unquote(parts.path) if parts.path else page.path
    return Path(os.path.normpath(path)), unquote(parts.fragment)


def outside(address):
    return urlsplit(address).scheme in ("http", "https") or address.startswith("//")


def lost_links(pages):
    """Return the links to files or anchors of the site that do not exist."""
    made_by_scripts, lost = {"pst-back-to-top", "", "main-content"}, []
    for page in pages.values():
        for address in page.links:
            if urlsplit(address).scheme:
                continue
            path, anchor = target(page, address)
            found = pages[path].ids | made_by_scripts if path in pages else {""}
            if not path.exists() or anchor not in found:
                lost.append(f"{page.path.name}: {address}")
    return lost


def wrong_loads(folder, pages):
    """Return what pages and styles load from other hosts, and what does not exist."""
    wrong = []
    for page in pages.values():
        loads = [address for address in page.loads if not address.startswith("data:")]
        wrong += [f"{page.path.name}: {address}" for address in loads
                  if outside(address) or not target(page, address)[0].exists()]  # fmt: skip
    for path in folder.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for address in re.findall(r"url\([\"']?([^\"')]+)|@import \"([^\"]+)", text):
            address = "".join(address)
            if address.startswith(("data:", "#")):
                continue
            if outside(address) or not (path.parent / urlsplit(address).path).exists():
                wrong.append(f"{path.name}: {address}")
    return wrong


def undescribed(pages):
    """Return the pictures without a description."""
    return [f"{page.path.name}: {image.get('src')}" for page in pages.values()
            for image in page.images if len(image.get("alt") or "") <= 20]  # fmt: skip


def loaded(page):
    """Return the bytes of a page and of all that it loads at once."""
    files = {page.path} | {target(page, address)[0] for address in page.loads
                           if not address.startswith("data:")}  # fmt: skip
    return sum(path.stat().st_size for path in files)


def different(one, other):
    """Return the names of files that are not in both folders with the same bytes."""
    names = [{path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
             for folder in (one, other)]  # fmt: skip
    _, unequal, _ = filecmp.cmpfiles(one, other, names[0] & names[1], shallow=False)
    return names[0] ^ names[1] | set(unequal)


@pytest.fixture
def bad(tmp_path):
    """A page with one of each fault: the control of the functions above."""
    (tmp_path / "index.html").write_text(
        '<html lang="en"><h1 id="top">x</h1><a href="none.html">a</a><a href="#nowhere">b</a>'
        '<a href="#top">c</a><img src="here.png" alt="x"><img src="https://example.com/x.png" '
        'alt="a picture that is described"><script src="none.js"></script>'
    )
    (tmp_path / "here.png").write_bytes(bytes(1000))
    style = '@import "https://example.com/y.css"; a { background: url(none.svg) }'
    (tmp_path / "x.css").write_text(style)
    return tmp_path


def test_faults_are_found(bad):
    pages = read(bad)
    assert lost_links(pages) == ["index.html: none.html", "index.html: #nowhere"]
    assert sorted(wrong_loads(bad, pages)) == [
        "index.html: https://example.com/x.png", "index.html: none.js",
        "x.css: https://example.com/y.css", "x.css: none.svg",
    ]  # fmt: skip
    assert undescribed(pages) == ["index.html: here.png"]
    page = pages[bad / "index.html"]
    page.loads = ["here.png", "data:image/png;base64,AAAA"]
    assert loaded(page) == 1000 + page.path.stat().st_size


def test_every_notebook_has_a_page_and_a_link_on_the_front_page(site, pages):
    front = pages[site / "index.html"].links
    for path in NOTEBOOKS:
        assert site / "notebooks" / f"{path.stem}.html" in pages
        assert f"notebooks/{path.stem}.html" in front
    text = (site / "index.html").read_text(encoding="utf-8")
    times = re.findall(r"<td><p>\d+\xa0min</p></td>\s*<td><p>(?:\d+\xa0min|–)", text)
    assert len(times) == len(NOTEBOOKS)


def test_next_goes_through_the_notebooks_in_order(site):
    for here, there in zip(NOTEBOOKS, NOTEBOOKS[1:], strict=False):
        text = (site / "notebooks" / f"{here.stem}.html").read_text(encoding="utf-8")
        assert re.search(rf'class="right-next"\s+href="{there.stem}.html"', text)


def test_the_pages_have_no_fault(site, pages):
    """Links and anchors exist, nothing comes from other hosts, pictures are described and open."""
    assert not lost_links(pages)
    assert not wrong_loads(site, pages)
    assert not undescribed(pages)
    for page in pages.values():
        assert page.lang == "en"
        assert {image["src"] for image in page.images} <= set(page.links)  # opens at full size


def test_the_alt_texts_are_those_of_the_notebooks(site, pages):
    for path in NOTEBOOKS:
        shown = {image["alt"] for image in pages[site / "notebooks" / f"{path.stem}.html"].images}
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    assert output["metadata"]["image/png"]["alt"] in shown


def test_the_site_is_small(site, pages):
    sizes = {path.relative_to(site).as_posix(): loaded(page) for path, page in pages.items()}
    total = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    print(f"\nfront page {sizes['index.html'] / 1e3:.0f} kB, site {total / 1e6:.1f} MB")
    assert sizes["index.html"] < 500e3
    for path in NOTEBOOKS:
        assert sizes[f"notebooks/{path.stem}.html"] < 1.5e6
    assert total < 40e6
    assert not list(site.rglob("*.map"))


def test_no_formula_is_left_as_text(site):
    for path in NOTEBOOKS:
        text = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        source = path.read_text(encoding="utf-8")
        assert text.count('<span class="katex-display">') == source.count("$$") // 2


def test_a_bad_formula_is_refused(site):
    done = run("-c", "import sys; sys.path.insert(0, 'site'); from katex import Renderer\n"
               "Renderer().render(r'\\frac{1', True)")  # fmt: skip
    assert "ValueError" in done.stderr and "KaTeX" in done.stderr


OUTWARD = re.compile(r'\n<p class="(?:launch|report)">.*</p>')


@pytest.mark.thorough
def test_a_second_build_differs_only_in_the_outward_links(site, tmp_path):
    """The same bytes; a public repository only adds its links."""
    again = tmp_path / "again"
    done = run("site/build.py", again, LAUNCH_REPOSITORY="a-reader/a.copy")
    assert done.returncode == 0, done.stderr
    html = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    with_article = html - {"playground/index.html", "search.html"}
    assert different(site, again) == with_article  # which is the control of the next comparison
    launched = read(again)
    assert not wrong_loads(again, launched)
    for path in NOTEBOOKS:
        page = again / "notebooks" / f"{path.stem}.html"
        *report, repository = [a for a in launched[page].links if "a-reader" in a]
        assert report[:2] == [
            f"https://colab.research.google.com/github/a-reader/a.copy/blob/colab/notebooks/{path.name}",
            f"https://mybinder.org/v2/gh/a-reader/a.copy/HEAD?labpath=notebooks%2F{path.name}",
        ]
        assert f"Page%3A%20notebooks/{path.stem}.html" in report[2]
        assert repository == "https://github.com/a-reader/a.copy"
    for name in with_article:
        page = again / name
        text = page.read_text(encoding="utf-8")
        page.write_text(OUTWARD.sub("\n", text), encoding="utf-8")
    assert not different(site, again)


def test_a_bad_public_place_is_refused():
    code = "import sys; sys.path.insert(0, 'site'); import build, heads; "
    code += "print([build.launch_links('x'), heads.address()])"
    assert run("-c", code, LAUNCH_REPOSITORY="", SITE_ADDRESS="").stdout == "['', '']\n"
    done = run("-c", code, LAUNCH_REPOSITORY='x"y')
    assert "expected owner/name" in done.stderr
    done = run("-c", code, LAUNCH_REPOSITORY="", SITE_ADDRESS="ftp://x")
    assert "expected https://" in done.stderr


def test_every_page_forbids_other_hosts_and_says_what_it_is_about(site):
    about = json.loads(
        (site / "_static" / "descriptions.js").read_text(encoding="utf-8")[21:].rstrip(";\n")
    )
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        head = text.partition("</head>")[0]
        policy = head.index("default-src 'none'")
        assert policy < min(head.find(tag) % len(text) for tag in ("<script", "<link", "<style"))
        assert head.count('name="description"') == 1, path.name
        assert "canonical" not in head and "og:image" not in head  # no public address is set
        title = re.search("<title>(.*?)</title>", head)[1]
        assert len(set(title.split(" &#8212; "))) == len(title.split(" &#8212; "))
        if path.parent.name != "playground":
            assert len(about[path.relative_to(site).as_posix()]) > 20


def test_the_address_of_the_site_gives_canonical_links_and_previews():
    code = (
        "import sys; sys.path.insert(0, 'site'); import heads; from pathlib import Path\n"
        'html = \'<meta charset="utf-8" /><title>A - A</title><img src="../_images/a.png">\'\n'
        "print(heads.written(html, Path('notebooks/a.html'), 'what \"it\" is'))"
    )
    shown = run("-c", code, LAUNCH_REPOSITORY="", SITE_ADDRESS="https://a.io/b").stdout
    assert '<link rel="canonical" href="https://a.io/b/notebooks/a.html">' in shown
    assert 'og:image" content="https://a.io/b/_images/a.png">' in shown
    assert "<title>A</title>" in shown and "what &quot;it&quot; is" in shown


def test_assistants_get_the_text_without_solutions(site):
    short = (site / "llms.txt").read_text(encoding="utf-8")
    for address in re.findall(r"\]\(([^)]+)\)", short):
        assert (site / address).exists(), address
    text = (site / "llms-full.txt").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            hidden = "solution" in cell["metadata"].get("tags", [])
            assert ("".join(cell["source"]) in text) != hidden, cell["id"]


def test_the_copies_for_colab_install_the_package_and_lead_outside(tmp_path):
    """Every picture and link leads to a public place; nothing else of a notebook is changed."""
    done = run("site/colab.py", tmp_path, LAUNCH_REPOSITORY="a-reader/a.copy")
    assert done.returncode == 0, done.stderr
    for path in NOTEBOOKS:
        old = json.loads(path.read_text(encoding="utf-8"))["cells"]
        new = json.loads((tmp_path / "notebooks" / path.name).read_text(encoding="utf-8"))["cells"]
        install = new.pop(1)
        assert "[notebooks] @ git+https://github.com/a-reader/a.copy" in install["source"]
        for cell, after in zip(old, new, strict=True):
            before, after = "".join(cell["source"]), "".join(after["source"])
            if cell["cell_type"] == "code":
                assert before == after
                continue
            near = re.findall(r"\]\((?!https://|#)[^)]+\)", after)
            assert not near, near
            assert re.sub(r"\]\([^)]+\)", "", before) == re.sub(r"\]\([^)]+\)", "", after)


def test_every_report_of_a_mistake_is_linked(site, pages):
    links = pages[site / "mistakes.html"].links
    threads = [a for a in links if re.fullmatch(r"https://github.com/[^/]+/[^/]+/issues/\d+", a)]
    assert len(set(threads)) >= 50
