"""The exercises of notebook 10: a file read in a circle, the distance of logits, a verdict."""

import math

import torch

from llama3_scratch.exercises.frame import Exercise, answer_property, desk, drawn

# --- A file read in a circle ----------------------------------------------------------------------


def _simulated(n_pages, room, rounds, leaves=0):
    """Pages read from disk. leaves: which page leaves a full memory, by the time of its last use.

    0 is the one not used for longest, -1 the one used last.
    """
    held, read = [], 0
    for page in list(range(n_pages)) * rounds:
        if page in held:
            held.remove(page)
        else:
            read += 1
            if len(held) == room:
                held.pop(leaves)
        held.append(page)
    return read


pages_read = Exercise(
    "(n_pages, room, rounds) -> how many pages are read from disk when a file of n_pages is read "
    "from its first page to its last, `rounds` times, with room for `room` pages in memory, and "
    "the page that was not used for longest leaves a full memory.",
    right=_simulated,
    cases=lambda: [(3, 2, 2), (3, 3, 4), (5, 4, 3), (7, 1, 5), (4, 9, 3), (8, 7, 1), (160, 150, 6)],
    hints=(
        "Write down what is in memory after each step of the case (3, 2, 2): pages 0, 1, 2, 0, 1, "
        "2. When page 0 is wanted for the second time, is it still there?",
        "There are two cases only: the file fits, or it does not. In the second one, which page "
        "has always just left?",
    ),
    mistakes=[
        (lambda n, room, rounds: n + max(0, n - room) * (rounds - 1),
         "this reads again only the pages for which there is no room. But which ones stay? Page 0 "
         "is wanted next when it is the one not used for longest, so it has left."),
        (lambda n, room, rounds: n + (n - room) * (rounds - 1),
         "this reads again only the pages for which there is no room. But which ones stay? Page 0 "
         "is wanted next when it is the one not used for longest, so it has left."),
        (lambda n, room, rounds: n * rounds,
         "this is right where the file does not fit. Where it fits, it is read once."),
        (lambda n, room, rounds: n,
         "this is right where the file fits. Where it does not, pages leave that come again."),
        (lambda n, room, rounds: n if n < room else n * rounds,
         "a file of exactly `room` pages fits."),
        (lambda *case: _simulated(*case, leaves=-1),
         "here the page that was used last leaves. It is the one that was not used for longest."),
        (lambda n, room, rounds: max(0, n - room) * rounds,
         "the first round reads every page, also those that stay."),
    ],
)  # fmt: skip


# --- The distance of logits -----------------------------------------------------------------------


def _pair(seed, T, V, where, by, middle=2.0):
    """Logits [T, V] twice, apart by `by` at one place, by a hundredth of it elsewhere."""
    ours, noise = drawn(seed, (T, V), (T, V))
    theirs = 5 * ours + middle
    change = noise.clamp(-1, 1) * by / 100
    change[where] = by
    return theirs + change, theirs


def _pairs():
    return {
        "T = 1, V = 3": (torch.tensor([[1.0, 4.0, -2.0]]), torch.tensor([[1.0, 3.0, -2.0]])),
        "T = 4, V = 7, most apart at position 1": _pair(1, 4, 7, (1, 2), 0.5),
        "T = 5, V = 6, ours smaller there": _pair(2, 5, 6, (0, 4), -0.25, -3.0),
        "T = 3, V = 9, far apart": _pair(3, 3, 9, (2, 8), 30.0),
        "T = 2, V = 8, equal": (torch.ones(2, 8).cumsum(-1), torch.ones(2, 8).cumsum(-1)),
    }


def _distance(ours, theirs, apart=torch.abs, of=torch.max, scale=lambda x: x.abs().max()):
    return float(of(apart(ours - theirs)) / scale(theirs))


distance = Exercise(
    "Two sets of logits [T, V] -> one number: their largest difference at any position and token, "
    "divided by the largest magnitude among theirs.",
    right=_distance,
    cases=_pairs,
    hints=(
        "Three steps: subtract, take the size of each difference, take the largest of all T times "
        "V. The unit is one number too.",
        "`x.abs().max()` is the largest magnitude in a tensor. It occurs twice.",
    ),
    mistakes=[
        (lambda ours, theirs: _distance(ours[-1:], theirs[-1:]),
         "this looks at the last position alone. Many faults change all the others first."),
        (lambda ours, theirs: _distance(ours[-1:], theirs[-1:], scale=lambda _: theirs.abs().max()),
         "this looks at the last position alone. Many faults change all the others first."),
        (lambda *case: _distance(*case, apart=lambda x: x),
         "the sign counts here: where ours are smaller, the difference is negative and never the "
         "largest. Take its size."),
        (lambda *case: _distance(*case, of=torch.mean),
         "this is the mean. One wrong position among many hides in a mean."),
        (lambda *case: _distance(*case, scale=lambda x: 1.0),
         "this is in logits. Divide by the largest magnitude among theirs: a difference of 0.5 is "
         "much where logits reach 2 and little where they reach 50."),
        (lambda *case: _distance(*case, scale=torch.max),
         "the unit is the largest logit. A large negative one counts as well: `.abs().max()`."),
        (lambda *case: _distance(*case, scale=torch.std),
         "the unit is the standard deviation. It is asked for in units of the largest magnitude."),
        (lambda ours, theirs: float(((ours - theirs).abs() / theirs.abs()).max()),
         "each difference is divided by its own logit. A logit near 0 makes that huge; the unit is "
         "one number for all."),
        (lambda ours, theirs: _distance(theirs, ours),
         "the unit is taken from ours. Take it from theirs: what is tested is not the measure."),
        (lambda ours, theirs: float(max(
            (a - b).abs().max() / b.abs().max() for a, b in zip(ours, theirs, strict=True))),
         "each position has a unit of its own here. The unit is one number, of all positions."),
        (lambda ours, theirs: _distance(ours.softmax(-1), theirs.softmax(-1)),
         "these are probabilities. Compare the logits."),
    ],
)  # fmt: skip


