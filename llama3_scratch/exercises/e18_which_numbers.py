"""The exercises of notebook 18: the nearest entry, the best table, logarithms, quantiles."""

import torch

from llama3_scratch.exercises.frame import Exercise, desk, drawn

# --- The nearest entry ----------------------------------------------------------------------------


def _distances(x, table):
    return (x[..., None] - table).abs()


def _tables():
    x, y = drawn(18, (7,), (2, 3, 5))
    return [
        (torch.tensor([0.2, 1.9, -3.0, 8.0]), torch.tensor([0.0, 1.0, 2.0, 4.0])),
        (x, torch.tensor([-1.0, -0.25, 0.25, 1.0])),
        (y, torch.tensor([-2.0, -0.4, 0.0, 0.1, 1.5])),
    ]


nearest = Exercise(
    "Numbers [...] and a table [n], sorted -> codes [...], whole numbers: for each number the "
    "place of the nearest entry. No number of the cases is halfway between two.",
    right=lambda x, table: _distances(x, table).argmin(-1),
    cases=_tables,
    hints=(
        "All distances at once: give x one more dimension, so that it meets every entry.",
        "Distances [..., n] have to lose their last dimension, and what is wanted is a place, not "
        "a distance.",
    ),
    mistakes=[
        (lambda x, table: table[_distances(x, table).argmin(-1)],
         "these are the entries themselves. Wanted are their places in the table, the codes."),
        (lambda x, table: _distances(x, table).argmax(-1),
         "this is the farthest entry."),
        (lambda x, table: (x[..., None] - table).argmin(-1),
         "a difference can be negative: take its size before you compare."),
        (lambda x, table: (torch.searchsorted(table, x.contiguous(), right=True) - 1).clamp(min=0),
         "this is the entry below, not the nearest one."),
        (lambda x, table: torch.searchsorted(table, x.contiguous()).clamp(max=len(table) - 1),
         "this is the entry above, not the nearest one."),
        (lambda x, table: _distances(x.abs(), table).argmin(-1),
         "the sign of the number is lost."),
    ],
)  # fmt: skip


# --- One step of Lloyd ----------------------------------------------------------------------------


def _step(x, table, middle=torch.median, alone=True):
    codes = _distances(x, table).argmin(-1)
    return torch.stack([
        middle(x[codes == i]) if (codes == i).any() else
        (entry if alone else torch.zeros_like(entry))
        for i, entry in enumerate(table)
    ])  # fmt: skip


lloyd = Exercise(
    "Numbers [N] and a table [n], sorted -> the next table [n]: each entry becomes the median (as "
    "torch.median has it) of the numbers that are nearest to it. An entry with none stays.",
    right=_step,
    cases=lambda: [
        (torch.tensor([0.1, 0.2, 0.9, 2.0, 3.0]), torch.tensor([0.0, 1.0])),
        (drawn(1, (101,))[0], torch.tensor([-1.5, -0.5, 0.5, 1.5])),
        (drawn(2, (64,))[0].exp(), torch.tensor([0.1, 1.0, 2.0, 50.0])),
    ],
    hints=(
        "First the code of every number, as in 18.1. Then, for each entry, the numbers with its "
        "code: a mask chooses them.",
        "Ask whether the mask chooses any number at all before you take the median.",
    ),
    mistakes=[
        (lambda x, table: _step(x, table, middle=torch.mean),
         "these are means. They are best for the squared error; for the absolute one it is the "
         "median."),
        (lambda x, table: _step(x, table, alone=False),
         "an entry to which no number is nearest should stay where it is."),
        (lambda x, table: table,
         "the table is the one that was given."),
        (lambda x, table: _step(x, table, middle=lambda mine: (mine.min() + mine.max()) / 2),
         "this is the middle between the smallest and the largest of the numbers: it does not ask "
         "where most of them are."),
    ],
)  # fmt: skip


# --- A sum of logarithms --------------------------------------------------------------------------


log_sum = Exercise(
    "a, b [...], the logarithms to base 2 of positive numbers -> the logarithm of their sum. "
    "Neither 2^a nor 2^b may be computed: they can be too large or too small.",
    right=lambda a, b: torch.logaddexp2(a, b),
    cases=lambda: [
        (torch.tensor([0.0, 1.0, 3.0]), torch.tensor([0.0, 0.0, 1.0])),
        (torch.tensor([-2.5, 4.0]), torch.tensor([1.25, 4.0])),
        (torch.tensor([300.0, -300.0, -200.0]), torch.tensor([300.0, -301.0, 200.0])),
    ],
    hints=(
        "Take the larger number out of the sum: X + Y = X (1 + Y/X). What is log2 of Y/X?",
        "Only d, the distance of the two logarithms, goes into a power, and with a minus sign.",
    ),
    mistakes=[
        (lambda a, b: a + b,
         "a sum of logarithms is the logarithm of the product."),
        (lambda a, b: (2**a + 2**b).log2(),
         "this is right until a power leaves float32: 2^300 is infinite there, 2^-300 is 0."),
        (torch.maximum,
         "the larger one alone: the smaller one still adds something, log2(1 + 2^-d)."),
        (lambda a, b: torch.minimum(a, b) + (1 + 2 ** -(a - b).abs()).log2(),
         "the small number was taken out of the sum, but the correction is for the large one."),
        (lambda a, b: a + (1 + 2 ** -(a - b)).log2(),
         "this overflows where b is much larger than a. Take the larger one out of the sum."),
        (lambda a, b: torch.maximum(a, b) + (1 + (-(a - b).abs()).exp()).log2(),
         "the base is 2, not e: 2^-d."),
        (lambda a, b: torch.logaddexp(a, b),
         "this is for logarithms to base e."),
    ],
)  # fmt: skip


# --- A table of quantiles -------------------------------------------------------------------------


def _normal_table(outer, upper=9, lower=8, scaled=True, zeros=False):
    def quantiles(n):
        probabilities = torch.linspace(outer, 0.5, n, dtype=torch.float64)
        return torch.special.ndtri(probabilities)[: None if zeros else -1]

    zero = torch.zeros(0 if zeros else 1, dtype=torch.float64)
    numbers = torch.cat([-quantiles(lower), zero, quantiles(upper).flip(0)])
    return (numbers / numbers.max() if scaled else numbers).float()


normal_table = Exercise(
    "outer, a probability -> [16], sorted: 7 quantiles below 0, one 0, and 8 above it, divided by "
    "the largest. Above: the probabilities are 9 equally spaced ones from outer down to 0.5, which "
    "gives the 0. Below: 8 equally spaced ones, with the sign changed.",
    right=_normal_table,
    cases=lambda: [(0.9677083,), (0.99,), (0.95,)],
    hints=(
        "`torch.special.ndtri(p)` is the number below which a normal variable lies with "
        "probability p; `torch.linspace` spaces the probabilities. Which of them gives 0?",
        "The 0 comes out of both halves, and it belongs into the table once.",
    ),
    mistakes=[
        (lambda outer: _normal_table(outer, scaled=False),
         "the largest entry should be 1: divide by it."),
        (lambda outer: _normal_table(outer, upper=8, lower=9),
         "the halves have changed places: eight entries are above 0, seven below."),
        (lambda outer: _normal_table(outer, zeros=True),
         "0 is in it twice: once from each half."),
        (lambda outer: torch.linspace(-1, 1, 16),
         "these entries have equal distances. The probabilities should have them."),
        (lambda outer: _normal_table(outer).flip(0),
         "the entries should be sorted from -1 to 1."),
    ],
)  # fmt: skip

case, hint, lent, progress, status = desk(globals())
