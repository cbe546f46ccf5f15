"""What `make` does, on every system: python make.py TARGET; without a target, the list of them.

The environment lies in .venv. It is filled in steps, so that `run` and `lab` need not wait for the
tests' packages; what is there is kept, and a set-up that was interrupted goes on where it stopped.
Settings come from the environment, as `NAME=value` before the command or after the target:

    TORCH_INDEX=cpu      PyTorch without CUDA (on Linux 0.2 in place of 3 GB), or an index's address
    LAB_FLAGS=...        more for JupyterLab, for example --allow-root in a container
    NB=03                the notebook that `workbook` starts again
    PORT=8001            where `serve` shows the site
    PYTEST_FLAGS=...     for pytest, in place of -n auto --dist loadfile -q
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        "Python 3.11 or later is needed, this is " + sys.version.split()[0] + ": call another one, "
        "for example by make PYTHON=python3.12"
    )

import functools
import hashlib
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import tomllib
import urllib.error
import urllib.request
import venv
from pathlib import Path

if __name__ == "__main__":
    os.environ |= dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
RECORD = VENV / "set-up.json"  # what each step has installed
CPU = "https://download.pytorch.org/whl/cpu"
STEPS = {  # name: (what it adds, its extras); each stands on those before it
    "package": ("PyTorch", ""),
    "notebooks": ("JupyterLab", "[notebooks]"),
    "site": ("Sphinx and KaTeX", "[notebooks,site]"),
    "test": ("the tests' packages", "[notebooks,site,test]"),
}
LAB_SETTINGS = {  # who only reads changes no file
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false"},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


# The environment


def start(*command, **environment):
    """Start a program in the project's folder."""
    return subprocess.Popen([str(word) for word in command], cwd=ROOT, env=os.environ | environment)


def ended(process):
    """Wait for a program -> its exit status. Ctrl-C is the program's to answer."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            pass


def run(*command, **environment):
    """Run a program; what fails ends this one, with its exit status."""
    if status := ended(start(*command, **environment)):
        sys.exit(status)


def python(*arguments, **environment):
    run(PYTHON, *arguments, **environment)


def setting(name, default=""):
    return shlex.split(os.environ.get(name, default))


def needs():
    """Return what the environment depends on, as a hash: what is to be installed, by which pins."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = "dependencies", "optional-dependencies", "scripts"
    parts = [project["build-system"], *(project["project"][name] for name in names)]
    pins = re.sub(r"\s*#.*", "", (ROOT / "constraints.txt").read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps([parts, pins.split()]).encode()).hexdigest()


def installed():
    """Return the names of the installed packages."""
    folders = "lib/python*/site-packages", "Lib/site-packages"
    found = [path for folder in folders for path in VENV.glob(f"{folder}/*.dist-info")]
    return sorted({path.name.split("-")[0] for path in found})


def asked(code):
    """Return what the environment's Python prints; "" if it does not run."""
    try:
        done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip()


def recorded():
    """-> {step: {needs, packages}} of what is whole; None if the environment must be made anew."""
    version = asked("import sys; print(*sys.version_info[:2])")
    if not version:
        return None
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # another program's, or the set-up was interrupted
    if (record["folder"], record["version"]) != (str(VENV), version):
        print("This folder was moved, or its Python is another one: .venv is set up again.")
        return None
    there = set(installed())
    return {name: step for name, step in record["steps"].items() if there >= set(step["packages"])}


def pip(*arguments):
    """Install by the pinned versions."""
    pip = PYTHON, "-m", "pip", "--disable-pip-version-check"
    if ended(start(*pip, "install", "--constraint", "constraints.txt", *arguments)):
        sys.exit(explanation())


