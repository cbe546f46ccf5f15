"""The frame of the exercises: every kind of answer gets its own word."""

import signal
import time

import numpy as np
import pytest
import torch

from llama3_scratch.exercises import frame
from llama3_scratch.exercises.frame import Exercise, answer_property, desk, loops, of_each, uses


def double(x, times):
    return 2 * x * times


DOUBLE = Exercise(
    "A tensor and a number -> twice their product.",
    right=double,
    cases=lambda: [(torch.arange(6.0).reshape(2, 3) + seed, seed) for seed in (1, 2, 3)],
    mistakes=[
        (lambda x, times: x * times, "it is not doubled."),
        (lambda x, times: 2 * x, "the second argument is left out."),
    ],
    properties=[
        (of_each(lambda found, x, times: bool((found > 0).all())), "a number is not positive."),
        (answer_property(lambda answer, x, times: bool((answer(x, 0) == 0).all())),
         "zero times something is not zero."),
    ],
    but=[(uses("einsum", "matmul"), "without einsum, please."), (loops, "there is a loop.")],
)  # fmt: skip


def same(right):
    """An exercise whose one case has this result."""
    return Exercise("Give the thing itself.", lambda: right, lambda: [()], [])


def test_a_right_answer_is_accepted_and_rounding_forgiven(capsys):
    DOUBLE(double)
    assert capsys.readouterr().out == "Right: the same as ours on 3 inputs.\n"
    assert DOUBLE.verdict(lambda x, t: double(x, t) * (1 + 1e-6)).startswith("Right: ")
    assert not DOUBLE.verdict(lambda x, t: double(x, t) * (1 + 1e-3)).startswith("Right")


def test_a_known_mistake_is_named():
    assert DOUBLE.verdict(lambda x, t: x * t) == "Not yet: it is not doubled."
    assert DOUBLE.verdict(lambda x, t: x + x) == "Not yet: the second argument is left out."


def test_two_mistakes_at_once_are_told_one_by_a_property():
    assert DOUBLE.verdict(lambda x, t: -x) == "Not yet: a number is not positive."
    assert DOUBLE.verdict(lambda x, t: 3 * x + 1) == "Not yet: zero times something is not zero."
    nan = DOUBLE.verdict(lambda x, t: x / 0 * 0)
    assert "for a tensor [2, 3], 1 there is NaN in the result" in nan


def test_right_on_the_shown_case_only():
    for_one = DOUBLE.verdict(lambda x, t: 2 * x if t == 1 else 9 * x * t)
    assert for_one.startswith("Not yet: right for a tensor [2, 3], 1, wrong for all other inputs")


def test_a_broken_restriction_is_right_but():
    def with_einsum(x, t):
        return torch.einsum("ij->ij", x) * 2 * t

    def with_loop(x, t):
        return torch.stack([2 * row * t for row in x])

    assert DOUBLE.verdict(with_einsum) == "Right, but without einsum, please."
    assert DOUBLE.verdict(with_loop) == "Right, but there is a loop."


def without_return(x, t):
    double(x, t)


def one_way_without_return(x, t):
    if t == 1:
        return double(x, t)


def only_a_docstring(x, t):
    """Twice the product."""
    ...


def stop(x, t):
    y = x - x
    raise ZeroDivisionError(f"division by zero\nand more {y}")


def in_place(x, t):
    x *= 2
    return x * t


@pytest.mark.parametrize(("answer", "text"), [
    (only_a_docstring, "Write the body in place of `...`"),
    (without_return, "its body has no `return`"),
    (one_way_without_return, "for a tensor [2, 3], 2 it returned None: one way"),
    (stop, "for a tensor [2, 3], 1 it raised ZeroDivisionError: division by zero\nIn your line"),
    (stop, '`raise ZeroDivisionError(f"division by zero'),
    (in_place, "changes its arguments"),
    (torch.ones(2, 3), "this is a result. Give the checker the function itself"),
    (lambda x, t: double(x, t).T, "the shape is [3, 2], expected [2, 3]"),
    (lambda x, t: double(x, t).long(), "the dtype is torch.int64, expected torch.float32"),
    (lambda x, t: "3", "of type str, expected a tensor"),
])  # fmt: skip
def test_every_other_fault_is_told(answer, text):
    verdict = DOUBLE.verdict(answer)
    assert verdict.startswith("Not yet: ") and text in verdict


