"""The workbook: blank copies of the notebooks, and the reader's accepted functions in mine.py."""

import json

import nbformat
import pytest
import torch
from helpers import ROOT

from llama3_scratch import InputError, model
from llama3_scratch.exercises import e02_rmsnorm, e03_rope, workbook

NOTEBOOKS = ROOT / "notebooks"


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A folder with a workbook, in which a kernel would run."""
    workbook.make(notebooks=NOTEBOOKS, folder=tmp_path / "workbook")
    monkeypatch.chdir(tmp_path / "workbook")
    return tmp_path / "workbook"


def my_rms_norm(x, weight, eps):
    wide = x.float()
    return (wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()).type_as(x) * weight


def my_rotate(x, rotations):
    return model.rotate(x, rotations)


def test_a_copy_has_no_outputs_and_no_solutions_and_is_a_notebook(book):
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        whole, copy = (nbformat.read(p, as_version=4) for p in (path, book / path.name))
        nbformat.validate(copy)
        code = [cell for cell in copy.cells if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in code)
        tags = [tag for cell in copy.cells for tag in cell.metadata.get("tags", [])]
        solutions = [c for c in whole.cells if "solution" in c.metadata.get("tags", [])]
        assert "solution" not in tags and tags.count("exercise") == len(solutions)
        assert len(copy.cells) >= len(whole.cells) - 2 * len(solutions)


def test_accepted_answers_are_kept_and_lent(book, capsys):
    assert workbook.lent() == {}
    assert workbook.lent("rotate") is e03_rope.rotate.right
    e02_rmsnorm.rms_norm(lambda x, weight, eps: x)  # not yet: nothing is kept
    assert workbook.lent() == {}
    e02_rmsnorm.rms_norm(my_rms_norm)
    mine = workbook.lent()
    assert mine.keys() == {"rms_norm"}
    x, weight = torch.randn(3, 8), torch.randn(8)
    torch.testing.assert_close(mine["rms_norm"](x, weight, 0.1), model.rms_norm(x, weight, 0.1))
    assert workbook.lent("rms_norm", "rotate")[1] is e03_rope.rotate.right
    capsys.readouterr()
    e02_rmsnorm.status()
    assert f"● {e02_rmsnorm.rms_norm.number}  rms_norm" in capsys.readouterr().out
    workbook.progress()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "02  ●○○○" and not any("●" in line for line in lines[:1] + lines[2:])
    names = {}
    exec((book / "mine.py").read_text(), names)  # the file is Python, as it stands
    assert torch.equal(names["my_rms_norm"](x, weight, 0.1), mine["rms_norm"](x, weight, 0.1))


def test_a_kept_function_calls_the_others_of_the_workbook(book):
    source = "def my_block(x, *rest):\n    return my_rms_norm(x, 1.0, 0.0)"
    workbook.keep(e02_rmsnorm.rms_norm, my_rms_norm)
    workbook._write(book / "mine.py", workbook._kept(book / "mine.py") | {"e07_loop.block": source})
    x = torch.randn(2, 4)
    assert torch.equal(workbook.lent("block")(x), my_rms_norm(x, 1.0, 0.0))


def helper(x):
    return x


def with_a_helper(x, rotations):
    return helper(model.rotate(x, rotations))


def of_another_name(x, rotations):
    return model.rotate(x, rotations)


def test_an_answer_that_needs_its_notebook_is_not_kept_and_says_so(book, capsys):
    e03_rope.rotate(with_a_helper)
    shown = capsys.readouterr().out
    assert shown.startswith("Right") and "put imports and helpers inside it" in shown
    assert "NameError: name 'helper' is not defined" in shown and workbook.lent() == {}
    e03_rope.rotate(of_another_name)
    assert workbook.lent().keys() == {"rotate"}


def test_a_second_run_leaves_the_readers_work_and_a_number_starts_one_again(book, capsys):
    name = next(NOTEBOOKS.glob("02_*")).name
    (book / name).write_text("work")
    workbook.keep(e02_rmsnorm.rms_norm, my_rms_norm)
    workbook.keep(e03_rope.rotate, my_rotate)
    workbook.make(notebooks=NOTEBOOKS, folder=book)
    assert (book / name).read_text() == "work"
    assert workbook.lent().keys() == {"rms_norm", "rotate"}
    workbook.make(["02"], NOTEBOOKS, book)
    assert json.loads((book / name).read_text())["cells"]
    assert workbook.lent().keys() == {"rotate"}
    assert not list(book.glob("*.part"))


def test_nothing_is_kept_in_the_book_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    e02_rmsnorm.rms_norm(my_rms_norm)
    assert not list(tmp_path.iterdir())
    e02_rmsnorm.status()
    assert "`make workbook`" in capsys.readouterr().out


@pytest.mark.parametrize(("numbers", "notebooks", "text"), [
    ((), ROOT / "images", "has no notebooks"), (["42"], NOTEBOOKS, "there is no notebook 42"),
])  # fmt: skip
def test_a_folder_or_number_that_is_not_there(tmp_path, numbers, notebooks, text):
    with pytest.raises(InputError, match=text):
        workbook.make(numbers, notebooks, tmp_path / "workbook")
    assert not list(tmp_path.iterdir())
