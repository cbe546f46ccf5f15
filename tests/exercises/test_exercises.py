"""Every exercise: right answers are accepted, and each mistake gets the message meant for it."""

import importlib
import pkgutil
from pathlib import Path

import pytest

from llama3_scratch import exercises
from llama3_scratch.exercises.frame import EMPTY, Exercise


def found(folder, package=""):
    return [importlib.import_module(package + each.name) for each in pkgutil.iter_modules(folder)]


ALL = {
    f"{module.__name__.rpartition('.')[2]}.{name}": exercise
    for module in found(exercises.__path__, f"{exercises.__name__}.")
    for name, exercise in vars(module).items()
    if isinstance(exercise, Exercise)
}
ANSWERS = [m for m in found([str(Path(__file__).parent)]) if m.__name__.startswith("answers_")]
RIGHT = {name: answers for module in ANSWERS for name, answers in module.RIGHT.items()}
OTHERS = {name: answers for module in ANSWERS for name, answers in module.OTHERS.items()}


def each(table):
    """Parameters (name, i) for every entry of {name: [entry, ...]}."""
    pairs = [(name, i) for name, entries in table.items() for i in range(len(entries))]
    return pytest.mark.parametrize(("name", "i"), pairs)


@pytest.mark.parametrize("name", ALL)
def test_the_right_answer_is_accepted_and_an_empty_one_is_not(name):
    exercise = ALL[name]
    assert exercise.verdict(exercise.right).startswith("Right: the same as ours on ")
    assert exercise.verdict(lambda *case: None) == f"Not yet: {EMPTY}"
    assert len(exercise.about) > 40 and exercise.case(0).expected is not None


@each({name: exercise.mistakes for name, exercise in ALL.items()})
def test_a_mistake_gets_its_own_message(name, i):
    mistake, message = ALL[name].mistakes[i]
    assert ALL[name].verdict(mistake) == f"Not yet: {message}"


@each(RIGHT)
def test_another_right_answer_is_accepted(name, i):
    verdict = ALL[name].verdict(RIGHT[name][i])
    assert verdict.startswith("Right: "), verdict


@pytest.mark.parametrize("name", ALL)
def test_properties_hold_for_right_answers(name):
    """They are asked only of wrong ones, so a false one would mislead and never show."""
    exercise = ALL[name]
    cases = exercise.named_cases()
    for answer in (exercise.right, *RIGHT[name]):
        assert exercise.broken(answer, exercise.results(answer, cases), cases) is None


@each(OTHERS)
def test_an_independent_wrong_answer_is_told_its_mistake(name, i):
    """It shares no line with the checker; `text` is part of what must be said to it."""
    answer, text = OTHERS[name][i]
    verdict = ALL[name].verdict(answer)
    assert verdict.startswith(("Not yet: ", "Right, but ")) and text in verdict, verdict


def test_each_exercise_has_independent_answers():
    assert ALL.keys() == RIGHT.keys() == OTHERS.keys()
    assert all(RIGHT.values()) and all(OTHERS.values())
