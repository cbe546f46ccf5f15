"""A Sphinx extension: alt texts, folds, unbroken shapes, links from terms and papers.

The first use of a glossary term on each page becomes a link to its definition, and each arXiv
number a link to its entry in the bibliography.
"""

import re

from docutils import nodes
from pages import alphabet
from sphinx import addnodes
from sphinx.util.nodes import make_refnode

ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
SHAPE = re.compile(r"\[[\w., ]+\]")
NO_TERMS = ("glossary", "bibliography", "api", "changelog", "search", "playground/index")
CLOSED = (
    nodes.title, nodes.reference, nodes.literal, nodes.literal_block, nodes.math, nodes.math_block,
    nodes.raw, nodes.term, nodes.caption, nodes.thead, addnodes.pending_xref, addnodes.toctree,
    addnodes.compact_paragraph, addnodes.desc_signature,
)  # fmt: skip


def keep_alt_texts():
    """Copy a picture's `alt`, stored with the cell's output, to the page."""
    from myst_nb.core.render import NbElementRenderer

    render_image = NbElementRenderer.render_image
    if getattr(render_image, "keeps_alt", False):
        return

    def with_alt(self, data):
        pictures = render_image(self, data)
        alt = data.output_metadata.get(data.mime_type, {}).get("alt")
        for picture in pictures:
            if alt and isinstance(picture, nodes.image):
                picture["alt"] = alt
        return pictures

    with_alt.keeps_alt = True
    NbElementRenderer.render_image = with_alt


def terms(app):
    """-> {term: (docname, anchor)}; all terms of a definition have its anchor."""
    objects = app.env.get_domain("std").get_objects()
    known = {name: (doc, anchor) for name, _, kind, doc, anchor, _ in objects if kind == "term"}
    return known | {letter: ("glossary", f"letter-{letter.lower()}") for letter in alphabet()}


def pattern(names):
    """Return all terms as one pattern, longest first; letters and acronyms are case-sensitive."""
    parts = []
    for name in sorted(names, key=lambda name: (-len(name), name)):
        cased = len(name) == 1 or any(c.isupper() for c in name)
        plural = "" if len(name) == 1 else "(?:s|es)?"
        parts.append(f"{re.escape(name)}{plural}" if cased else f"(?i:{re.escape(name)}{plural})")
    return re.compile(r"(?<![\w'’/.\-])(" + "|".join(parts) + r")(?![\w'’/\-])")


def meant(name, text):
    """Whether a term is meant: key, query or value has its meaning here only beside another one."""
    trio = ("key", "quer", "value")
    own = next((stem for stem in trio if name.startswith(stem) and len(name) <= 7), None)
    return own is None or any(stem in text for stem in trio if stem != own)


def link(app, doctree, docname):
    """Insert the links into one page."""
    known = terms(app) if docname not in NO_TERMS and not docname.startswith("generic") else {}
    names = {name.lower() if len(name) > 1 else name: name for name in known}
    find = pattern(known) if known else None
    builder, done = app.builder, set()

    def term_links(text):
        """Text -> what replaces it: pieces of text, and links from terms that have none yet."""
        position = 0
        for match in find.finditer(text) if find else ():
            word = match[1]
            candidates = [word, word.lower(), word.lower().removesuffix("s")]
            candidates.append(word.lower().removesuffix("es"))
            name = next((names[c] for c in candidates if c in names), None)
            if name is None or known[name] in done or not meant(name, text):
                continue
            done.add(known[name])
            target, anchor = known[name]
            yield text[position : match.start()]
            node = make_refnode(builder, docname, target, anchor, nodes.Text(word))
            node["classes"].append("term-link")
            yield node
            position = match.end()
        yield text[position:]

    def paper_links(text):
        position = 0
        for match in ARXIV.finditer(text):
            if docname == "bibliography":
                break
            yield from term_links(text[position : match.start()])
            anchor = "arxiv-" + match[1].replace(".", "-")
            yield make_refnode(builder, docname, "bibliography", anchor, nodes.Text(match[0]))
            position = match.end()
        yield from term_links(text[position:])

    for node in list(doctree.findall(nodes.Text)):
        ancestor = node.parent
        while ancestor is not None and not isinstance(ancestor, CLOSED):
            ancestor = ancestor.parent
        if ancestor is not None:
            continue
        pieces = [nodes.Text(p) if isinstance(p, str) else p for p in paper_links(str(node)) if p]
        if any(not isinstance(piece, nodes.Text) for piece in pieces):
            node.parent.replace(node, pieces)


def keep_shapes_together(app, doctree, docname):
    """Prevent line breaks inside the brackets of a shape, in narrow tables."""
    for entry in doctree.findall(nodes.entry):
        for node in list(entry.findall(nodes.Text)):
            whole = SHAPE.sub(lambda shape: shape[0].replace(" ", "\N{NO-BREAK SPACE}"), str(node))
            if whole != node:
                node.parent.replace(node, nodes.Text(whole))


def fold_exercises(app, doctree, docname):
    """Make each exercise a fold, open at first, from the line after its heading to its solution."""
    for section in list(doctree.findall(nodes.section)):
        if section[0].astext().startswith("Exercise "):
            tags = ["tag_solution" in child.get("classes", ()) for child in section]
            end = tags.index(True) + 1 if True in tags else len(section)
            section.insert(end, nodes.raw("", "</details>", format="html"))
            fold = '<details class="exercise" open><summary>The task</summary>'
            section.insert(1, nodes.raw("", fold, format="html"))


def setup(app):
    keep_alt_texts()
    app.connect("doctree-resolved", fold_exercises)
    app.connect("doctree-resolved", keep_shapes_together)
    app.connect("doctree-resolved", link)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
