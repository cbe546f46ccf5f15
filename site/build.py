"""Build the site: python site/build.py build/site

The notebooks with their stored outputs, the pages of `pages.py` and the playground, as plain files
that are read from disk or from any server. Nothing is executed, any warning fails the build, and
the same sources give the same bytes.

LAUNCH_REPOSITORY=owner/name, the project's public repository on GitHub, puts links to Colab, Binder
and to a prefilled report of a mistake on the pages; SITE_ADDRESS=https://..., where the site will
be, canonical links and preview pictures. Without them there are none.
"""

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import colab  # noqa: E402
import heads  # noqa: E402
import katex  # noqa: E402
import pages  # noqa: E402
import tinycss2  # noqa: E402
import weights  # noqa: E402

from llama3_scratch import load  # noqa: E402

# The theme's script runs last, so a dark page would start white: the theme is chosen earlier.
LATE_THEME = 'document.documentElement.dataset.theme = localStorage.getItem("theme") || "auto";'
EARLY_THEME = """let mode = null;
      try { mode = localStorage.getItem("mode"); } catch {}  // storage may be denied
      document.documentElement.dataset.theme =
      { light: "light", dark: "dark" }[mode]
      || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");"""
WORD = re.compile(r"[\w-]+")
PICTURE = re.compile(r'(<a [^>]*>\s*)?(<img\b[^>]*\bsrc="([^"]+)"[^>]*>)')
NAVIGATION = """<nav aria-label="Book">
      <a href="../index.html">Llama 3 from scratch</a>
      <a href="../{first}.html">Overview</a>
    </nav>
"""


def gather(folder):
    """Put everything that Sphinx reads into a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(ROOT / "images", folder / "images", ignore=shutil.ignore_patterns("*.py", "_*"))
    (folder / "notebooks").mkdir()
    for notebook in pages.notebooks():
        shutil.copy(notebook.path, folder / "notebooks")
    for name, text in pages.all_pages().items():
        page = folder / f"{name}.md"
        page.parent.mkdir(exist_ok=True)
        page.write_text(text, encoding="utf-8")
    shutil.copy(pages.CARD.parent / "loss.svg", folder)


def run_sphinx(source, site, work):
    """Run Sphinx -> its exit status."""
    from sphinx.cmd.build import main

    os.environ["SOURCE_DATE_EPOCH"] = "0"
    options = ["-W", "-n", "--keep-going", "-q", "-E", "-b", "html"]
    return main([*options, "-c", str(HERE), "-d", str(work), str(source), str(site)])


def used_icons(texts):
    """Return the names of the theme's icons that the pages and its script use."""
    icon = re.compile(r"fa(?:-solid|-regular|-brands|[srb]) fa-([a-z0-9-]+)")
    return sorted({name for text in texts for name in icon.findall(text)})


def icon_styles(script, names):
    """Return the theme's icons as masks in a style sheet: a few kB in place of 1.5 MB of script."""
    rules = [
        ".fa-solid, .fa-regular, .fa-brands, .fas { display: inline-block; height: 1em; width: 1em;"
        " background: currentColor; -webkit-mask: var(--icon) center / contain no-repeat;"
        " mask: var(--icon) center / contain no-repeat; vertical-align: -0.125em; }"
        " .fa-solid::before, .fa-solid::after { content: none; }"
    ]
    for name in names:
        found = re.search(
            rf'(?<![\w-])"?{re.escape(name)}"?:\[(\d+),(\d+),\[[^\]]*\],"[0-9a-f]*","([^"]*)"\]',
            script,
        )
        if found:
            width, height, path = found.groups()
            picture = (
                f"%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}'%3E"
                f"%3Cpath d='{path}'/%3E%3C/svg%3E"
            )
            rules.append(f'.fa-{name} {{ --icon: url("data:image/svg+xml,{picture}"); }}')
    return "\n".join(rules) + "\n"


def used_rules(rules, words):
    """Return as text the rules of a parsed style sheet whose classes are all among the words."""
    kept = []
    for rule in rules:
        if rule.type == "qualified-rule":
            selectors = split_selectors(tinycss2.serialize(rule.prelude))
            selectors = [selector for selector in selectors if is_used(selector, words)]
            if selectors:
                kept.append(f"{','.join(selectors)}{{{tinycss2.serialize(rule.content)}}}")
        elif rule.type == "at-rule" and rule.content and rule.at_keyword in ("media", "supports"):
            inside = tinycss2.parse_rule_list(rule.content, True, True)
            inner = used_rules(inside, words)
            if inner:
                kept.append(f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inner}}}")
        elif rule.type == "at-rule" and rule.at_keyword == "font-face":
            pass  # the theme's only fonts are its icons
        elif rule.type != "whitespace":
            kept.append(rule.serialize())
    return "".join(kept)


def split_selectors(prelude):
    """ "a,b:is(c,d)" -> ["a", "b:is(c,d)"]."""
    parts, depth = [""], 0
    for character in prelude:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def is_used(selector, words):
    """Whether a page can match a selector; what is in parentheses or brackets is ignored."""
    asked = re.sub(r"\([^()]*\)|\[[^\]]*\]", "", re.sub(r"\([^()]*\)", "", selector))
    return all(name in words for name in re.findall(r"[.#](-?[A-Za-z_][\w-]*)", asked))


