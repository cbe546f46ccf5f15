"""Write the notebooks for Colab: LAUNCH_REPOSITORY=owner/name python site/colab.py build/colab

Colab opens a notebook alone. So each copy begins with a cell that installs the package where it is
missing, its pictures come from the public repository, and its links lead to other copies. The
workflow that publishes the site puts them on the branch `colab`, to which the site's links lead.
"""

import argparse
import json
import os
import re
from pathlib import Path

import pages

BRANCH = "colab"
INSTALL = """import importlib.util

if importlib.util.find_spec("llama3_scratch") is None:
    print("llama3-scratch is not here: installing it, once in each session (a minute or two)")
    %pip install --quiet "llama3-scratch[notebooks] @ git+https://github.com/{repository}"
"""


def repository():
    """Return owner/name of the public repository on GitHub; "" if there is none."""
    name = os.environ.get("LAUNCH_REPOSITORY", "")
    if name and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"LAUNCH_REPOSITORY is {name!r}, expected owner/name")
    return name


def address(repository, stem):
    """Return where Colab opens a copy."""
    colab = "https://colab.research.google.com/github"
    return f"{colab}/{repository}/blob/{BRANCH}/notebooks/{stem}.ipynb"


def outward(markdown, repository):
    """Return a Markdown cell with the addresses that hold outside the repository."""
    raw = f"https://raw.githubusercontent.com/{repository}/main"
    text = re.sub(r"\]\(\.\./(images/[^)]+)\)", rf"]({raw}/\1)", markdown)
    text = re.sub(r"\]\(\.\./([^)]+)\)", rf"](https://github.com/{repository}/blob/main/\1)", text)
    return re.sub(
        r"\]\((\d\d_\w+)\.ipynb(#[^)]*)?\)", lambda m: f"]({address(repository, m[1])})", text
    )


def copy(notebook, repository):
    """Return a notebook's copy, as a dict."""
    content = json.loads(notebook.path.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = outward("".join(cell["source"]), repository)
    install = {"cell_type": "code", "id": "install", "metadata": {}, "outputs": []}
    install |= {"execution_count": None, "source": INSTALL.format(repository=repository)}
    content["cells"].insert(1, install)
    return content


def write(folder, repository):
    """Write all copies."""
    for notebook in pages.notebooks():
        path = Path(folder) / "notebooks" / notebook.path.name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(copy(notebook, repository), ensure_ascii=False, indent=1)
        path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    if not repository():
        parser.error("LAUNCH_REPOSITORY=owner/name names the public repository")
    write(parser.parse_args().folder, repository())
