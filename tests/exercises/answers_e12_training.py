"""Answers to the exercises of notebook 12, apart from the checkers' own."""

import math

import torch
from torch.nn import functional

# --- The loss -------------------------------------------------------------------------------------


def by_pytorch(logits, targets, ignored):
    flat = logits.reshape(-1, logits.shape[-1]), targets.flatten()
    return functional.cross_entropy(*flat, ignore_index=ignored)


def by_loops(logits, targets, ignored):
    total, n = 0.0, 0
    rows = logits.reshape(-1, logits.shape[-1]).tolist()
    for row, target in zip(rows, targets.flatten().tolist(), strict=True):
        if target != ignored:
            top = max(row)
            total += top + math.log(sum(math.exp(x - top) for x in row)) - row[target]
            n += 1
    return torch.tensor(total / n)


def log_of_softmax(logits, targets, ignored):
    counted = targets != ignored
    p = (logits.exp() / logits.exp().sum(-1, keepdim=True))[counted]
    return -p[torch.arange(len(p)), targets[counted]].log().mean()


def row_by_row(logits, targets, ignored):
    if targets.dim() == 1:
        return by_pytorch(logits, targets, ignored)
    return torch.stack(
        [row_by_row(a, b, ignored) for a, b in zip(logits, targets, strict=True)]
    ).mean()


def softmax_then_log(logits, targets, ignored):
    counted = targets != ignored
    p = torch.softmax(logits, -1)[counted]
    return -p[torch.arange(len(p)), targets[counted]].log().mean()


def shifted_again(logits, targets, ignored):
    return by_loops(logits[..., :-1, :], targets[..., 1:], ignored)


def all_that_are_not_negative(logits, targets, ignored):
    counted = targets >= 0
    logs = logits[counted].log_softmax(-1)
    return -logs[torch.arange(len(logs)), targets[counted]].mean()


def sum_over_all(logits, targets, ignored):
    flat = logits.reshape(-1, logits.shape[-1]), targets.flatten()
    return functional.cross_entropy(*flat, ignore_index=ignored, reduction="sum") / targets.numel()


def per_position(logits, targets, ignored):
    return functional.cross_entropy(
        logits.movedim(-1, 1 if targets.dim() > 1 else -1),
        targets,
        ignore_index=ignored,
        reduction="none",
    )


# --- The backward pass of RMSNorm -----------------------------------------------------------------


def by_autograd(grad, x, weight, eps):
    x, weight = (tensor.clone().requires_grad_() for tensor in (x, weight))
    y = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight
    return torch.autograd.grad(y, (x, weight), grad)


def with_the_jacobian(grad, x, weight, eps):
    D = x.shape[-1]
    rows, total = [], torch.zeros(D)
    for g, row in zip(grad.reshape(-1, D), x.reshape(-1, D), strict=True):
        rms = (row @ row / D + eps) ** 0.5
        jacobian = torch.eye(D) / rms - torch.outer(row, row) / (D * rms**3)
        rows.append((g * weight) @ jacobian)
        total = total + g * row / rms
    return torch.stack(rows).view(x.shape), total


def frozen_scale(grad, x, weight, eps):
    rms = (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return grad * weight / rms, (grad * x / rms).reshape(-1, x.shape[-1]).sum(0)


def first_dimension_only(grad, x, weight, eps):
    rms = (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return by_autograd(grad, x, weight, eps)[0], (grad * x / rms).sum(0)


def weight_in_its_own_gradient(grad, x, weight, eps):
    grad_x, grad_weight = by_autograd(grad, x, weight, eps)
    return grad_x, grad_weight * weight


def plus(grad, x, weight, eps):
    scale, d = (x.square().mean(-1, keepdim=True) + eps).rsqrt(), grad * weight
    along = (d * x).mean(-1, keepdim=True) * scale**2
    return (d + x * along) * scale, by_autograd(grad, x, weight, eps)[1]


def no_eps(grad, x, weight, eps):
    return by_autograd(grad, x, weight, 0.0)


def weight_row_by_row(grad, x, weight, eps):
    grad_x, _ = by_autograd(grad, x, weight, eps)
    return grad_x, grad * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def without_weight(grad, x, weight, eps):
    grad_x, _ = by_autograd(grad, x, torch.ones_like(weight), eps)
    return grad_x, by_autograd(grad, x, weight, eps)[1]


# --- AdamW ----------------------------------------------------------------------------------------


def one_by_one(weight, grad, mean, square, step, rate, betas, eps, decay):
    entries = zip(*(x.flatten().tolist() for x in (weight, grad, mean, square)), strict=True)
    new = []
    for w, g, m, s in entries:
        m, s = m + (1 - betas[0]) * (g - m), s + (1 - betas[1]) * (g * g - s)
        corrected = m / (1 - betas[0] ** step), s / (1 - betas[1] ** step)
        w = w - rate * decay * w - rate * corrected[0] / (math.sqrt(corrected[1]) + eps)
        new.append((w, m, s))
    return tuple(torch.tensor(x).view(weight.shape) for x in zip(*new, strict=True))


def as_in_the_paper(weight, grad, mean, square, step, rate, betas, eps, decay):
    b1, b2 = betas
    mean, square = mean.lerp(grad, 1 - b1), square.lerp(grad * grad, 1 - b2)
    root = (square / (1 - b2**step)).sqrt()
    return weight - rate * (mean / (1 - b1**step) / (root + eps) + decay * weight), mean, square


def uncorrected(weight, grad, mean, square, step, rate, betas, eps, decay):
    mean, square = mean.lerp(grad, 1 - betas[0]), square.lerp(grad * grad, 1 - betas[1])
    return weight * (1 - rate * decay) - rate * mean / (square.sqrt() + eps), mean, square


def no_power(weight, grad, mean, square, step, rate, betas, eps, decay):
    b1, b2 = betas
    mean, square = mean.lerp(grad, 1 - b1), square.lerp(grad * grad, 1 - b2)
    move = mean / (1 - b1) / ((square / (1 - b2)).sqrt() + eps)
    return weight * (1 - rate * decay) - rate * move, mean, square


def exchanged(weight, grad, mean, square, step, rate, betas, eps, decay):
    b1, b2 = betas
    mean, square = mean.lerp(grad, b1), square.lerp(grad * grad, b2)
    move = mean / (1 - b1**step) / ((square / (1 - b2**step)).sqrt() + eps)
    return weight * (1 - rate * decay) - rate * move, mean, square


def adam_with_l2(weight, grad, mean, square, step, rate, betas, eps, decay):
    return as_in_the_paper(weight, grad + decay * weight, mean, square, step, rate, betas, eps, 0.0)


def two_tensors(weight, grad, mean, square, step, rate, betas, eps, decay):
    return as_in_the_paper(weight, grad, mean, square, step, rate, betas, eps, decay)[:2]


# --- The schedule ---------------------------------------------------------------------------------


def in_one_expression(step, steps, warm_up, least):
    if step + 1 <= warm_up:
        return (step + 1) / warm_up
    left = (steps - step) / (steps - warm_up)
    return least + (1 - least) * math.sin(math.pi / 2 * left) ** 2


def from_step_zero(step, steps, warm_up, least):
    if step < warm_up:
        return (step + 1) / warm_up
    return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * step / steps))


