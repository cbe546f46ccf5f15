"""The notebooks as files, and the comparison of their outputs. nbval itself runs them."""

import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys

import nbformat
import pytest
import torch
from conftest import Tolerant
from helpers import ROOT

from llama3_scratch import PROMPT, exercises, load, plots
from llama3_scratch.exercises.frame import Exercise
from llama3_scratch.tiny.pretrain import make_tokenizer
from llama3_scratch.tokenizer import N_SPECIAL

TAGS = {"nbval-check-output", "hide-cell", "exercise", "solution", "parity-ledger"}
TAGS.add("nbval-ignore-output")  # times and sizes of the machine
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_required_form(path):
    """Run once from the top, without errors, machine metadata or long cells; pictures have alts."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"].keys() == {"kernelspec"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in code:
        source = "".join(cell["source"])
        long = cell["id"] == "flat"  # the whole model in one breath, notebook 07
        assert long or len(source.splitlines()) <= 16, f"{cell['id']} is long"
        assert max(map(len, source.splitlines())) <= 88, f"{cell['id']} is wide"
        assert cell["metadata"].keys() <= {"tags", "jupyter"}
        assert set(cell["metadata"].get("tags", [])) <= TAGS
        streams = [output["name"] for output in cell["outputs"] if "name" in output]
        assert len(set(streams)) == len(streams), f"{cell['id']}: one stream in two parts"
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                alt = output["metadata"].get("image/png", {}).get("alt", "")
                assert len(alt) > 20, f"{cell['id']}: a picture without its description"
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"
            shown = "".join(output.get("text", ""))
            assert not re.search(r"/home|/root|/tmp|0x[0-9a-f]{6}|20\d\d-\d\d", shown)
            widest = 100 if "inspect.getsource" in source else 80  # our own files have 100
            assert max(map(len, shown.splitlines()), default=0) <= widest, f"{cell['id']}: wide"


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_exercises_are_open_and_their_solutions_are_right(path):
    """Each notebook has three to five; the stored outputs, which nbval compares, show both."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    said = {"exercise": [], "solution": []}
    for cell in cells:
        for tag in said.keys() & set(cell["metadata"].get("tags", [])):
            said[tag].append("".join("".join(o.get("text", "")) for o in cell["outputs"]))
    assert 3 <= len(said["exercise"]) == len(said["solution"]) <= 5
    assert all(text.startswith("Not yet: it returned None.") for text in said["exercise"])
    assert all(text.startswith("Right: ") for text in said["solution"])
    assert "parity-ledger" in cells[-2]["metadata"]["tags"], "the ledger, then the references"


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_exercises_are_those_of_their_module_and_later_cells_use_no_answer(path):
    """In the module's order, by its numbers and names, each with two hints."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    (name,) = (each.name for each in pkgutil.iter_modules(exercises.__path__)
               if each.name.startswith(f"e{path.stem[:2]}_"))  # fmt: skip
    module = importlib.import_module(f"{exercises.__name__}.{name}")
    declared = [each for each in vars(module).values() if isinstance(each, Exercise)]
    assert re.findall(r"^### Exercise (\d+\.\d)", text, re.M) == [each.number for each in declared]
    assert all(len(each.hints) == 2 and min(map(len, each.hints)) > 20 for each in declared)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) <= 60
    asked = [i for i, cell in enumerate(code) if "exercise" in cell["metadata"].get("tags", ())]
    for i, exercise in zip(asked, declared, strict=True):
        mine, solution = f"my_{exercise.name}", f"{exercise.name}_solution"
        assert f"check.{exercise.name}({mine})" in "".join(code[i]["source"])
        assert f"check.{exercise.name}({solution})" in "".join(code[i + 1]["source"])
        lent = re.compile(rf"{mine}\b.* = check\.lent\(")
        later = ["".join(cell["source"]) for cell in code[i + 2 :]]
        assert not [each for each in later if re.search(rf"\b({mine}|{solution})\b", each)
                    and not lent.search(each)]  # fmt: skip


@pytest.mark.thorough
def test_the_third_lane_has_other_sizes():
    """All its sizes are different, and so is the prompt's number of tokens."""
    import other_sizes

    _, config, tokenizer = load("tiny")
    others = other_sizes.CONFIG.sizes
    assert all(others[letter] != size for letter, size in config.sizes.items())
    assert len(set(others.values())) == len(others)
    ranks = other_sizes.CONFIG.vocab_size - N_SPECIAL
    assert len(make_tokenizer(ranks).encode(PROMPT)) != len(tokenizer.encode(PROMPT))


