"""The exercises of notebook 22: the straight-through estimator, the two backward products, delayed
scales, stochastic rounding."""

import math

import torch

from llama3_scratch.exercises.frame import Exercise, agree, desk, drawn, of_each
from llama3_scratch.quantize import dequantize, rtn

# --- Straight through -----------------------------------------------------------------------------


def _straight_through(w, rounding):
    return w + (rounding(w) - w).detach()


def _with_gradient(answer, w, rounding, upstream):
    """What an answer returns, and the gradient that reaches w if `upstream` comes from above."""
    rounded = answer(w.requires_grad_(), rounding)
    if rounded is None:
        return None
    if rounded.requires_grad:
        (rounded * upstream).sum().backward()
    return [rounded.detach(), torch.zeros_like(w) if w.grad is None else w.grad]


def _quarters(w):
    return (w * 4).round() / 4


def _two_bits(w):
    return dequantize(rtn(w.detach(), 2))


def _weights():
    x, g, y, h, z, k = drawn(22, (5,), (5,), (3, 8), (3, 8), (2, 3, 4), (2, 3, 4))
    return {
        "three weights": (torch.tensor([0.3, 1.7, -2.4]), torch.round,
                          torch.tensor([1.0, -2.0, 0.5])),
        "steps of a quarter": (x, _quarters, g),
        "a matrix in 2 bits": (y, _two_bits, h),
        "leading dimensions, rounded down": (z * 3, torch.floor, k),
    }  # fmt: skip


straight_through = Exercise(
    "Weights w [...] and a function that rounds them -> rounding(w) [...], with a gradient that "
    "passes unchanged: what reaches the result reaches w, as if nothing had been rounded.",
    right=_straight_through,
    cases=_weights,
    run=_with_gradient,
    hints=(
        "`x.detach()` has the values of x, and no gradient flows through it.",
        "Write the rounded weight as w plus a difference. Which of the two terms should carry the "
        "gradient?",
    ),
    mistakes=[
        (lambda w, rounding: rounding(w),
         "the gradient that reaches w is 0. Rounding is flat almost everywhere: its own "
         "derivative, 0, has to be kept out of the way."),
        (lambda w, rounding: w,
         "the weights come back as they were. Their values must be the rounded ones."),
        (lambda w, rounding: w.detach() + (rounding(w).detach() - w),
         "the gradient has the wrong sign: it flows through the difference. Detach the difference, "
         "not w."),
        (lambda w, rounding: w + rounding(w).detach(),
         "the weights are added to the rounded ones. Add what rounding changes: rounding(w) - w."),
        (lambda w, rounding: w * (rounding(w) / w).detach(),
         "the values are right, but the gradient is multiplied by rounding(w) / w, which is 0 for "
         "each weight that is rounded to 0. Add a difference in place of multiplying a ratio."),
        (lambda w, rounding: 2 * w + (rounding(w) - 2 * w).detach(),
         "the values are right, but the gradient is doubled. It must pass unchanged."),
    ],
    properties=[
        (of_each(lambda found, w, rounding, g: agree(found[0], rounding(w))),
         "the values are not those of rounding(w)."),
        (of_each(lambda found, w, rounding, g: agree(found[1], g)),
         "the values are right, but the gradient that reaches w is not the one that came from "
         "above."),
    ],
)  # fmt: skip


# --- The two products of the backward pass --------------------------------------------------------


def _backward(dy, x, w):
    return dy @ w, torch.einsum("...o,...i->oi", dy, x)


def _products():
    a, b, c, d, e, f = drawn(23, (4, 3), (4, 5), (3, 5), (2, 3, 4, 5), (2, 3, 4, 7), (5, 7))
    small = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.0, 3.0]])
    return {
        "three tokens": (small, torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0], [1.0, 0.0, 1.0]]),
                         torch.tensor([[1.0, -1.0, 2.0], [0.0, 3.0, 1.0]])),
        "four tokens": (a, b, c),
        "one token": (a[:1], b[:1], c),
        "leading dimensions": (d, e, f),
    }  # fmt: skip


