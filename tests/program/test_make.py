"""make.py: its targets, and when the environment is set up. (CI runs it with the real pip.)"""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib

import pytest
from helpers import ROOT

PACKAGES = {"package": ["torch", "pip"], "notebooks": ["jupyterlab"], "site": [], "test": ["x"]}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """make.py as a module, in a folder of its own: `calls` are what it has pip install.

    Its environment's Python is this one. pip "installs" what PACKAGES says.
    """
    folder = tmp_path / "a folder ë"
    folder.mkdir()
    for name in ("make.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    spec = importlib.util.spec_from_file_location("make", folder / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    make.calls, make.made = [], []
    libraries = make.VENV / "lib" / "python3" / "site-packages"

    def create(folder, **how):
        make.made.append(how)
        shutil.rmtree(folder, ignore_errors=True)
        make.PYTHON.parent.mkdir(parents=True)
        make.PYTHON.touch()

    def pip(*arguments):
        make.calls.append(arguments[-1])
        for step, (_, extras) in make.STEPS.items():
            for package in PACKAGES[step] if arguments[-1] == f".{extras}" else ():
                (libraries / f"{package}-1.0.dist-info").mkdir(parents=True, exist_ok=True)

    monkeypatch.delenv("TORCH_INDEX", raising=False)  # the one that this run was called with
    monkeypatch.setattr(make.venv, "create", create)
    monkeypatch.setattr(make, "pip", pip)
    monkeypatch.setattr(make, "asked", lambda code: "3 11" if make.PYTHON.exists() else "")
    monkeypatch.setattr(make, "python", lambda *arguments: None)
    make.libraries = libraries
    return make


def again(make, step):
    """Return what a run installs, and whether it makes the environment anew."""
    make.calls.clear()
    make.made.clear()
    make.set_up(step)
    return make.calls, bool(make.made)


def test_a_step_is_installed_once_after_those_below_it(project):
    assert again(project, "notebooks") == (["pip", ".", ".[notebooks]"], True)
    assert again(project, "package") == again(project, "notebooks") == ([], False)
    assert again(project, "test") == ([".[notebooks,site]", ".[notebooks,site,test]"], False)
    settings = project.VENV / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    assert '"autosave": false' in settings.read_text()


def test_what_is_compared_is_the_content_not_the_time(project):
    again(project, "package")
    for name in ("pyproject.toml", "constraints.txt"):
        path = project.ROOT / name
        path.write_text(path.read_text(encoding="utf-8") + "\n# newer\n", encoding="utf-8")
    assert again(project, "package") == ([], False)
    pins = project.ROOT / "constraints.txt"
    pins.write_text(pins.read_text(encoding="utf-8").replace("tqdm==", "tqdm==9"), encoding="utf-8")
    assert again(project, "package") == (["pip", "."], False)


def test_packages_that_another_program_removed_are_installed_again(project):
    again(project, "notebooks")
    (project.libraries / "jupyterlab-1.0.dist-info").rmdir()
    assert again(project, "package") == ([], False)
    assert again(project, "notebooks") == ([".[notebooks]"], False)


def test_a_moved_folder_and_another_python_are_set_up_again(project, monkeypatch, capsys):
    again(project, "package")
    record = project.RECORD.read_text(encoding="utf-8")
    project.RECORD.write_text(record.replace('"3 11"', '"3 12"'), encoding="utf-8")
    assert again(project, "package") == (["pip", "."], True)
    record = project.RECORD.read_text(encoding="utf-8")
    project.RECORD.write_text(record.replace("a folder", "another"), encoding="utf-8")
    assert again(project, "package") == (["pip", "."], True)
    assert capsys.readouterr().out.count("was moved, or its Python is another one") == 2


def test_an_interrupted_set_up_goes_on(project, monkeypatch):
    pip = project.pip

    def stops(*arguments):
        if arguments[-1] == ".[notebooks]":
            sys.exit("stopped")
        pip(*arguments)

    monkeypatch.setattr(project, "pip", stops)
    with pytest.raises(SystemExit):
        project.set_up("notebooks")
    monkeypatch.setattr(project, "pip", pip)
    assert again(project, "notebooks") == ([".[notebooks]"], False)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission on Windows")
def test_a_link_to_another_environment_is_left_alone(project, tmp_path):
    (tmp_path / "other").mkdir()
    project.VENV.symlink_to(tmp_path / "other")
    assert again(project, "test") == ([], False)


def test_the_index_of_torch_is_the_one_that_is_named(project, monkeypatch):
    said = []
    monkeypatch.setattr(project, "pip", lambda *arguments: said.append(arguments))
    for named, index in (("cpu", project.CPU), ("https://mine", "https://mine")):
        monkeypatch.setenv("TORCH_INDEX", named)
        project.add_torch()
        assert said[-1] == ("--no-deps", "--index-url", index, "torch")


def test_an_index_that_does_not_answer_is_named(project, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))  # and does not listen
        index = f"http://localhost:{taken.getsockname()[1]}"
        monkeypatch.setenv("PIP_INDEX_URL", index)
        said = project.explanation()
    assert f"{index} does not answer" in said and "needs a network" in said


def test_a_taken_port_gives_one_message(project, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))
        with pytest.raises(SystemExit, match=f"port {port} cannot be used .*PORT={port + 1} takes"):
            project.serve()


def test_the_makefile_has_the_targets_of_make_py():
    done = subprocess.run([sys.executable, "make.py"], cwd=ROOT, capture_output=True, text=True)
    listed = re.findall(r"^  ([a-z0-9-]+) ", done.stdout, re.M)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    assert listed == re.search(r"^TARGETS := (.*)", makefile, re.M)[1].split()
    if shutil.which("make"):
        alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        by_make = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, env=alone)
        assert by_make.stdout == done.stdout
    unknown = subprocess.run([sys.executable, "make.py", "tset"], cwd=ROOT, capture_output=True,
                             text=True)  # fmt: skip
    assert unknown.returncode == 1 and unknown.stderr.startswith("no target 'tset'; there are help")


def test_an_old_python_gives_one_message(tmp_path):
    """make.py is parsed by old Pythons too: it says what is needed before it imports anything."""
    code = "import sys; sys.version_info = (3, 9); sys.argv = ['make.py']; "
    code += f"exec(open({str(ROOT / 'make.py')!r}, encoding='utf-8').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Python 3.11 or later is needed, this is ")


def test_the_page_on_an_index_links_to_the_public_copy(project, tmp_path):
    """The control: as it stands, the README links to files beside it."""
    links = r"\]\(([^)#]+)\)"
    before = (ROOT / "README.md").read_text("utf-8")
    near = [link for link in re.findall(links, before) if not link.startswith("https://")]
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    project.outward(tmp_path, "a-reader/a.copy")
    after = re.findall(links, (tmp_path / "README.md").read_text("utf-8"))
    assert all(link.startswith("https://") for link in after)
    raw, page = "https://raw.githubusercontent.com/a-reader/a.copy/main/", "a.copy/blob/main/"
    assert raw + "images/overview.svg" in after
    assert {link.split(page)[-1].removeprefix(raw) for link in after} >= set(near) != set()
    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    assert urls["Repository"] == "https://github.com/a-reader/a.copy" and len(urls) == 3
