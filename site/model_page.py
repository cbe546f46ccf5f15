"""The page of the whole model.py: prose left, code right, each line linked to its derivation."""

import ast
import re
from html import escape
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "llama3_scratch" / "model.py"

# The section of a function ("") and of single lines, by their first words: (notebook, section).
# Any other line belongs to the section of the line before it.
SECTIONS = {
    "": {"": (0, "What happens to it")},
    "linear": {"": (4, "One head out of the matrices")},
    "rms_norm": {
        "": (2, "The function"),
        "wide =": (2, "Why float32"),
        "normed =": (2, "One row by hand"),
        "return": (2, "Where the weight comes in"),
    },
    "rope_frequencies": {
        "": (3, "A frequency for each pair"),
        "scaling =": (3, "Longer texts: Llama 3.1 and 3.2"),
    },
    "rotations_at": {"": (3, "The whole vector")},
    "causal_mask": {"": (4, "No looking ahead")},
    "rotate": {"": (3, "The whole vector"), "pairs =": (3, "One pair on a circle"),
               "turned =": (3, "The whole vector")},
    "attend": {
        "": (5, "The package's functions"),
        "keys_read =": (5, "N heads of queries, K heads of keys and values"),
        "products =": (4, "One row, longhand"),
        "scores =": (4, "Why the square root of H"),
        "masked =": (4, "No looking ahead"),
        "probabilities =": (4, "One row, longhand"),
        "return": (4, "One row, longhand"),
    },
    "attention": {
        "": (5, "One head, from the rows to what it writes"),
        "rotated_query =": (3, "The whole vector"),
        "keys, values =": (5, "What sharing saves"),
        "outputs =": (5, "The package's functions"),
        "return": (5, "Back into the stream"),
    },
    "feed_forward": {
        "": (6, "Three matrices"),
        "gate =": (6, "SiLU"),
        "up =": (6, "One neuron by hand"),
    },
    "block": {
        "": (7, "One layer"),
        "normed =": (2, "The function"),
        "middle =": (5, "Back into the stream"),
        "renormed =": (6, "What comes in"),
        "return": (6, "What comes in"),
    },
    "layer": {"": (7, "One layer")},
    "forward": {
        "": (7, "The whole model in one breath"),
        "start =": (7, "Made once, read by every layer"),
        "stream = weights": (2, "A token becomes a row"),
        "for i in": (7, "All layers"),
        "normed =": (7, "The next token"),
    },
}  # fmt: skip


def parts(source):
    """-> [(function or "", its docstring, [line numbers of its code])], in the source's order."""
    tree = ast.parse(source)
    lines = source.splitlines()
    found, top = [], []
    for node in tree.body:
        numbers = range(node.lineno, node.end_lineno + 1)
        if isinstance(node, ast.FunctionDef):
            doc = node.body[0]
            hidden = range(doc.lineno, doc.end_lineno + 1)
            found.append(
                (node.name, ast.get_docstring(node), [n for n in numbers if n not in hidden])
            )
        elif isinstance(node, ast.Import | ast.ImportFrom):
            top += numbers
    used = {n for _, _, numbers in found for n in numbers} | set(top)
    docs = set()
    for node in [tree, *[n for n in tree.body if isinstance(n, ast.FunctionDef)]]:
        docs |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lost = [n for n, line in enumerate(lines, 1) if line.strip() and n not in used | docs]
    if lost:
        raise ValueError(f"lines {lost} of model.py would be missing on its page")
    return [("", ast.get_docstring(tree), top), *found]


def sections_of(name, numbers, lines, section):
    """{line number: (docname, anchor, title, heading)} of one function."""
    table = dict(SECTIONS[name])
    current, of_line, unused = table.pop(""), {}, set(table)
    for number in numbers:
        for words, place in table.items():
            if lines[number - 1].strip().startswith(words):
                current = place
                unused.discard(words)
        of_line[number] = (*section(*current), current[1])
    if unused:
        raise KeyError(f"{name} in model.py has no line with {sorted(unused)}")
    return of_line


def highlighted(lines):
    """Lines of Python -> their HTML, with Pygments' classes."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    html = highlight("\n".join(lines), PythonLexer(stripnl=False), HtmlFormatter(nowrap=True))
    return html.split("\n")[: len(lines)]


def text(doc):
    """Return a paragraph as HTML; `words` become code, arXiv numbers link to the bibliography."""
    html = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(" ".join(doc.split()), quote=False))
    return re.sub(
        r"arXiv:(\d{4})\.(\d{4,5})", r'<a href="bibliography.html#arxiv-\1-\2">\g<0></a>', html
    )


def markdown(section):
    """The page. `section(notebook, heading)` -> (docname, anchor, title)."""
    source = SOURCE.read_text(encoding="utf-8")
    lines = source.splitlines()
    code = highlighted(lines)
    if len(code) != len(lines) or set(SECTIONS) != {name for name, _, _ in parts(source)}:
        raise ValueError("the functions of model.py are not those of SECTIONS")
    html = []
    for name, doc, numbers in parts(source):
        of_line = sections_of(name, numbers, lines, section)
        first, _, rest = doc.partition("\n\n")
        prose, links, rows = [], {}, []
        if name:
            prose.append(f'<h2 id="{name.replace("_", "-")}"><code>{name}</code></h2>')
            shapes, _, more = first.partition(". ") if "->" in first else ("", "", first)
            prose.append(f'<p class="shape">{text(shapes)}</p>')
            rest = f"{more}\n\n{rest}"
        else:
            prose.append('<h2 id="from-the-top">From the top</h2>')
            rest = doc
        prose += [f"<p>{text(part)}</p>" for part in re.split(r"\n\s*\n", rest) if part.strip()]
        for number in numbers:
            docname, anchor, title, heading = of_line[number]
            href = f"{docname}.html#{anchor}"
            where = f"{title}: {heading}"
            short = f"{docname.rpartition('/')[2][:2]} · {heading}"
            links.setdefault(href, (short, []))[1].append(number)
            rows.append(
                f'<span class="codeline" id="L{number}"><a class="line" href="{href}" '
                f'title="{escape(where)}" aria-label="line {number}, {escape(where)}">{number}</a>'
                f"{code[number - 1]}</span>\n"
            )
        steps = "".join(
            f'<li>{spans(on)}: <a href="{href}">{escape(short)}</a></li>'
            for href, (short, on) in links.items()
        )
        prose.append(f'<ul class="steps">{steps}</ul>')
        html.append(
            f'<div class="part"><div class="prose">{"".join(prose)}</div>'
            f'<div class="highlight"><pre>{"".join(rows)}</pre></div></div>'
        )
    return (
        "---\nhtml_theme.sidebar_secondary.remove: true\n---\n\n# The whole model\n\n"
        f"All {len(lines)} lines of `llama3_scratch/model.py`, its docstrings on the left, "
        "its code on the right. A line's number leads to the notebook section that derives it.\n\n"
        f'````{{raw}} html\n<div class="model">{"".join(html)}</div>\n````\n'
    )


def spans(numbers):
    """[13, 14, 17] -> "lines 13–14, 17"."""
    runs = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    words = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)
    return ("lines " if len(numbers) > 1 else "line ") + words