def test_decimals_may_differ_by_one_unit_of_the_last_place_and_nothing_else():
    stored = Tolerant("[T, D] here [17, 192]\n0.125  -0.001 42 'a 0.50'")
    for same in ("0.126  -0.001 42", "0.125  0.000 42", "0.124  -0.002 42"):
        assert stored == stored.replace("0.125  -0.001 42", same)
    for other in ("0.127  -0.001 42", "0.125  -0.001 43", "0.125 -0.001 42", "0.125  nan 42"):
        assert stored != stored.replace("0.125  -0.001 42", other)
    assert stored == stored.replace("0.50", "0.51") and stored != stored.replace("0.50", "0.52")
    assert stored != stored.replace("192", "193") and stored != stored.replace("'a", "'b")


def test_a_picture_says_in_text_what_it_draws():
    """nbval compares this text; the control is another value."""
    values = torch.tensor([[0.25, 1.0], [0.5, float("nan")]])
    grid = plots.attention_heatmap(values, ["a", "b"])
    assert repr(plots.show(grid, alt="...")) == "picture: 1 grid of 2x2: 0.25 to 1.00, mean 0.58"
    assert "0.20 to" in plots.drawn_values(plots.attention_heatmap(values - 0.05, ["a", "b"]))
    bars = plots.bars([1, 2, 6], "abc", "x")
    lines = plots.curves({"f": ([0, 1], [3, 1e38])}, "", "")
    assert plots.drawn_values(bars).startswith("picture: 1 bars of 3: 1.00 to 6.00, mean 3.00; ")
    assert plots.drawn_values(lines) == "picture: 1 line of 2: 3.00 to 1.00e+38, mean 5.00e+37"


@pytest.mark.thorough
def test_nbval_notices_a_changed_output(tmp_path):
    """The control of the whole lane: of four stored outputs, two are as computed, two are not."""
    stored = ["0.126", "0.135", "[17, 193]", "as it is"]
    code = ["print(0.125)", "print(0.125)", "print([17, 192])", "print('as it is')"]
    cells = []
    for count, (source, output) in enumerate(zip(code, stored, strict=True), start=1):
        stream = nbformat.v4.new_output("stream", name="stdout", text=output + "\n")
        cells.append(nbformat.v4.new_code_cell(source, execution_count=count, outputs=[stream]))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "conftest"]
    done = subprocess.run(
        [*command, "-c", os.devnull, "changed.ipynb"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "2 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert re.findall(r"^FAILED .*Cell (\d)", done.stdout, re.M) == ["1", "2"]


def test_stored_measurements_are_kept(tmp_path):
    """A cell with the same source keeps its measurements; prints are joined. The controls: other
    cells get their new outputs, and so does a cell that measures something new, or at all."""
    sys.path.insert(0, str(ROOT / "site"))
    from stored import Stored

    def cell(source, *texts, tags=[]):  # noqa: B006
        outputs = [nbformat.v4.new_output("stream", name="stdout", text=text) for text in texts]
        id = source.split("(")[0]
        return nbformat.v4.new_code_cell(source, id=id, outputs=outputs, metadata={"tags": tags})

    ignored = ["nbval-ignore-output"]
    before = [
        cell("plain()", "1\n"), cell("measured()", "0.5 s\n", tags=ignored),
        cell("first()", tags=ignored), cell("changed(1)", "3 s\n", tags=ignored),
    ]  # fmt: skip
    now = [
        cell("plain()", "2\n", "3\n"), cell("measured()", "0.7 s\n", tags=ignored),
        cell("first()", "1 s\n", tags=ignored), cell("changed(2)", "4 s\n", tags=ignored),
    ]  # fmt: skip
    nbformat.write(nbformat.v4.new_notebook(cells=before), tmp_path / "one.ipynb")
    resources = {"metadata": {"path": str(tmp_path), "name": "one"}}
    done, _ = Stored(enabled=True).preprocess(nbformat.v4.new_notebook(cells=now), resources)
    texts = [[output["text"] for output in cell["outputs"]] for cell in done["cells"]]
    assert texts == [["2\n3\n"], ["0.5 s\n"], ["1 s\n"], ["4 s\n"]]