# --- A verdict ------------------------------------------------------------------------------------


def _judge(ours, theirs, bound, rows=slice(None), blind=False, ties=True, first=False):
    ours, theirs = ours[rows], theirs[rows]
    apart = _distance(ours, theirs)
    if apart > bound or math.isnan(apart) and not blind:
        return "different"
    changed = (ours.argmax(-1) != theirs.argmax(-1)).any()
    return "tie" if ties and changed else "same"


def _verdicts():
    rows = torch.tensor([[2.0, 5.0, -1.0, 4.0], [0.0, 1.0, 8.0, 7.99], [3.0, 6.0, -2.0, 1.0]])
    swapped = rows + torch.tensor([[0, 0, 0, 0], [0, 0, -0.01, 0.01], [0, 0, 0, 0]])
    wrong = rows.clone()
    wrong[0, 2] = 1.5  # nothing that argmax sees
    low = rows.clone()
    low[0, 3] = 5.01  # a row whose numbers are not the largest of all
    late = rows.clone()
    late[2, 0] = 6.5
    broken = rows.clone()
    broken[1, 0] = math.nan
    return {
        "the same logits": (rows, rows.clone(), 0.01),
        "two likely tokens that change places": (swapped, rows, 0.01),
        "two that change places at position 0": (low, rows, 0.2),
        "a distance of exactly the bound": (
            torch.tensor([[1.0, 4.0]]),
            torch.tensor([[0.0, 4.0]]),
            0.25,
        ),
        "the same, with a strict bound": (swapped, rows, 0.0001),
        "an unlikely token at position 0 that is wrong": (wrong, rows, 0.01),
        "a wrong likeliest token at the last position": (late, rows, 0.01),
        "a NaN": (broken, rows, 0.01),
        "a small difference": (rows + 0.001, rows, 0.01),
    }


@answer_property
def _sees_nan(answer, ours, theirs, bound):
    return answer(ours * math.nan, theirs, bound) == "different"


judge = Exercise(
    'Two sets of logits [T, V], a bound -> "different" if their distance (exercise 10.2) is more '
    'than the bound or no number, else "tie" if the likeliest token is another one at any '
    'position, else "same".',
    right=_judge,
    cases=_verdicts,
    hints=(
        "Decide first whether the logits are apart by more than the bound; the likeliest tokens "
        "are looked at only if they are not.",
        "A comparison with NaN is False, whichever it is: `nan > bound` and `nan <= bound`. Which "
        "of the two must be True for logits that are the same?",
    ),
    mistakes=[
        (lambda *case: _judge(*case, blind=True),
         "NaN passes as \"same\": `nan > bound` is False. Ask whether the distance is at most the "
         "bound, and answer \"different\" if not."),
        (lambda *case: _judge(*case, rows=slice(-1, None)),
         "this looks at the last position alone."),
        (lambda ours, theirs, bound: _judge(ours, theirs, bound / float(theirs.abs().max())),
         "the bound is held against logits. Divide by their largest magnitude first, as in 10.2."),
        (lambda ours, theirs, bound: _judge(ours[None].flatten(1), theirs[None].flatten(1), bound),
         "`argmax()` without -1 looks for one token in all positions together. Ask at each "
         "position: `argmax(-1)`."),
        (lambda *case: "different" if not _distance(*case[:2]) < case[2] else _judge(*case),
         "a distance of exactly the bound is not more than the bound."),
        (lambda *case: _judge(*case, ties=False),
         "where the likeliest token changes within the bound, the answer is \"tie\"."),
        (lambda ours, theirs, bound:
             "same" if torch.equal(ours.argmax(-1), theirs.argmax(-1)) else "different",
         "this looks at the likeliest tokens alone. They can agree where logits are wrong, and "
         "differ where logits are right."),
        (lambda ours, theirs, bound:
             "tie" if not torch.equal(ours.argmax(-1), theirs.argmax(-1))
             else _judge(ours, theirs, bound),
         "a likeliest token that changes is a tie only within the bound. Ask for the distance "
         "first."),
    ],
    properties=[
        (_sees_nan,
         "logits that are all NaN should be \"different\"."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