def least_in_the_last_step(step, steps, warm_up, least):
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / (steps - 1 - warm_up)
    return least + (1 - least) * math.cos(math.pi / 2 * done) ** 2


def one_ahead(step, steps, warm_up, least):
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step + 1 - warm_up) / (steps - warm_up)
    return least + (1 - least) * math.cos(math.pi / 2 * done) ** 2


def linear(step, steps, warm_up, least):
    if step < warm_up:
        return (step + 1) / warm_up
    return least + (1 - least) * (steps - step) / (steps - warm_up)


# --- Accumulation ---------------------------------------------------------------------------------


def all_at_once(gradient, batches):
    inputs, targets = zip(*batches, strict=True)
    return gradient(torch.cat(inputs), torch.cat(targets))


def sums_then_total(gradient, batches):
    total, n = 0.0, 0
    for inputs, targets in batches:
        counted = (targets != -100).sum().item()
        if counted:
            total, n = total + counted * gradient(inputs, targets), n + counted
    return total / n


def nonzero_counts(gradient, batches):
    total, n = 0.0, sum(int((targets > 0).sum()) for _, targets in batches)
    for inputs, targets in batches:
        if (targets != -100).any():
            total = total + gradient(inputs, targets) * int((targets > 0).sum()) / n
    return total


def mean_of_means(gradient, batches):
    return torch.stack([gradient(*batch) for batch in batches]).nanmean(0)


def sum_of_means(gradient, batches):
    return torch.stack([gradient(*batch) for batch in batches]).nansum(0)


def with_nan(gradient, batches):
    counts = [(targets != -100).sum() for _, targets in batches]
    parts = [gradient(*batch) * n for batch, n in zip(batches, counts, strict=True)]
    return torch.stack(parts).sum(0) / sum(counts)


RIGHT = {
    "e12_training.cross_entropy": [by_loops],
    "e12_training.rms_norm_backward": [by_autograd, with_the_jacobian],
    "e12_training.adamw": [one_by_one, as_in_the_paper],
    "e12_training.schedule": [in_one_expression],
    "e12_training.accumulate": [sums_then_total],
}
OTHERS = {
    "e12_training.cross_entropy": [
        (log_of_softmax, "above 88 is infinite"),
        (row_by_row, "the mean of the rows' means"),
        (sum_over_all, "divided by all positions"),
        (softmax_then_log, "the logarithm of 0 is minus infinity"),
        (shifted_again, "shifted once more"),
        (all_that_are_not_negative, "the argument `ignored`"),
        (by_pytorch, "Right, but PyTorch computes it for you"),
        (per_position, "the shape is [3], expected []"),
    ],
    "e12_training.rms_norm_backward": [
        (frozen_scale, "taken for a constant"),
        (weight_row_by_row, "one weight serves all rows"),
        (first_dimension_only, "over the first dimension only"),
        (weight_in_its_own_gradient, "has the weight in it"),
        (plus, "take it off"),
        (no_eps, "eps is missing"),
        (without_weight, "the weight is missing"),
    ],
    "e12_training.adamw": [
        (uncorrected, "the averages begin at 0"),
        (no_power, "At step k it is 1 - beta^k"),
        (exchanged, "beta and 1 - beta are exchanged"),
        (adam_with_l2, "as in Adam with L2"),
        (two_tensors, "return three tensors"),
    ],
    "e12_training.schedule": [
        (from_step_zero, "starts at step 0"),
        (linear, "a straight line"),
        (least_in_the_last_step, "one step later"),
        (one_ahead, "one step ahead"),
    ],
    "e12_training.accumulate": [
        (mean_of_means, "weighs more than one in a long batch"),
        (sum_of_means, "grows with the number of batches"),
        (with_nan, "0 times NaN is NaN"),
        (nonzero_counts, "targets with id 0 are not counted"),
        (all_at_once, "Right, but this computes one large batch"),
    ],
}