backward = Exercise(
    "For y = x W^T: the gradient of the loss with respect to y, dy [..., O], with x [..., I] and "
    "W [O, I] -> (dx [..., I], dw [O, I]), its gradients with respect to x and to W.",
    right=_backward,
    cases=_products,
    hints=(
        "Look at the shapes. dx has those of x: which side of dy must W stand on, and is it "
        "transposed?",
        "A weight meets every token, so dw is a sum over all tokens, whatever the leading "
        "dimensions: flatten them first.",
    ),
    mistakes=[
        (lambda dy, x, w: _backward(dy, x, w)[::-1],
         "the two are exchanged: first dx, then dw."),
        (lambda dy, x, w: (dy @ w, torch.einsum("...o,...i->io", dy, x)),
         "dw is transposed: like W it has a row for each output, [O, I]."),
        (lambda dy, x, w: (dy @ w, torch.einsum("...o,...i->oi", dy, x) / dy[..., 0].numel()),
         "dw is the mean over the tokens. It is the sum: the mean is already in dy, if the loss is "
         "one."),
        (lambda dy, x, w: (dy @ w, dy.transpose(-2, -1) @ x),
         "each leading dimension keeps a dw of its own. There is one W, so one dw [O, I]: sum over "
         "all of them."),
        (lambda dy, x, w: (dy @ w, dy.flatten(0, -2)[:1].mT @ x.flatten(0, -2)[:1]),
         "dw comes from the first token alone. Every token adds its part."),
        (lambda dy, x, w: (x, _backward(dy, x, w)[1]),
         "dx is x itself. It is the gradient with respect to x: dy goes back through W."),
    ],
    properties=[
        (of_each(lambda found, dy, x, w: agree(found[0], dy @ w)), "dx is not right yet."),
    ],
)  # fmt: skip


# --- Delayed scales -------------------------------------------------------------------------------


def _delayed(amaxes, window, top, ahead=0, most=max, keep=True, first=1.0, turned=False, least=0):
    scales, scale = [], first
    for t in range(len(amaxes)):
        history = amaxes[max(least, t + ahead - window) : t + ahead]
        largest = most(history) if history else 0.0
        if largest > 0 and (largest < math.inf or not keep):
            scale = largest / top if turned else top / largest
        scales.append(scale)
    return scales


def _largest_finite(history):
    return max((amax for amax in history if amax < math.inf), default=0.0)


delayed = Exercise(
    "(amaxes, window, top): the largest magnitude of a tensor at each step -> the scale used at "
    "each step. It is top over the largest amax of the last `window` steps *before* this one. The "
    "first step has no history: its scale is 1. If the largest amax of the history is 0 or "
    "infinite, the scale stays as it was.",
    right=lambda amaxes, window, top: _delayed(amaxes, window, top),
    cases=lambda: {
        "a rising amax": ([1.0, 2.0, 4.0, 8.0], 2, 448.0),
        "one that rises and falls": ([1.0, 7.0, 2.0, 1.0, 0.5, 0.25, 3.0], 3, 448.0),
        "a window of one step": ([2.0, 0.5, 4.0, 1.0], 1, 57344.0),
        "a tensor of zeros": ([0.0, 0.0, 3.0, 0.0, 0.0, 1.0], 2, 448.0),
        "an infinity": ([2.0, math.inf, 1.0, 4.0, 2.0], 2, 448.0),
        "a long window": ([3.0, 1.0, 2.0], 16, 57344.0),
    },
    hints=(
        "At step t the history is `amaxes[:t]`, and of it the last `window` entries. The amax of "
        "step t itself is not known yet: that is the point of it.",
        "Keep a variable `scale`, 1.0 at first, and change it only if the largest amax of the "
        "history is above 0 and finite. `amaxes[max(0, t - window) : t]` has no negative index.",
    ),
    mistakes=[
        (lambda a, window, top: _delayed(a, window, top, ahead=1),
         "the history ends with this step's own amax. That is a scale of now: it is known only "
         "when the tensor has been computed. Use the steps before it."),
        (lambda a, window, top: _delayed(a, 1, top),
         "only the last step counts. Take the largest amax of the last `window` steps."),
        (lambda a, window, top: _delayed(a, len(a), top),
         "the whole history counts. After `window` steps an amax is forgotten."),
        (lambda a, window, top: _delayed(a, window + 1, top),
         "the window has one step too many."),
        (lambda a, window, top: _delayed(a, window, top, most=lambda h: sum(h) / len(h)),
         "the scale comes from the mean of the history. With its largest amax fewer numbers are "
         "cut off."),
        (lambda a, window, top: _delayed(a, window, top, most=min),
         "the scale comes from the smallest amax of the history; it takes the largest."),
        (lambda a, window, top: _delayed(a, window, top, turned=True),
         "this is the inverse: numbers are *multiplied* by top / amax before they are rounded."),
        (lambda a, window, top: _delayed(a, window, top, least=-window),
         "while the history is shorter than the window, `t - window` is negative, and such an "
         "index counts from the end. Begin the slice at max(0, t - window)."),
        (lambda a, window, top: _delayed(a, window, top, keep=False),
         "an infinite amax makes a scale of 0. Keep the last scale instead."),
        (lambda a, window, top: _delayed(a, window, top, most=_largest_finite),
         "the infinity is left out of the history, and the next largest amax makes the scale. "
         "As long as it is in the history, the last scale is kept."),
        (lambda a, window, top: [
            top / m if 0 < (m := max(a[max(0, t - window) : t], default=0)) < math.inf else 1.0
            for t in range(len(a))],
         "the scale goes back to 1 when the history gives none. It stays as it was."),
        (lambda a, window, top: _delayed(a, window, top, first=top),
         "the first scale is 1: no amax is known yet."),
        (lambda a, window, top: _delayed(a, window, top, first=top / a[0] if a[0] else 1.0),
         "the first scale comes from the first step's own amax, which is not known yet: it is 1."),
    ],
    properties=[
        (of_each(lambda found, a, window, top: len(found) == len(a)),
         "each step needs a scale: as many scales as steps."),
        (of_each(lambda found, a, window, top: all(0 < s < math.inf for s in found)),
         "a scale is 0 or infinite. Such an amax must not change the scale."),
    ],
)  # fmt: skip


