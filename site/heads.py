"""What the head and the foot of every page get: a policy, a description, a preview, a report."""

import os
import re
from html import escape, unescape
from urllib.parse import quote

import colab
import pages

# Pages load nothing from other hosts. The theme has scripts and styles in the page itself.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'"
)
CHARSET = re.compile(r'<meta charset="utf-8" ?/?>')
TITLE = re.compile(r"<title>(.*?) (?:&#8212;|-) (.*?)</title>")
PICTURE = re.compile(r'<img\b[^>]*\bsrc="(?:\.\./)*(_images/[^"]+\.png)"')
LONGEST = 200  # characters of a description


def forbidding(html):
    """Add the content security policy, before anything that it forbids."""
    meta = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    changed, n = CHARSET.subn(lambda charset: f"{charset[0]}\n  {meta}", html, count=1)
    if n != 1:
        raise ValueError("a page without its character set")
    return changed


def description(html, path):
    """Return what a page is about: a notebook's question, otherwise its first paragraph."""
    for notebook in pages.notebooks():
        if path.stem == notebook.path.stem:
            return notebook.question
    article = html[html.find("</h1>") :]
    first = re.search(r"<p>(.+?)</p>", article, re.DOTALL)
    if not first:
        return ""
    text = " ".join(unescape(re.sub(r"<[^>]+>", "", first[1])).split())
    return text if len(text) <= LONGEST else text[:LONGEST].rpartition(" ")[0] + " ..."


def address():
    """Return where the site will be, with a slash at its end; "" if that is not known."""
    named = os.environ.get("SITE_ADDRESS", "")
    if named and not re.fullmatch(r"https?://[\w.:/-]+", named):
        raise ValueError(f"SITE_ADDRESS is {named!r}, expected https://...")
    return named and named.rstrip("/") + "/"


def written(html, path, about):
    """Return a page with its policy, description, preview and report link; its title once."""
    html = TITLE.sub(lambda t: f"<title>{t[1]}</title>" if t[1] == t[2] else t[0], html, count=1)
    title, site = re.search(r"<title>(.*?)</title>", html)[1], address()
    metas = [f'<meta property="og:title" content="{title}">',
             '<meta property="og:type" content="article">']  # fmt: skip
    if about:
        metas.append(f'<meta name="description" content="{escape(about)}">')
        metas.append(f'<meta property="og:description" content="{escape(about)}">')
    if site:
        metas.append(f'<link rel="canonical" href="{site}{path.as_posix()}">')
        metas.append(f'<meta property="og:url" content="{site}{path.as_posix()}">')
        shown = PICTURE.search(html)
        if shown:
            metas.append(f'<meta property="og:image" content="{site}{shown[1]}">')
    html = html.replace("</title>", "</title>\n    " + "\n    ".join(metas), 1)
    return forbidding(html).replace("</article>", f"</article>\n{report(path, title)}", 1)


def report(path, title):
    """Return a link that begins the report of a mistake; "" without a public repository."""
    repository = colab.repository()
    if not repository:
        return ""
    words = unescape(title).partition(" \N{EM DASH} ")[0]
    body = (
        f"Page: {path.as_posix()}\n\nWhat it says, what it should say, and how that can be seen:\n"
    )
    new = f"https://github.com/{repository}/issues/new"
    query = f"title={quote(f'Mistake: {words}')}&body={quote(body)}"
    return (
        f'<p class="report"><a href="{new}?{escape(query)}">Report a mistake on this page</a> · '
        f'<a href="https://github.com/{repository}">The repository</a></p>'
    )
