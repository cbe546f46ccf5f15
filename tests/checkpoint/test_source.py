"""Which folder is meant: relative paths, names that are nowhere, Hugging Face's repositories."""

import os

import nbformat
import pytest
import torch
from helpers import BYTES, SMALL, make_weights
from nbclient import NotebookClient

from llama3_scratch import InputError, load, save
from llama3_scratch.__main__ import main
from llama3_scratch.checkpoint import source


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with models/small and notebooks/, in which the shell is."""
    save(tmp_path / "models" / "small", make_weights(SMALL, torch.bfloat16), SMALL, BYTES)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """Return the list of repositories for which the network is asked."""
    names = []

    def download(name):
        names.append(name)
        raise InputError("there is no network")

    monkeypatch.setattr(source, "download", download)
    return names


def in_a_kernel(folder, code):
    """Run code in a kernel that starts in a folder, as Jupyter starts it -> the text it prints."""
    cell = nbformat.v4.new_code_cell(code)
    client = NotebookClient(
        nbformat.v4.new_notebook(cells=[cell]), resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def test_a_kernel_finds_a_path_from_where_jupyter_was_started(project, monkeypatch):
    """`LLAMA3_CHECKPOINT=models/small jupyter lab`, as notebook 10 says."""
    monkeypatch.setenv("LLAMA3_CHECKPOINT", "models/small")
    code = "import os; from llama3_scratch import load; print(load().config.dim, os.getcwd())"
    assert in_a_kernel(project / "notebooks", code) == f"{SMALL.dim} {project / 'notebooks'}\n"


def test_a_path_is_looked_for_here_then_where_the_shell_is_then_in_the_repository(
    project, monkeypatch
):
    assert load("models/small").config == SMALL
    monkeypatch.chdir(project / "notebooks")
    assert source.find("models/small") == project / "models" / "small"
    (project / "notebooks" / "models" / "small").mkdir(parents=True)
    assert source.find("models/small").resolve() == project / "notebooks" / "models" / "small"
    monkeypatch.delenv("PWD")
    inside = source.TINY.relative_to(source.ROOT)
    assert source.find(inside) == source.TINY
    monkeypatch.setattr(source, "ROOT", source.TINY)  # as site-packages: no pyproject.toml
    with pytest.raises(InputError, match="is not a checkpoint"):
        source.find(inside)


@pytest.mark.parametrize("name", [
    "models/small/original", "nowhere", "/nowhere/at all", "~/nowhere/at-all", "./models/nowhere",
    "models\\nowhere", "", "a/", "/a",
])  # fmt: skip
def test_a_path_that_is_no_repositorys_name_is_never_asked_for(project, asked, capsys, name):
    with pytest.raises(InputError, match="is not a checkpoint"):
        source.find(name)
    assert not asked and capsys.readouterr().err == ""


def test_a_name_that_may_be_a_repository_is_asked_for_with_a_notice(project, asked, capsys):
    assert main(["verify", "models/smal"]) == 2
    shown = capsys.readouterr()
    assert asked == ["models/smal"]
    assert shown.err == (
        "(there is no folder models/smal here: asking huggingface.co for that repository)\n"
    )
    assert main(["verify", "models/small"]) == 0  # the control
    assert asked == ["models/smal"] and capsys.readouterr().err == ""
    assert os.getcwd() == str(project)