# --- Stochastic rounding --------------------------------------------------------------------------


def _stochastic(x, step, u, up=torch.floor):
    return up(x / step + u) * step


def _many_times(answer, x, step):
    """An answer's mean, least and largest result for 64 values of u spread evenly over [0, 1)."""
    u = (torch.arange(64) + 0.5).div(64)[(...,) + (None,) * x.dim()].expand(64, *x.shape)
    rounded = answer(x.expand(64, *x.shape), step, u)
    return rounded if rounded is None else [rounded.mean(0), rounded.amin(0), rounded.amax(0)]


stochastic = Exercise(
    "Numbers x [...], the distance `step` between neighbours of a grid (a number, or [...]), and u "
    "[...], drawn evenly from [0, 1) -> x rounded to a multiple of step, up or down at random: the "
    "nearer neighbour is the likelier one, so that the mean over many u is x itself. The checker "
    "calls it with many u.",
    right=_stochastic,
    cases=lambda: {
        "four numbers, a step of 1": (torch.tensor([0.25, 2.5, 3.0, 0.875]), 1.0),
        "negative numbers": (torch.tensor([-0.25, -2.75, -3.0, 0.5]), 1.0),
        "a step of 1/8": (torch.tensor([0.21875, -0.4375, 1.0, 0.03125]), 0.125),
        "a step of 10": (torch.tensor([[2.5, -7.5], [20.0, 33.75]]), 10.0),
        "a step for each number": (torch.tensor([0.3125, -5.5, 9.0]),
                                   torch.tensor([0.5, 1.0, 4.0])),
    },
    run=_many_times,
    hints=(
        "Count in units of step: x / step lies between two whole numbers, a share of the way up. "
        "With which probability should it go up?",
        "Rounding down after adding something drawn from [0, 1) goes up exactly that often. Mind "
        "negative numbers: `floor` goes down, `trunc` goes towards 0.",
    ),
    mistakes=[
        (lambda x, step, u: (x / step).round() * step,
         "u is not used: this is rounding to nearest, the same every time."),
        (lambda x, step, u: _stochastic(x, step, u, torch.round),
         "the mean is half a step too high: rounding to nearest after adding u. Round down after "
         "it, or take half off u."),
        (lambda x, step, u: _stochastic(x, step, u, torch.ceil),
         "the mean is a whole step too high: rounding up after adding u. Round down after it."),
        (lambda x, step, u: _stochastic(x, step, u, torch.trunc),
         "negative numbers are wrong: `trunc`, and `int`, go towards 0. `floor` goes down."),
        (lambda x, step, u: ((x / step).floor() + (u < 0.5)) * step,
         "up and down are equally likely. The nearer neighbour must be the likelier one."),
        (lambda x, step, u: ((x / step).floor() + (u > x / step - (x / step).floor())) * step,
         "the further neighbour is the likelier one: the probabilities are exchanged."),
        (lambda x, step, u: ((x + u) / step).floor() * step,
         "u is added to x itself. It must be added in units of step, after the division."),
        (lambda x, step, u: (x / step + u).floor(),
         "the result is counted in steps. Multiply by step again."),
        (lambda x, step, u: x,
         "x comes back unrounded."),
        (lambda x, step, u: x + (u - 0.5) * step,
         "this is x with noise. The result must be a multiple of step."),
        (lambda x, step, u: ((x / step).trunc() + (u < x / step - (x / step).trunc())) * step,
         "negative numbers are wrong: `trunc`, and `int`, go towards 0. `floor` goes down."),
    ],
    properties=[
        (of_each(lambda found, x, step: agree(found[0], x)),
         "the mean over many u is not x."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