def prune(site):
    """Delete what no page loads: source maps, icon fonts, search scripts on other pages."""
    static = site / "_static"
    for pattern in ("*.map", "*.LICENSE.txt", "*.html", "logo_*", "file.png", "*us.png"):
        for path in static.rglob(pattern):
            path.unlink()
    for path in (site / ".buildinfo", site / "objects.inv"):
        path.unlink(missing_ok=True)
    shutil.rmtree(static / "vendor", ignore_errors=True)
    shutil.rmtree(static / "locales", ignore_errors=True)
    script = static / "scripts" / "fontawesome.js"
    text = script.read_text(encoding="utf-8")
    script.unlink()
    html = {page: page.read_text(encoding="utf-8") for page in sorted(site.rglob("*.html"))}
    theme = [path.read_text(encoding="utf-8") for path in sorted(static.glob("scripts/*.js"))]
    icons = used_icons([*html.values(), *theme])
    (static / "icons.css").write_text(icon_styles(text, icons), encoding="utf-8")
    scripts = [path.read_text(encoding="utf-8") for path in sorted(static.rglob("*.js"))]
    words = {word for text in [*html.values(), *scripts] for word in WORD.findall(text)}
    for css in [*static.glob("styles/*.css"), *static.glob("mystnb*.css"), static / "basic.css"]:
        rules = tinycss2.parse_stylesheet(css.read_text(encoding="utf-8"), True, True)
        css.write_text(used_rules(rules, words), encoding="utf-8")
    if not any(LATE_THEME in content for content in html.values()):
        raise ValueError("the theme chooses light or dark in other words than LATE_THEME")
    about = {page: heads.description(content, page) for page, content in html.items()}
    (static / "descriptions.js").write_text(
        "const DESCRIPTIONS = "
        + json.dumps({p.relative_to(site).as_posix(): a for p, a in about.items()}, indent=0)
        + ";\n", encoding="utf-8",
    )  # fmt: skip
    for page, content in html.items():
        # A figure opens alone, so that its text can be enlarged on a phone.
        content = PICTURE.sub(
            lambda m: m[0] if m[1] else f'<a class="full-size" href="{m[3]}">{m[2]}</a>', content
        )
        if page.parent.name == "notebooks":
            content = content.replace("</a></h1>", f"</a></h1>\n{launch_links(page.stem)}", 1)
        content = heads.written(content, page.relative_to(site), about[page])
        content = re.sub(r"\s*<(script|link)[^>]*fontawesome[^>]*>(</script>)?", "", content)
        content = content.replace(LATE_THEME, EARLY_THEME)
        if page.name == "search.html":
            book = '<script defer="defer" src="_static/book.js'
            first = '<script src="_static/descriptions.js"></script>'
            content = content.replace(book, f"{first}\n    {book}")
        else:
            search = "(?:searchtools|language_data|searchindex)"
            content = re.sub(rf'\s*<script src="[^"]*{search}\.js[^"]*"></script>', "", content)
        page.write_text(content, encoding="utf-8")


def launch_links(stem):
    """Return links to a notebook in Colab and Binder, as HTML; "" without a public repository."""
    repository = colab.repository()
    if not repository:
        return ""
    path = quote(f"notebooks/{stem}.ipynb", safe="")
    binder = f"https://mybinder.org/v2/gh/{repository}/HEAD?labpath={path}"
    places = (
        f'<a href="{colab.address(repository, stem)}">Colab</a> or <a href="{binder}">Binder</a>'
    )
    return f'<p class="launch">Run it elsewhere: {places}.</p>'


def add_playground(site):
    """Replace the playground's placeholder by the playground, with links to the book."""
    folder = site / "playground"
    shutil.copytree(HERE / "playground", folder, dirs_exist_ok=True)
    weights.write(folder, *load("tiny"))
    weights.write_int4(folder, load("tiny-int4").weights)
    page = folder / "index.html"
    text = page.read_text(encoding="utf-8")
    bar = '<div class="bar">\n'
    text = text.replace(bar, f"{bar}    {NAVIGATION.format(first=pages.first())}", 1)
    link = '<a href="../{}.html">{}</a>'
    text = re.sub("<cite>.*?</cite>", lambda cite: pages.linked(cite[0], link), text)
    text = heads.forbidding(text)
    page.write_text(text, encoding="utf-8")


def build(site, work=None):
    """Build into `site`, with scratch files in `work`. -> Sphinx's exit status."""
    site = Path(site).resolve()
    work = Path(work or site.parent / "site-work").resolve()
    shutil.rmtree(site, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    gather(work / "source")
    status = run_sphinx(work / "source", site, work / "doctrees")
    if status:
        return status
    shutil.copytree(katex.fetch(), site / "_static" / "katex", dirs_exist_ok=True)
    (site / "_static" / "katex" / "katex.min.js").unlink()
    prune(site)
    add_playground(site)
    (site / ".nojekyll").touch()
    (site / "llms.txt").write_text(pages.llms(), encoding="utf-8")
    (site / "llms-full.txt").write_text(pages.llms_full(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where the site goes; what is there is replaced")
    options = parser.parse_args()
    status = build(options.folder)
    if not status:
        files = [path for path in Path(options.folder).rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        print(f"{options.folder}/index.html: {len(files)} files, {size / 1e6:.1f} MB")
    sys.exit(status)