def explanation():
    """Return what to do after pip has failed."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    try:
        urllib.request.urlopen(f"{index}/pip/", timeout=20).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        return (
            f"\n{index} does not answer ({getattr(error, 'reason', error)}).\nThe first set-up "
            "needs a network, later runs do not. Run the same command again when there is one: "
            "what is installed is kept."
        )
    return "\nThe set-up has stopped, for the reason above. When it is run again it goes on here."


def add_torch():
    """Install a current pip, then torch, so that no other package pulls in another build of it."""
    if not asked("import pip; print(pip.__version__)"):  # uv removes it
        python("-m", "ensurepip", "--default-pip")
    pip("--quiet", "--upgrade", "pip")
    index = os.environ.get("TORCH_INDEX", "")
    if index:
        pip("--no-deps", "--index-url", CPU if index == "cpu" else index, "torch")
    elif not asked("import torch; print(torch.__version__)"):
        if sys.platform == "linux":
            print("PyTorch comes with CUDA, 3 GB in all; with TORCH_INDEX=cpu it is 0.2 GB.")
        pip("torch")


def set_up(last):
    """Install the packages of all steps up to `last`, if they are not there."""
    if VENV.is_symlink():
        return  # another folder's environment, used as it is
    now, names, done = needs(), list(STEPS), recorded()
    if done is None:
        venv.create(VENV, clear=True, with_pip=True, symlinks=os.name != "nt")
        done = {}
    for name in names[: names.index(last) + 1]:
        if done.get(name, {}).get("needs") == now:
            continue
        adds, extras = STEPS[name]
        print(f"Adding {adds} to .venv (once)", flush=True)
        if name == "package":
            add_torch()
        pip("--quiet", "--build-constraint", "constraints.txt", "--editable", f".{extras}")
        if name == "notebooks":
            settings = VENV / "share" / "jupyter" / "lab" / "settings"
            settings.mkdir(parents=True, exist_ok=True)
            text = json.dumps(LAB_SETTINGS, indent=2)
            (settings / "overrides.json").write_text(text, encoding="utf-8")
        if name == "site":
            python("site/katex.py")
        done[name] = {"needs": now, "packages": installed()}
        version = asked("import sys; print(*sys.version_info[:2])")
        record = {"folder": str(VENV), "version": version, "steps": done}
        RECORD.write_text(json.dumps(record), encoding="utf-8")


# The targets


def show_help():
    for name, (_, words, _) in TARGETS.items():
        print(f"  {name:14} {words}")


def nbval(checkpoint, *arguments):
    """Return the command and the environment of a lane: the notebooks on one checkpoint."""
    flags = setting("PYTEST_FLAGS", "-n auto --dist loadfile -q")
    command = [PYTHON, "-m", "pytest", *flags, "--nbval-current-env", *arguments]
    return command, {"LLAMA3_CHECKPOINT": str(checkpoint)}


def test():
    command, environment = nbval("tiny", "-m", "not thorough", "--nbval", "tests", "notebooks")
    run(*command, **environment)


def test_thorough():
    python("-m", "pytest", *setting("PYTEST_FLAGS", "-n auto --dist loadfile -q"),
           "-m", "thorough", "tests")  # fmt: skip
    others = ROOT / "build" / "other-sizes"
    python("tests/book/other_sizes.py", others)
    for checkpoint in ("random", others):
        command, environment = nbval(checkpoint, "--nbval-lax", "notebooks")
        run(*command, **environment)


def store_notebooks():
    preprocessor = "--ClearMetadataPreprocessor"
    python(
        "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace",
        "--ExecutePreprocessor.record_timing=False", f"{preprocessor}.enabled=True",
        f"{preprocessor}.clear_cell_metadata=False",
        f"{preprocessor}.preserve_nb_metadata_mask=kernelspec",
        "--NotebookExporter.preprocessors=stored.Stored",
        *sorted((ROOT / "notebooks").glob("*.ipynb")), PYTHONPATH="site",
    )  # fmt: skip


def playground():
    page = ROOT / "build" / "playground"
    shutil.copytree(ROOT / "site" / "playground", page, dirs_exist_ok=True)
    python("site/weights.py", page)
    print(f"open {page / 'index.html'}")


def dist():
    """The wheel and the source distribution, with the pinned tools.

    With LAUNCH_REPOSITORY=owner/name, a public copy on GitHub, their page on an index links to it.
    """
    pip("--quiet", "hatchling", "editables")
    with tempfile.TemporaryDirectory() as folder:
        source = ROOT
        if repository := os.environ.get("LAUNCH_REPOSITORY"):
            source = Path(folder) / "source"
            others = shutil.ignore_patterns(".git", ".venv", "build", "dist")
            shutil.copytree(ROOT, source, ignore=others)
            outward(source, repository)
        command = [PYTHON, "-m", "hatchling", "build", "-d", ROOT / "dist"]
        if status := subprocess.run(command, cwd=source).returncode:
            sys.exit(status)


def outward(folder, repository):
    """Give a copy of the project the addresses that hold outside of it."""
    readme, project = folder / "README.md", folder / "pyproject.toml"
    raw, page = "https://raw.githubusercontent.com", f"https://github.com/{repository}"
    text = readme.read_text(encoding="utf-8")
    text = re.sub(r"\]\((images/[^)]+)\)", rf"]({raw}/{repository}/main/\1)", text)
    text = re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"]({page}/blob/main/\1)", text)
    readme.write_text(text, encoding="utf-8")
    urls = {"Repository": "", "Issues": "/issues", "Changelog": "/blob/main/CHANGELOG.md"}
    lines = "".join(f'{name} = "{page}{url}"\n' for name, url in urls.items())
    with project.open("a", encoding="utf-8") as file:
        file.write(f"\n[project.urls]\n{lines}")


def serve():
    port = int(os.environ.get("PORT", 8000))
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=ROOT / "build" / "site"
    )
    try:
        server = http.server.ThreadingHTTPServer(("localhost", port), handler)
    except OSError as error:
        sys.exit(f"port {port} cannot be used ({error.strerror}): PORT={port + 1} takes another")
    python("site/build.py", "build/site")
    print(f"http://localhost:{port}; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


def clean():
    for name in (".venv", "build", "dist", ".pytest_cache", ".ruff_cache", ".hypothesis"):
        shutil.rmtree(ROOT / name, ignore_errors=True)
    for folder in [*ROOT.glob("*.egg-info"), *ROOT.rglob("__pycache__")]:
        shutil.rmtree(folder, ignore_errors=True)


PRETRAIN = "-m llama3_scratch.tiny.pretrain --resume --out build"
SKILLS = "-m llama3_scratch.tiny.skills --checkpoint build"
SPEED = "benchmarks/speed.py --json benchmarks/results/own.json"
LAB = "-m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/"
TARGETS = {  # name: (the step that it needs, what `help` says, a function or arguments of Python)
    "help": (None, "this list", show_help),
    "lab": ("notebooks", "open the notebooks in JupyterLab",
            [f"{LAB}00_overview.ipynb {os.environ.get('LAB_FLAGS', '')}"]),
    "workbook": ("notebooks", "blank copies of the notebooks to work in; NB=03 starts one again",
                 [f"-m llama3_scratch.exercises.workbook {os.environ.get('NB', '')}"]),
    "run": ("package", "the prompt, its tokens, the shapes and the next tokens, without a browser",
            ["-m llama3_scratch"]),
    "test": ("test", "run the tests, and every notebook on the tiny model", test),
    "test-thorough": ("test", "the long tests, and the notebooks on two other models; CI runs both",
                      test_thorough),
    "test-real": ("test", "on Meta-Llama-3-8B, named by LLAMA3_CHECKPOINT: is the next token 42?",
                  ["-m pytest -v -p no:xdist --durations=0 tests/checkpoint/test_real.py"]),
    "notebooks": ("notebooks", "run all notebooks again and store their outputs", store_notebooks),
    "playground": ("package", "the tiny model as a page for any browser, in build/playground",
                   playground),
    "images": ("notebooks", "draw the pictures again", ["images/draw.py"]),
    "site": ("site", "build the book as a static site, build/site/index.html",
             ["site/build.py build/site"]),
    "book": ("test", "the book as one PDF and one EPUB, in build/book",
             ["site/build.py build/site", "site/book.py build/site build/book"]),
    "dist": ("package", "build the wheel and the source distribution, in dist", dist),
    "serve": ("site", "build the site and show it on http://localhost:8000", serve),
    "tiny": ("notebooks", "train the tiny model from nothing, as it ships (two hours, one core)",
             [f"{PRETRAIN}/tiny", f"{SKILLS}/tiny"]),
    "tiny-quick": ("notebooks", "train a lesser one (about twenty minutes, two cores)",
                   [f"{PRETRAIN}/tiny-quick --steps 2200 --rows 4 --threads 2",
                    f"{SKILLS}/tiny-quick"]),
    "tiny-history": ("notebooks", "train the lesser one twice, measured at twelve steps (an hour)",
                     ["-m llama3_scratch.tiny.history --out build/tiny-history"]),
    "tiny-int4": ("package", "quantize the tiny model to 4 bits, as it ships (seconds)",
                  ["-m llama3_scratch.tiny.int4 --out build/tiny-int4"]),
    "bench": ("test", "tokens a second of this package and its peers, for notebook 23 (an hour)",
              [f"{SPEED} --directory build/speed",
               f"{SPEED} --add --layers 2 --prompts 128 512 1024 2048 4096 --positions --batches"]),
    "lint": ("test", "check style, of the notebooks too",
             ["-m ruff check .", "-m ruff format --check ."]),
    "format": ("test", "put all code into the project's form",
               ["-m ruff check --fix .", "-m ruff format ."]),
    "clean": (None, "remove the environment and everything that was made", clean),
}  # fmt: skip


def main(words):
    names = [word for word in words if "=" not in word] or ["help"]
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        sys.exit(f"no target {unknown[0]!r}; there are {', '.join(TARGETS)}")
    for name in names:
        step, _, do = TARGETS[name]
        if step:
            set_up(step)
        if callable(do):
            do()
            continue
        for arguments in do:
            python(*shlex.split(arguments))


if __name__ == "__main__":
    main(sys.argv[1:])
