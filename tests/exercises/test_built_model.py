"""The solutions of notebooks 01 to 07, put together, are the model; a wrong function is named."""

import ast
import json
import re
import textwrap
from importlib import import_module

import pytest
from helpers import ROOT

from llama3_scratch import InputError, model, watch
from llama3_scratch.exercises import e07_loop
from llama3_scratch.exercises.workbook import CORE

EXERCISES = {
    name: vars(import_module(f"llama3_scratch.exercises.{module}"))[name]
    for name, module in CORE.items()
}
MISTAKES = [(name, i) for name, each in EXERCISES.items() for i in range(len(each.mistakes))]


def solution(name):
    """The folded solution of an exercise, with the names that a reader would have typed.

    It finds what its notebook imports and borrows. On the page `my_block` is an empty stub, so the
    solution of `forward` calls the package's block there.
    """
    (path,) = (ROOT / "notebooks").glob(f"{CORE[name][1:3]}_*.ipynb")
    space = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        folded = "solution" in cell["metadata"].get("tags", ())
        for node in ast.parse("".join(cell["source"])).body:
            value = ast.unparse(node.value) if isinstance(node, ast.Assign) else ""
            borrowed = value.startswith("check.lent(") and value.endswith(")")
            imports = isinstance(node, ast.Import | ast.ImportFrom)
            if imports or borrowed or (folded and isinstance(node, ast.FunctionDef)):
                source = re.sub(r"\b(\w+)_solution\b", r"my_\1", ast.unparse(node))
                exec(source.replace(" block(", " my_block("), space)
    return space[f"my_{name}"]


@pytest.fixture(scope="module")
def solutions():
    return {name: solution(name) for name in CORE}


def verdict(capsys, **functions):
    e07_loop.model(**functions)
    return capsys.readouterr().out


def test_the_solutions_together_give_every_logit(solutions, capsys):
    said = verdict(capsys, **solutions)
    assert said.startswith("Right: all 155,648 logits are the same.\nAfter the prompt comes '42', ")
    assert "the story ' Ben'.\nYours: merge, rms_norm, " in said and "Lent" not in said


def test_each_of_them_runs_and_nothing_stays_changed(solutions):
    """Together, they call one another, whatever each was written with."""
    spaces = [vars(model), *(each.__globals__ for each in solutions.values())]
    before = [dict(space) for space in spaces]
    with watch(*solutions.values()) as seen:
        assert e07_loop._difference(solutions) is None
    calls = [call["def"] for call in seen]
    assert set(calls) == {f"my_{name}" for name in CORE}
    layers = 2 * 6  # of two texts
    assert calls.count("my_attend") == calls.count("my_attention") == layers
    assert calls.count("my_rotate") == 2 * layers and calls.count("my_rms_norm") == 2 * layers + 2
    assert [dict(space) for space in spaces] == before


def test_the_lent_functions_call_the_readers(solutions):
    for name in CORE:
        with watch(solutions[name]) as seen:
            assert e07_loop._difference({name: solutions[name]}) is None
        assert seen


@pytest.mark.parametrize("name", CORE)
def test_one_function_alone_gives_every_logit_too(solutions, name, capsys):
    """The package lends the others."""
    said = verdict(capsys, **{name: solutions[name]})
    assert said.startswith("Right: ") and f"\nYours: {name}.\nLent by the package: " in said


@pytest.mark.parametrize(("name", "i"), MISTAKES)
def test_with_a_known_wrong_answer_among_them_the_fault_is_named(solutions, name, i, capsys):
    mistake, message = EXERCISES[name].mistakes[i]
    said = verdict(capsys, **solutions | {name: mistake})
    first, _, rest = said.partition("\n")
    assert first == f"Not yet: the fault is in `{name}`, exercise {EXERCISES[name].number}:"
    assert rest == "\n".join(textwrap.fill(line, 80) for line in message.splitlines()) + "\n"


@pytest.mark.parametrize("name", [name for name in CORE if name not in ("merge", "attend")])
def test_a_function_may_call_the_one_of_its_name(name, capsys):
    """The package's, or an older one of the reader's; neither leads back to itself."""
    for text in (f"lambda *each: model.{name}(*each)", f"lambda *each: my_{name}(*each)"):
        space = {"model": model, f"my_{name}": vars(model)[name]}
        said = verdict(capsys, **{name: eval(text, space)})
        assert said.startswith("Right: ") and f"\nYours: {name}.\n" in said


def test_another_name_is_refused():
    with pytest.raises(InputError, match="no 'my_block'; its names are merge, rms_norm"):
        e07_loop.model(my_block=model.block)


def test_without_functions_the_package_lends_all(capsys):
    said = verdict(capsys)
    assert said.startswith("Right: ") and "\nLent by the package: all eight functions.\n" in said


def in_the_model(x):
    """Whether a tensor is of the tiny model, not of an exercise's case."""
    return x.shape[-1] == 192


def test_a_function_that_is_right_in_its_exercise_only_is_named(solutions, capsys, monkeypatch):
    """The faults show at the tiny model's size: a wrong value, an error, an endless loop."""
    monkeypatch.setattr(e07_loop, "SECONDS", 1)

    def wrong(x, weights):
        return solutions["feed_forward"](x, weights) * (2 if in_the_model(x) else 1)

    def raising(x, weights, eps):
        return x[{}] if in_the_model(x) else solutions["rms_norm"](x, weights, eps)

    def endless(x, weights, eps):
        while in_the_model(x):
            pass
        return solutions["rms_norm"](x, weights, eps)

    for function, name, text in (
        (wrong, "feed_forward", "the prompt's logits differ: at [0, 0]"),
        (raising, "rms_norm", "it raised IndexError"),
        (endless, "rms_norm", "it was still running after 4 seconds"),
    ):
        said = " ".join(verdict(capsys, **solutions | {name: function}).split())
        assert said.startswith(f"Not yet: `{name}` passes its own exercise, but in the model"), said
        assert text in said


def test_another_way_to_split_pieces_shows_in_the_ids(solutions, capsys):
    """A merge that fails on a long piece only: ids are compared as well as logits."""

    def merge(piece, ranks):
        parts = solutions["merge"](piece, ranks)
        return [bytes([byte]) for byte in piece] if piece == b" everything" else parts

    said = " ".join(verdict(capsys, merge=merge).split())
    assert "`merge` passes its own exercise, but in the model the prompt's ids differ" in said
