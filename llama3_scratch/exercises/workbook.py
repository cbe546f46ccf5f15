"""A workbook: blank copies of the notebooks, beside the file that keeps the reader's own functions.

python -m llama3_scratch.exercises.workbook         write the copies that are missing into workbook/
python -m llama3_scratch.exercises.workbook 03      start notebook 03 again

An answer that a checker accepts there is kept in workbook/mine.py, and later notebooks use it.
"""

import argparse
import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
import textwrap
from pathlib import Path

from llama3_scratch import model
from llama3_scratch.errors import InputError, require

FILE = "mine.py"  # in the folder where a notebook runs: then it belongs to a workbook
CORE = {
    "merge": "e01_tokenizer",
    "rms_norm": "e02_rmsnorm",
    "rotate": "e03_rope",
    "attend": "e04_attention",
    "attention": "e05_grouped_query",
    "feed_forward": "e06_swiglu",
    "block": "e07_loop",
    "forward": "e07_loop",
}  # the functions that make the model: exercise -> module
HEAD = '''"""Your Llama 3: every function that a checker has accepted, in the order of the book.

Written by the checkers; `make workbook NB=03` takes notebook 03's functions out again.
"""

from llama3_scratch import model
from llama3_scratch.model import *  # its functions, and math, torch, functional
'''
MARK = "# %% "  # in front of an exercise's key, for example e02_rmsnorm.rms_norm
FOLDED = "The next cell holds a solution, folded."


def keep(exercise, answer):
    """Keep the source of an accepted answer in mine.py, if this is a workbook.

    It must be right there too, without the notebook around it; otherwise print what is missing.
    """
    if not Path(FILE).exists():
        return
    try:
        source = textwrap.dedent(inspect.getsource(answer)).strip()
    except (OSError, TypeError):
        source = ""
    kept = _kept(Path(FILE))
    if source.startswith(("def ", "@")):
        if answer.__name__ != f"my_{exercise.name}":
            source += f"\n\n\nmy_{exercise.name} = {answer.__name__}"
        alone = _space(kept | {exercise.key: source})[f"my_{exercise.name}"]
        verdict = exercise.verdict(alone)
        if not verdict.startswith("Right"):
            print(f"But not without this notebook: put imports and helpers inside it. {verdict}")
            return
        kept[exercise.key] = source
    else:
        kept[exercise.key] = ""  # a lambda: passed, but not used later
    _write(Path(FILE), kept)


def lent(*names):
    """Core functions by name: the reader's own where mine.py has them, else the book's.

    One name gives one function, several a tuple. Without a name: a dict of the reader's own.
    """
    space = _space(_kept(Path(FILE)) if Path(FILE).exists() else {})
    functions = {name: space[f"my_{name}"] for name in CORE}
    if not names:
        return {name: each for name, each in functions.items() if each is not _right(name)}
    chosen = tuple(functions[name] for name in names)
    return chosen[0] if len(chosen) == 1 else chosen


def _right(name):
    return getattr(_module(CORE[name]), name).right


def _space(kept):
    """Execute the reader's own code -> its names, beside the book's functions and the model's."""
    space = {f"my_{name}": _right(name) for name in CORE}
    space |= {name: each for name, each in vars(model).items() if not name.startswith("_")}
    space["model"] = model
    for key, source in kept.items():
        exec(compile(source, f"{FILE}: {key}", "exec"), space)
    return space


def progress():
    """Print how many exercises of each notebook are passed in this workbook."""
    if not Path(FILE).exists():
        print(_no_workbook())
        return
    kept = _kept(Path(FILE))
    for module in _modules():
        keys = [each.key for each in vars(module).values() if getattr(each, "key", "")]
        marks = "".join("●" if key in kept else "○" for key in keys)
        print(f"{module.__name__.rpartition('.e')[2][:2]}  {marks}")


def print_status(exercises):
    """Print each of these exercises with its number, and whether it is passed in this workbook."""
    if not Path(FILE).exists():
        print(_no_workbook())
        return
    kept = _kept(Path(FILE))
    for exercise in exercises:
        print(f"{'●' if exercise.key in kept else '○'} {exercise.number}  {exercise.name}")


def blank(notebook):
    """A notebook's JSON -> its blank copy: no outputs, no solutions."""
    cells = []
    for cell in notebook["cells"]:
        if "solution" in cell["metadata"].get("tags", ()):
            continue
        source = "".join(cell["source"]).replace(FOLDED, "").strip()
        if cell["cell_type"] == "code":
            cell = cell | {"outputs": [], "execution_count": None}
        if source:
            cells.append(cell | {"source": source})
    return notebook | {"cells": cells}


def make(numbers=(), notebooks=Path("notebooks"), folder=Path("workbook")):
    """Write the blank copies that are missing; those of `numbers` anew, without their answers.

    Raises: InputError, if there are no notebooks, or none of a number.
    """
    paths = {path.name[:2]: path for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))}
    require(paths, f"{notebooks.absolute()} has no notebooks. Run this in the folder of the book.")
    for number in numbers:
        known = ", ".join(paths)
        require(number in paths, f"there is no notebook {number}. There are: {known}.")
    folder.mkdir(exist_ok=True)
    kept = _kept(folder / FILE) if (folder / FILE).exists() else {}
    for number, path in paths.items():
        copy = folder / path.name
        if number in numbers or not copy.exists():
            text = json.dumps(blank(json.loads(path.read_text("utf-8"))), ensure_ascii=False)
            _replace(copy, text)
            print(copy)
    _write(folder / FILE, {key: kept[key] for key in kept if key[1:3] not in numbers})


def main(arguments=None):
    """The command line: see the top of this file."""
    parser = argparse.ArgumentParser("workbook", description="Write blank copies of the notebooks.")
    parser.add_argument("numbers", nargs="*", help="notebooks to start again, for example 03")
    try:
        make(parser.parse_args(arguments).numbers)
    except InputError as error:
        sys.exit(f"workbook: {error}")


def _kept(path):
    """mine.py -> {exercise's key: source}"""
    _, *parts = re.split(rf"^{MARK}", path.read_text(encoding="utf-8"), flags=re.M)
    pairs = (part.partition("\n") for part in parts)
    return {key.strip(): source.strip() for key, _, source in pairs}


def _write(path, kept):
    parts = [f"{MARK}{key}\n{kept[key]}\n" for key in sorted(kept, key=lambda key: key[:3])]
    _replace(path, "\n\n".join([HEAD, *parts]))


def _replace(path, text):
    """Write a file at once: it is the old one or the new one, whole."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _modules():
    package = importlib.import_module(__package__)
    names = sorted(each.name for each in pkgutil.iter_modules(package.__path__))
    return [_module(name) for name in names if re.match(r"e\d\d_", name)]


def _module(name):
    return importlib.import_module(f"{__package__}.{name}")


def _no_workbook():
    return "Progress is kept in a workbook: `make workbook`, then open a notebook in workbook/."


if __name__ == "__main__":
    main()
