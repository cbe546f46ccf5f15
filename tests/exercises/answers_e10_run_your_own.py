"""Answers to the exercises of notebook 10, apart from the checkers' own."""

from collections import OrderedDict

import torch


def by_formula(n_pages, room, rounds):
    return n_pages if n_pages <= room else n_pages * rounds


def by_simulation(n_pages, room, rounds):
    held, read = OrderedDict(), 0
    for _ in range(rounds):
        for page in range(n_pages):
            read += page not in held
            held[page] = True
            held.move_to_end(page)
            if len(held) > room:
                held.popitem(last=False)
    return read


def one_place_more(n_pages, room, rounds):
    return by_simulation(n_pages, room + 1, rounds)


def apart(ours, theirs):
    return max(
        abs(a - b) for x, y in zip(ours.tolist(), theirs.tolist(), strict=True)
        for a, b in zip(x, y, strict=True)
    ) / max(abs(b) for row in theirs.tolist() for b in row)  # fmt: skip


def by_norm(ours, theirs):
    return torch.linalg.vector_norm(ours - theirs, float("inf")) / theirs.abs().amax()


def in_our_unit(ours, theirs):
    return (ours - theirs).abs().max() / ours.abs().max()


def row_by_row(ours, theirs):
    return max((a - b).abs().max() / b.abs().max() for a, b in zip(ours, theirs, strict=True))


def verdict(ours, theirs, bound):
    if not apart_by_torch(ours, theirs) <= bound:
        return "different"
    return "same" if (ours.argmax(-1) == theirs.argmax(-1)).all() else "tie"


def apart_by_torch(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def in_logits(ours, theirs, bound):
    if not (ours - theirs).abs().max() <= bound:
        return "different"
    return "same" if (ours.argmax(-1) == theirs.argmax(-1)).all() else "tie"


def in_one_heap(ours, theirs, bound):
    if not apart_by_torch(ours, theirs) <= bound:
        return "different"
    return "same" if ours.argmax() == theirs.argmax() else "tie"


def less_than(ours, theirs, bound):
    if not apart_by_torch(ours, theirs) < bound:
        return "different"
    return "same" if (ours.argmax(-1) == theirs.argmax(-1)).all() else "tie"


def no_number_at_all(ours, theirs, bound):
    if torch.isnan(ours).all() or apart_by_torch(ours, theirs) > bound:
        return "different"
    return "same" if (ours.argmax(-1) == theirs.argmax(-1)).all() else "tie"


RIGHT = {
    "e10_run_your_own.pages_read": [by_formula, by_simulation],
    "e10_run_your_own.distance": [apart, by_norm],
    "e10_run_your_own.judge": [verdict],
}
OTHERS = {
    "e10_run_your_own.pages_read": [
        (one_place_more, "the result is 3, expected 6"),
        (lambda n, room, rounds: n + (n - room) * (rounds - 1), "which ones stay"),
    ],
    "e10_run_your_own.distance": [
        (in_our_unit, "the unit is taken from ours"),
        (row_by_row, "a unit of its own"),
    ],
    "e10_run_your_own.judge": [
        (in_one_heap, "in all positions together"),
        (less_than, "exactly the bound"),
        (in_logits, "the bound is held against logits"),
        (no_number_at_all, "NaN passes"),
    ],
}
