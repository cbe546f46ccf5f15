"""How exercises are checked: every kind of answer gets its own word."""

import torch

from llama3_scratch import check
from llama3_scratch.check.frame import examine


def double(x, times):
    return 2 * x * times


CASES = [(torch.arange(6.0).reshape(2, 3) + seed, seed) for seed in (1, 2, 3)]
MISTAKES = {
    "twice too small: was it doubled?": lambda x, times: x * times,
    "the second argument is left out.": lambda x, times: 2 * x,
}


def said(capsys, answer, right=double, cases=CASES, mistakes=MISTAKES):
    examine(answer, right, cases, mistakes)
    return capsys.readouterr().out.strip()


def test_a_right_answer_is_told_so_and_rounding_is_forgiven(capsys):
    assert said(capsys, double) == "Right: the same as ours on 3 inputs."
    assert said(capsys, lambda x, t: double(x, t) * (1 + 1e-6)).startswith("Right")
    assert not said(capsys, lambda x, t: double(x, t) * (1 + 1e-3)).startswith("Right")


def test_a_known_mistake_is_named(capsys):
    assert said(capsys, lambda x, t: x * t) == "Not yet: twice too small: was it doubled?"
    assert said(capsys, lambda x, t: x + x) == "Not yet: the second argument is left out."


def test_any_other_fault_says_where_it_is(capsys):
    def stop(x, t):
        raise ZeroDivisionError("division by zero\nand more")

    def in_place(x, t):
        x *= 2
        return x * t

    for answer, text in (
        (lambda x, t: None, "returned None"),
        (stop, "for a tensor [2, 3], 1 it raised ZeroDivisionError: division by zero"),
        (in_place, "changes its arguments"),
        (lambda x, t: double(x, t).T, "the shape is [3, 2], expected [2, 3]"),
        (lambda x, t: double(x, t).double(), "the dtype is torch.float64, expected torch.float32"),
        (lambda x, t: 3.0, "of type float, expected a tensor"),
        (lambda x, t: double(x, t) + 1, "at [0, 0] the value is 3, expected 2"),
        (lambda x, t: double(x, t).where(x != 1, float("nan")), "at [0, 0] the value is nan"),
    ):
        told = said(capsys, answer)
        assert told.startswith("Not yet: ") and text in told, told


def test_results_of_all_kinds_are_compared(capsys):
    for right, wrong in (
        ([1, 2], [1, 3]), ([1, 2], [1, 2, 3]), ((1, "a"), (1, "b")), (b"a", b"b"), ("a", "b"),
        (0.25, 0.26), (True, False), ({"a": 1}, {"a": 2}), (1, "1"), ([1], 1),
        (1, torch.ones(2)), (True, torch.ones(2)),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (torch.tensor([-torch.inf, 1.0]), torch.tensor([0.0, 1.0])),
        ({"a": torch.ones(2)}, {"a": torch.zeros(2)}), ({"a": 1}, {"b": 1}),
        ({"a": torch.ones(2), "b": 1}, {"a": torch.ones(2)}), ({"a": 1}, [1]),
        (torch.tensor([1j]), torch.tensor([-1j])),
    ):  # fmt: skip
        same, other = (
            said(capsys, lambda v=v: v, lambda v=right: v, [()], {}) for v in (right, wrong)
        )
        assert same == "Right: the same as ours on 1 inputs."
        assert other.startswith("Not yet: for "), other


def test_every_checker_says_what_it_asks_for():
    """Public functions of the package `check`: a docstring, and a verdict on an empty answer."""
    checkers = [f for f in vars(check).values() if callable(f)]
    assert checkers
    for checker in checkers:
        assert checker.__doc__ and len(checker.__doc__) > 40, checker.__name__
