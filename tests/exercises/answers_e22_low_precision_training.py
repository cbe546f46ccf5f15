"""Answers to the exercises of notebook 22, apart from the checkers' own."""

import math

import torch


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, rounding):
        return rounding(w)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def by_a_function(w, rounding):
    return Straight.apply(w, rounding)


def less_the_error(w, rounding):
    return w - (w - rounding(w)).detach()


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w, rounding):
        ctx.save_for_backward(w)
        return rounding(w)

    @staticmethod
    def backward(ctx, gradient):
        (w,) = ctx.saved_tensors
        return gradient * (w.abs() <= 1), None


def only_inside(w, rounding):
    return Clipped.apply(w, rounding)


def nothing_detached(w, rounding):
    return w + (rounding(w) - w)


def overwritten(w, rounding):
    w.data = rounding(w.data)
    return w


def all_detached(w, rounding):
    return rounding(w).detach()


def flattened(dy, x, w):
    dw = dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return torch.einsum("...o,oi->...i", dy, w), dw


def by_autograd(dy, x, w):
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    return torch.autograd.grad(x @ w.T, (x, w), dy)


def token_by_token(dy, x, w):
    dw = torch.zeros_like(w)
    for d, row in zip(dy.flatten(0, -2), x.flatten(0, -2), strict=True):
        dw = dw + d[:, None] * row
    return dy @ w, dw


def not_summed(dy, x, w):
    return dy @ w, torch.einsum("...to,...ti->...oi", dy, x)


def averaged(dy, x, w):
    rows = x.reshape(-1, x.shape[-1])
    return dy @ w, dy.reshape(-1, dy.shape[-1]).T @ rows / len(rows)


def half_of_dx(dy, x, w):
    return dy @ w / 2, flattened(dy, x, w)[1]


def with_a_queue(amaxes, window, top):
    from collections import deque

    history, scale, scales = deque(maxlen=window), 1.0, []
    for amax in amaxes:
        largest = max(history, default=0.0)
        if largest > 0 and math.isfinite(largest):
            scale = top / largest
        scales.append(scale)
        history.append(amax)
    return scales


def of_now(amaxes, window, top):
    scale, scales = 1.0, []
    for t, _ in enumerate(amaxes):
        largest = max(amaxes[max(0, t - window + 1) : t + 1])
        scale = top / largest if 0 < largest < math.inf else scale
        scales.append(scale)
    return scales


def forgets_nothing(amaxes, window, top):
    scale, largest, scales = 1.0, 0.0, []
    for amax in amaxes:
        scale = top / largest if 0 < largest < math.inf else scale
        scales.append(scale)
        largest = max(largest, amax)
    return scales


def with_no_care_for_infinity(amaxes, window, top):
    scale, scales = 1.0, []
    for t in range(len(amaxes)):
        largest = max(amaxes[max(0, t - window) : t], default=0)
        scale = top / largest if largest > 0 else scale
        scales.append(scale)
    return scales


def of_the_finite_ones(amaxes, window, top):
    scale, scales = 1.0, []
    for t in range(len(amaxes)):
        known = [amax for amax in amaxes[max(0, t - window) : t] if 0 < amax < math.inf]
        scale = top / max(known) if known else scale
        scales.append(scale)
    return scales


def from_the_end(amaxes, window, top):
    scale, scales = 1.0, []
    for t in range(len(amaxes)):
        largest = max(amaxes[t - window : t], default=0)
        scale = top / largest if 0 < largest < math.inf else scale
        scales.append(scale)
    return scales


def back_to_one(amaxes, window, top):
    scales = []
    for t in range(len(amaxes)):
        largest = max(amaxes[max(0, t - window) : t], default=0)
        scales.append(top / largest if 0 < largest < math.inf else 1.0)
    return scales


def with_infinite_scales(amaxes, window, top):
    history = [max(amaxes[max(0, t - window) : t], default=top) for t in range(len(amaxes))]
    return [top / largest if largest else math.inf for largest in history]


def by_the_share(x, step, u):
    low = torch.floor(x / step)
    return torch.where(u < x / step - low, low + 1, low) * step


def by_half(x, step, u):
    return torch.round(x / step + u - 0.5) * step


def by_remainder(x, step, u):
    moved = x + u * step
    return moved - moved % step


def towards_zero(x, step, u):
    return (x / step + u).trunc() * step


def share_of_the_trunc(x, step, u):
    low = (x / step).trunc()
    return (low + (u < x / step - low)) * step


def a_coin(x, step, u):
    low = torch.floor(x / step)
    return torch.where(u < 0.5, low, low + 1) * step


def one_too_low(x, step, u):
    return (torch.floor(x / step + u) - 1) * step


RIGHT = {
    "e22_low_precision_training.straight_through": [by_a_function, less_the_error],
    "e22_low_precision_training.backward": [flattened, by_autograd, token_by_token],
    "e22_low_precision_training.delayed": [with_a_queue],
    "e22_low_precision_training.stochastic": [by_the_share, by_half, by_remainder],
}
OTHERS = {
    "e22_low_precision_training.straight_through": [
        (only_inside, "the gradient that reaches w is not the one"),
        (nothing_detached, "the gradient that reaches w is 0"),
        (all_detached, "the gradient that reaches w is 0"),
        (overwritten, "it changes its arguments"),
    ],
    "e22_low_precision_training.backward": [
        (not_summed, "There is one W"),
        (averaged, "It is the sum"),
        (half_of_dx, "dx is not right yet"),
    ],
    "e22_low_precision_training.delayed": [
        (of_now, "this step's own amax"),
        (forgets_nothing, "the whole history counts"),
        (with_no_care_for_infinity, "an infinite amax"),
        (with_infinite_scales, "a scale is 0 or infinite"),
        (of_the_finite_ones, "the infinity is left out"),
        (from_the_end, "counts from the end"),
        (back_to_one, "It stays as it was"),
    ],
    "e22_low_precision_training.stochastic": [
        (towards_zero, "go towards 0"),
        (share_of_the_trunc, "go towards 0"),
        (a_coin, "equally likely"),
        (one_too_low, "the mean over many u is not x"),
    ],
}