def test_a_value_says_where_it_is():
    plain = Exercise("", double, DOUBLE.cases, [])
    told = plain.verdict(lambda x, t: double(x, t) + t)
    assert told == "Not yet: for a tensor [2, 3], 1 at [0, 0] the value is 3, expected 2."


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.default_int_handler])
def test_an_endless_loop_ends(monkeypatch, handler):
    """Also where Ctrl-C is ignored, as for a program in a shell's background."""

    def endless(x, t):
        while True:
            t += 1

    monkeypatch.setattr(frame, "SECONDS", 0.3)
    before = signal.signal(signal.SIGINT, handler)
    try:
        began = time.monotonic()
        assert "still running after 0.3 seconds" in DOUBLE.verdict(endless)
        assert time.monotonic() - began < 5
        assert DOUBLE.verdict(double).startswith("Right: ")  # and nothing is left of the limit
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("right", "wrong"), [
    ([1, 2], [1, 3]), ([1, 2], [1, 2, 3]), ((1, "a"), (1, "b")), (b"a", b"b"), ("a", "b"),
    (0.25, 0.26), (True, False), ({"a": 1}, {"a": 2}), (1, "1"), ([1], 1), (1, torch.ones(2)),
    (True, torch.ones(2)), (True, 1), (0.0, 1e-9), (14336, 14337), ({"a": 1}, [1]),
    (torch.tensor([1, 2]), torch.tensor([1, 3])), (torch.tensor([14336]), torch.tensor([14337])),
    (torch.tensor([0.0, 9.0]), torch.tensor([1e-6, 9.0])),
    (torch.tensor([-torch.inf, 1.0]), torch.tensor([0.0, 1.0])),
    (torch.tensor([-torch.inf, 1.0]), torch.tensor([-1e9, 1.0])),
    (torch.tensor([True]), torch.tensor([1.0])), (torch.tensor([1j]), torch.tensor([-1j])),
    ({"a": torch.ones(2)}, {"a": torch.zeros(2)}), ({"a": 1}, {"b": 1}),
    ({"a": torch.ones(2), "b": 1}, {"a": torch.ones(2)}),
])  # fmt: skip
def test_results_of_all_kinds_are_compared(right, wrong):
    assert same(right).verdict(lambda: right) == "Right: the same as ours on 1 inputs."
    assert same(right).verdict(lambda: wrong).startswith("Not yet: ")


def test_numpy_and_float64_are_as_good():
    for right, other in (
        (torch.ones(2, 3), np.ones((2, 3), dtype=np.float32)),
        (torch.ones(2), torch.ones(2).double()),
        (True, np.True_), (2.5, np.float64(2.5)), (3, np.int64(3)), (3, torch.tensor(3)),
        ([1, 2], torch.tensor([1, 2])), ([1, 2], range(1, 3)), (torch.tensor(2.5), 2.5),
    ):  # fmt: skip
        assert same(right).verdict(lambda other=other: other).startswith("Right: "), other
    about_types = Exercise("", lambda: torch.ones(2), lambda: [()], [], dtype=True)
    told = about_types.verdict(lambda: torch.ones(2).double())
    assert "the dtype is torch.float64, expected torch.float32" in told


def test_inputs_are_not_cut_in_mid_word():
    words = " ".join(f"word{i}" for i in range(40))
    exercise = Exercise("", str.split, lambda: [(words,)], [])
    told = exercise.verdict(lambda text: ["word0"])
    assert "word5 word6" in told and " ... the result has 1 entries, expected 40." in told


def test_a_case_can_be_taken_by_its_number():
    case, *_ = desk({"__name__": "e99_doubles", "double": DOUBLE})
    arguments, expected = case("double", 1)
    assert torch.equal(expected, double(*arguments)) and arguments[1] == 2
    arguments[0].zero_()  # the checker's own case stays as it is
    assert DOUBLE.verdict(double).startswith("Right: ")
