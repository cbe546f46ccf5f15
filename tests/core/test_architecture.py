"""What each part of the package may import, and how long the core may be."""

import ast
import subprocess
import sys

import pytest
from helpers import ROOT

PACKAGE = ROOT / "llama3_scratch"
CORE = ["config", "tokenizer", "model", "cache", "generate"]
# What each part may import besides itself. A part is a module, or a folder with all that is in it.
CORE_AND_ERRORS = {*CORE, "errors"}
MAY_IMPORT = {
    "errors": set(), "config": {"errors"}, "tokenizer": {"errors"}, "model": set(),
    "cache": {"errors"}, "generate": {"errors", "model", "cache"},
    # the wings: each may import the core and wings above it in this list
    "watch": CORE_AND_ERRORS, "plots": CORE_AND_ERRORS, "reference": CORE_AND_ERRORS | {"watch"},
    "formats": CORE_AND_ERRORS,
    "quantize": CORE_AND_ERRORS | {"watch"},
    "checkpoint": CORE_AND_ERRORS | {"", "quantize"},  # "": the package itself, for the prompt
    "speed": CORE_AND_ERRORS | {"checkpoint", "quantize"},
    "processes": {"errors"},
    "parallel": CORE_AND_ERRORS | {"checkpoint", "processes"},
    "pipeline": CORE_AND_ERRORS | {"checkpoint", "processes"},
    "train": CORE_AND_ERRORS | {"checkpoint", "speed"},
    "tiny": CORE_AND_ERRORS | {"", "watch", "checkpoint", "quantize", "speed", "train"},
    "exercises": CORE_AND_ERRORS | {"", "watch", "checkpoint", "formats", "quantize", "train"},
    "chat": CORE_AND_ERRORS | {"watch", "checkpoint"},
    "__main__": CORE_AND_ERRORS
    | {"", "watch", "checkpoint", "chat", "speed", "processes", "parallel", "pipeline"},
    "": CORE_AND_ERRORS | {"watch", "checkpoint"},
}  # fmt: skip


def parts():
    """{part: its files}"""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.setdefault("" if part == "__init__" else part, []).append(path)
    return found


def imported(source):
    """Python source -> the parts of the package that it imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            for alias in node.names:
                inner = PACKAGE / alias.name
                module = inner.with_suffix(".py").exists() or inner.is_dir()
                in_root = node.module == "llama3_scratch" and module
                names.add(f"llama3_scratch.{alias.name}" if in_root else node.module)
    ours = [name.split(".") for name in names if name.split(".")[0] == "llama3_scratch"]
    return {name[1] if len(name) > 1 else "" for name in ours}


@pytest.mark.parametrize("part", parts())
def test_each_part_imports_only_what_it_may(part):
    for path in parts()[part]:
        beyond = imported(path.read_text(encoding="utf-8")) - MAY_IMPORT[part] - {part}
        assert not beyond, f"{path.relative_to(PACKAGE)} imports {sorted(beyond)}"


def test_an_import_of_a_wing_is_noticed():
    source = "def f():\n    from llama3_scratch.checkpoint.memory import plan\n"
    assert imported(source) - MAY_IMPORT["generate"] == {"checkpoint"}
    assert imported("from llama3_scratch import checkpoint, load") == {"checkpoint", ""}


def test_the_core_stays_short():
    lines = {name: len((PACKAGE / f"{name}.py").read_text().splitlines()) for name in CORE}
    assert sum(lines.values()) < 850 and lines["model"] < 140, lines


def test_the_core_imports_without_the_wings():
    """Without the wings the core still imports: no safetensors, no psutil."""
    code = (
        "import sys, types\n"
        "root = types.ModuleType('llama3_scratch'); root.__path__ = [sys.argv[1]]\n"
        "sys.modules['llama3_scratch'] = root\n"
        "import llama3_scratch.generate, llama3_scratch.tokenizer\n"
        "wings = {'safetensors', 'psutil', 'llama3_scratch.checkpoint'}\n"
        "print(sorted(wings & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(PACKAGE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
