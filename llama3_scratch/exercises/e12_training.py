"""The exercises of notebook 12: the loss, RMSNorm backwards, AdamW, a schedule, accumulation."""

import math

import torch

from llama3_scratch.exercises.frame import Exercise, desk, drawn, of_each, uses
from llama3_scratch.train import IGNORED

# --- The loss -------------------------------------------------------------------------------------


def _losses(logits, targets):
    """-ln(probability of the target) of each position; of those that do not count, that of id 0."""
    known = targets.clamp(min=0)
    return logits.logsumexp(-1) - logits.gather(-1, known[..., None])[..., 0]


def _mean(losses, targets, ignored):
    counted = targets != ignored
    return losses.where(counted, 0.0).sum() / counted.sum()


def _mean_of_rows(logits, targets, ignored):
    counted = (targets != ignored).float()
    return ((_losses(logits, targets) * counted).sum(-1) / counted.sum(-1)).mean()


def _exponentials(logits, targets):
    exps = logits.exp()
    return -(exps.gather(-1, targets.clamp(min=0)[..., None])[..., 0] / exps.sum(-1)).log()


def _texts():
    a, b, c = drawn(12, (3, 5), (2, 6, 11), (2, 3, 4, 9))
    rows = torch.tensor([[4, 0, 2, 3, 1, 10], [3, 9, IGNORED, IGNORED, IGNORED, IGNORED]])
    deep = torch.arange(24).view(2, 3, 4) % 9
    return {
        "three positions, all of them counted": (a, torch.tensor([1, 4, 0]), IGNORED),
        "two rows, the second one padded": (b, rows, IGNORED),
        "the same rows with id 0 as the one that is ignored": (b, rows.clamp(min=0), 0),
        "logits up to 300": (b * 100, rows, IGNORED),
        "more leading dimensions": (c, deep, 5),
    }


cross_entropy = Exercise(
    "Logits [..., T, V], targets [..., T] (ids), ignored -> the mean of -ln(probability of the "
    "target), in nats, over all positions whose target is not `ignored`.",
    right=lambda logits, targets, ignored: _mean(_losses(logits, targets), targets, ignored),
    cases=_texts,
    hints=(
        "`log_softmax` gives the logarithm of every probability without overflow. `gather` along "
        "the last dimension picks one of them at each position; it takes no negative index, so "
        "give the ignored positions any id first.",
        "Set what is ignored to 0, add up all positions of all rows, and divide by the number of "
        "those that count: `targets != ignored` knows it.",
    ),
    mistakes=[
        (lambda logits, targets, ignored: _losses(logits, targets).where(
            targets != ignored, 0.0).mean(),
         "the sum is divided by all positions. Divide by the number of those that count."),
        (_mean_of_rows,
         "this is the mean of the rows' means: a token in a short row weighs more than one in a "
         "long row. Add up all rows, then divide once."),
        (lambda logits, targets, ignored: _losses(logits, targets).mean(),
         "positions whose target is `ignored` are counted."),
        (lambda logits, targets, ignored: _mean(_exponentials(logits, targets), targets, ignored),
         "e to a logit above 88 is infinite in float32. Take the largest logit off first, or use "
         "`log_softmax`."),
        (lambda logits, targets, ignored: _mean(
            -logits.softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0].log(),
            targets, ignored),
         "softmax rounds a very small probability to 0, and the logarithm of 0 is minus infinity. "
         "`log_softmax` never computes the probability."),
        (lambda logits, targets, ignored: _mean(
            _losses(logits[..., :-1, :], targets[..., 1:]), targets[..., 1:], ignored),
         "the targets are shifted once more. They are the next tokens already: `targets[t]` is "
         "what `logits[t]` should predict."),
        (lambda logits, targets, ignored: _mean(_losses(logits, targets), targets, IGNORED),
         "only negative targets are left out. The id that does not count is the argument "
         "`ignored`, and it may be any id."),
        (lambda logits, targets, ignored: -_mean(_losses(logits, targets), targets, ignored),
         "the sign: a probability is below 1, so its logarithm is negative, and a loss is "
         "positive."),
        (lambda logits, targets, ignored: _mean(_losses(logits, targets), targets,
                                                ignored) / math.log(2),
         "this is the loss in bits. Use the natural logarithm."),
        (lambda logits, targets, ignored: _losses(logits, targets).where(
            targets != ignored, 0.0).sum(),
         "this is the sum. Divide it by the number of positions that count."),
        (lambda logits, targets, ignored: -_mean((-_losses(logits, targets)).exp(), targets,
                                                 ignored).log(),
         "the mean is taken of the probabilities. Take the logarithm of each, then the mean."),
    ],
    but=[
        (uses("cross_entropy", "nll_loss"),
         "PyTorch computes it for you. Write it yourself, from `log_softmax` and `gather`."),
    ],
)  # fmt: skip


# --- The backward pass of RMSNorm -----------------------------------------------------------------


def _norm_parts(grad, x, weight, eps):
    shrink = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return shrink, x * shrink, grad * weight


def _norm_backward(grad, x, weight, eps, mean=torch.mean, shrunk=True, by=lambda n, x: n, sign=1):
    shrink, normed, inner = _norm_parts(grad, x, weight, eps)
    along = mean(inner * normed, -1, keepdim=True)
    grad_x = (inner - sign * by(normed, x) * along) * (shrink if shrunk else 1)
    return grad_x, (grad * normed).flatten(0, -2).sum(0)


def _norm_cases():
    g, x, w, h, y, v = drawn(2, (1, 4), (1, 4), (4,), (5, 24), (5, 24), (24,))
    k, z = drawn(3, (2, 3, 24), (2, 3, 24))
    return {
        "one row of four": (g, x, w, 1e-5),
        "five rows": (h, y * 3, v, 1e-5),
        "a large eps": (h, y, v, 0.5),
        "small rows": (h, y * 1e-3, v, 1e-6),
        "more leading dimensions": (k, z, v, 1e-5),
    }


rms_norm_backward = Exercise(
    "The gradient of the loss with respect to the output of `rms_norm`, [..., D], its x [..., D], "
    "weight [D] and eps -> (gradient with respect to x [..., D], with respect to the weight [D]).",
    right=_norm_backward,
    cases=_norm_cases,
    hints=(
        "The weight first: y = n g, so each row gives (gradient) times n, and all rows share one "
        "weight: add them up. And n gets (gradient) times g.",
        "Call what arrives at n by the name d. A row cannot change its own length: the part of d "
        "along n is lost. It is n times the mean of d n over the row; what is left is divided by "
        "the row's rms.",
    ),
    mistakes=[
        (lambda g, x, w, eps: (g * w * _norm_parts(g, x, w, eps)[0],
                               _norm_backward(g, x, w, eps)[1]),
         "the rms of a row is taken for a constant. It depends on every entry of the row, and "
         "carries a part of the gradient: equation 12.5 has two terms."),
        (lambda g, x, w, eps: _norm_backward(g, x, w, eps, mean=torch.sum),
         "the part along n is too large, D times: take the mean of d n over the row, not its sum."),
        (lambda g, x, w, eps: (_norm_backward(g, x, torch.ones_like(w), eps)[0],
                               _norm_backward(g, x, w, eps)[1]),
         "the weight is missing: what arrives at n is the gradient times the weight."),
        (lambda g, x, w, eps: _norm_backward(g, x, w, eps, shrunk=False),
         "divide by the row's rms at the end: a row that is twice as large turns half as far."),
        (lambda g, x, w, eps: _norm_backward(g, x, w, eps, by=lambda n, x: x),
         "the part along the row is taken off as a multiple of x. It is a multiple of n, the "
         "normalised row."),
        (lambda g, x, w, eps: (_norm_backward(g, x, w, eps)[0], (g * x).flatten(0, -2).sum(0)),
         "the weight multiplies the normalised row, not x: its gradient is (gradient) times n."),
        (lambda g, x, w, eps: (_norm_backward(g, x, w, eps)[0],
                               (g * _norm_parts(g, x, w, eps)[1]).flatten(0, -2).mean(0)),
         "the rows' contributions to the weight are averaged. They are added up."),
        (lambda g, x, w, eps: (_norm_backward(g, x, w, eps)[0], g * _norm_parts(g, x, w, eps)[1]),
         "one weight serves all rows: add up their contributions, so that [D] is left."),
        (lambda g, x, w, eps: (_norm_backward(g, x, w, eps)[0],
                               (g * _norm_parts(g, x, w, eps)[1]).sum(0)),
         "the weight's gradient is added up over the first dimension only. There may be several "
         "before the last: add up over all of them, so that [D] is left."),
        (lambda g, x, w, eps: (_norm_backward(g, x, w, eps)[0],
                               (g * w * _norm_parts(g, x, w, eps)[1]).flatten(0, -2).sum(0)),
         "the weight's gradient has the weight in it. y = n g, so it is (gradient) times n."),
        (lambda g, x, w, eps: _norm_backward(g, x, w, eps, sign=-1),
         "the part along n is added. It is lost, so take it off."),
        (lambda g, x, w, eps: _norm_backward(g, x, w, 0.0),
         "eps is missing: it stands under the root, inside rms(x)."),
        (lambda g, x, w, eps: (
            (lambda s, n, d: (d - d.mean(-1, keepdim=True) - n * (d * n).mean(-1, keepdim=True))
             * s)(*_norm_parts(g, x, w, eps)), _norm_backward(g, x, w, eps)[1]),
         "this is LayerNorm's: RMSNorm takes no mean off, so its backward pass does not either."),
    ],
    properties=[
        (lambda answer, given, cases: all(
            grad_x.shape == x.shape and grad_weight.shape == weight.shape
            for (grad_x, grad_weight), (_, x, weight, _) in zip(given, cases, strict=True)),
         "return two tensors: the first with the shape of x, the second with that of the weight."),
    ],
)  # fmt: skip


# --- AdamW ----------------------------------------------------------------------------------------


def _adamw(
    weight, grad, mean, square, step, rate, betas, eps, decay,
    corrected=True, power=True, swapped=False, root=torch.sqrt, inside=False, last=False,
    by_rate=True,
):  # fmt: skip
    b1, b2 = (1 - beta if swapped else beta for beta in betas)
    mean, square = b1 * mean + (1 - b1) * grad, b2 * square + (1 - b2) * grad**2
    m, s = (
        average / (1 - beta ** (step if power else 1)) if corrected else average
        for average, beta in zip((mean, square), betas, strict=True)
    )
    move = rate * m / (root(s + eps) if inside else root(s) + eps)
    shrink = 1 - (rate if by_rate else 1) * decay
    new = (weight - move) * shrink if last else weight * shrink - move
    return new, mean, square


def _states():
    w, g, m, s = drawn(5, (3,), (3,), (4, 6), (4, 6))
    weight, grad = drawn(6, (4, 6), (4, 6))
    zero, zeros = torch.zeros(3), torch.zeros(4, 6)
    return {
        "three weights, the first step": (w, g, zero, zero, 1, 0.1, (0.9, 0.98), 1e-8, 0.0),
        "step 1 with decay": (weight, grad, zeros, zeros, 1, 0.1, (0.9, 0.95), 1e-8, 0.1),
        "step 7": (weight, grad, m * 0.1, s**2 * 0.1, 7, 0.01, (0.9, 0.999), 1e-8, 0.5),
        "small gradients, large eps": (w, g * 1e-3, zero, zero, 3, 0.1, (0.8, 0.99), 1e-3, 0.2),
    }


adamw = Exercise(
    "(weight, grad, mean, square, step, rate, betas, eps, decay) -> the new (weight, mean, square) "
    "after one step of AdamW. mean and square are the two running averages so far, of the shape of "
    "the weight; the first step has step = 1; betas are two numbers.",
    right=_adamw,
    cases=_states,
    hints=(
        "First the two averages, then each divided by 1 minus its beta to the power of step. They "
        "are returned as they were before this division.",
        "The weight is first multiplied by 1 - rate x decay. Then it moves by the rate times the "
        "corrected mean, divided by (the root of the corrected square, plus eps).",
    ),
    mistakes=[
        (lambda *case: _adamw(*case, corrected=False),
         "the averages begin at 0 and are too small in the first steps: divide each by 1 - "
         "beta^step before you use it."),
        (lambda *case: _adamw(*case, power=False),
         "the averages are divided by 1 - beta at every step. At step k it is 1 - beta^k."),
        (lambda *case: _adamw(*case, swapped=True),
         "beta and 1 - beta are exchanged: the old average keeps the share beta, the new gradient "
         "gets 1 - beta."),
        (lambda *case: _adamw(*case[:4], case[4] + 1, *case[5:]),
         "the first step has step = 1, so its correction is 1 - beta: no + 1."),
        (lambda w, g, m, s, step, rate, betas, eps, decay: _adamw(
            w, g + decay * w, m, s, step, rate, betas, eps, 0.0),
         "the decay is added to the gradient, as in Adam with L2. There it is divided by the root "
         "as well; AdamW shrinks the weight itself."),
        (lambda w, g, m, s, step, rate, betas, eps, decay: _adamw(
            w, g, m, s, step, rate, betas, eps, 0.0),
         "the decay is missing: the weight shrinks by the factor 1 - rate x decay."),
        (lambda *case: _adamw(*case, by_rate=False),
         "the weight shrinks by 1 - decay. The rate belongs to it: 1 - rate x decay."),
        (lambda *case: _adamw(*case, last=True),
         "the weight moves first and shrinks afterwards. AdamW shrinks it first."),
        (lambda *case: _adamw(*case, root=lambda s: s),
         "the step is divided by the average square. Take its root: then the step does not depend "
         "on the size of the gradient."),
        (lambda *case: _adamw(*case, inside=True),
         "eps is added after the root, not under it."),
        (lambda w, g, m, s, step, rate, betas, eps, decay: _adamw(
            w, g, m, s, step, rate, betas[::-1], eps, decay),
         "the first beta belongs to the mean, the second to the square."),
        (lambda w, g, m, s, step, rate, betas, eps, decay: (
            lambda new, mean, square: (new, mean / (1 - betas[0]**step),
                                       square / (1 - betas[1]**step))
            )(*_adamw(w, g, m, s, step, rate, betas, eps, decay)),
         "the corrected averages are returned. Keep the uncorrected ones for the next step."),
        (lambda w, g, m, s, step, rate, betas, eps, decay: _adamw(
            w, -g, m, s, step, rate, betas, eps, decay),
         "this climbs: the weight moves against the gradient."),
        (lambda *case: (_adamw(*case)[0], case[2], case[3]),
         "the old averages are returned. The next step needs the new ones."),
    ],
    properties=[
        (lambda answer, given, cases: all(len(result) == 3 for result in given),
         "return three tensors: the weight, the mean, the square."),
    ],
)  # fmt: skip


# --- The schedule ---------------------------------------------------------------------------------


def _schedule(step, steps, warm_up, least, first=1, turn=math.pi, shift=0, rest=None):
    if step < warm_up:
        return (step + first) / warm_up
    length = steps - warm_up if rest is None else rest(steps, warm_up)
    done = (step - warm_up + shift) / length
    return least + (1 - least) * (1 + math.cos(turn * done)) / 2


schedule = Exercise(
    "(step, steps, warm_up, least) -> the factor of the learning rate: (step + 1) / warm_up for "
    "the first warm_up steps, then half a cosine that falls from 1, at step = warm_up, to `least`, "
    "which it would reach at step = steps. Steps count from 0; warm_up may be 0.",
    right=_schedule,
    cases=lambda: [
        (0, 10, 4, 0.1), (3, 10, 4, 0.1), (4, 10, 4, 0.1), (7, 10, 4, 0.1), (9, 10, 4, 0.1),
        (0, 8, 0, 0.0), (6, 8, 0, 0.0), (99_999, 1_200_000, 8000, 0.01),
    ],
    hints=(
        "Two cases. In the second, first the share that is done: 0 at step = warm_up, 1 at step = "
        "steps.",
        "(1 + cos(pi x share)) / 2 falls from 1 to 0. Stretch it so that it ends at `least`.",
    ),
    mistakes=[
        (lambda *case: _schedule(*case, first=0),
         "the first step has the factor 0, so nothing is learned in it: step + 1."),
        (lambda step, steps, warm_up, least: _schedule(
            step, steps, warm_up, least, shift=warm_up, rest=lambda steps, warm_up: steps),
         "the cosine starts at step 0, so it is below 1 when the warm-up ends. It starts where "
         "the warm-up ends."),
        (lambda *case: _schedule(*case, rest=lambda steps, warm_up: steps),
         "the cosine has steps - warm_up steps to fall: this one does not reach its end."),
        (lambda *case: _schedule(*case, rest=lambda steps, warm_up: steps - warm_up - 1),
         "it reaches `least` at the last step that is taken, steps - 1. It would reach it one "
         "step later: the cosine has steps - warm_up steps."),
        (lambda *case: _schedule(*case, shift=1),
         "the cosine is one step ahead. It is 1 at step = warm_up: no + 1 there."),
        (lambda *case: _schedule(*case, turn=2 * math.pi),
         "this is a whole cosine, which rises again. Half of one: pi times the share."),
        (lambda *case: _schedule(*case, turn=math.pi / 2),
         "this is a quarter of a cosine. Half of one: pi times the share."),
        (lambda step, steps, warm_up, least: _schedule(step, steps, warm_up, 0.0),
         "it falls to 0. It has to end at `least`."),
        (lambda step, steps, warm_up, least: max(least, _schedule(step, steps, warm_up, 0.0)),
         "a cosine that falls to 0 is cut off at `least`. Stretch it, so that it ends there."),
        (lambda step, steps, warm_up, least: least + _schedule(step, steps, warm_up, 0.0)
         if step >= warm_up else (step + 1) / warm_up,
         "the cosine is moved up by `least`, so it begins above 1. It falls by 1 - least."),
        (lambda step, steps, warm_up, least: (step + 1) / warm_up if step < warm_up else
         1 - (1 - least) * (step - warm_up) / (steps - warm_up),
         "this falls along a straight line. Put its share through the cosine."),
    ],
    properties=[
        (of_each(lambda found, *case: 0 < found <= 1), "the factor is above 0 and at most 1."),
    ],
)  # fmt: skip


# --- Accumulation ---------------------------------------------------------------------------------


def _mean_gradient(inputs, targets):
    """Inputs [R, T, D], targets [R, T] -> [D]: the mean of the inputs whose targets count."""
    return inputs[targets != IGNORED].mean(0)


def _count(targets):
    return int((targets != IGNORED).sum())


def _accumulated(gradient, batches, share, skip=True):
    total, parts = sum(_count(targets) for _, targets in batches), 0.0
    for inputs, targets in batches:
        if _count(targets) or not skip:
            parts = parts + gradient(inputs, targets) * share(targets, total, len(batches))
    return parts


def _batches(seed, *counts, rows=1, length=8, width=4):
    """Batches of one row, the first of `rows`, with so many targets that count in each row."""
    shapes = [(rows if i == 0 else 1, length, width) for i in range(len(counts))]
    made = []
    for inputs, n in zip(drawn(seed, *shapes), counts, strict=True):
        targets = torch.full(inputs.shape[:-1], IGNORED)
        targets[:, :n] = torch.arange(n)  # id 0 is a token like others
        made.append((inputs, targets))
    return made


def _two_by_hand():
    x = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[3.0], [5.0]]])
    return list(zip(x, (torch.tensor([[0, IGNORED]]), torch.tensor([[7, 0]])), strict=True))


_MEAN_OF_MEANS = (
    "this is the mean of the batches' means: a token in a short batch weighs more than one in a "
    "long batch. Weigh each batch by its number of targets."
)

accumulate = Exercise(
    "A function and a list of batches (inputs, targets) -> the gradient of the mean loss over all "
    "targets of all batches that count, those that are not IGNORED (-100). The function `gradient("
    "inputs, targets)` gives the gradient of the mean over one batch; where no target counts it "
    "gives NaN (0/0).",
    right=lambda gradient, batches: _accumulated(
        gradient, batches, lambda targets, total, n: _count(targets) / total),
    cases=lambda: {
        "batches with 1 and 2 targets": (_mean_gradient, _two_by_hand()),
        "two batches of the same length": (_mean_gradient, _batches(7, 6, 6)),
        "batches of 2, 1 and 1 rows": (_mean_gradient, _batches(8, 7, 2, 5, rows=2)),
        "a batch in which nothing counts": (_mean_gradient, _batches(9, 3, 0, 8)),
        "one batch": (_mean_gradient, _batches(10, 4, rows=3)),
    },
    hints=(
        "A batch's mean is its sum divided by its own number of targets. Undo this division, and "
        "divide by the number of all targets instead.",
        "So each batch's gradient counts with the share: its targets over all targets. A batch "
        "without any has to be left out, since 0 times NaN is NaN.",
    ),
    mistakes=[
        *((lambda gradient, batches, skip=skip: _accumulated(
            gradient, batches, lambda targets, total, n: 1 / n, skip), _MEAN_OF_MEANS)
          for skip in (True, False)),
        (lambda gradient, batches: torch.stack([gradient(*each) for each in batches]).nanmean(0),
         _MEAN_OF_MEANS),
        *((lambda gradient, batches, skip=skip: _accumulated(
            gradient, batches, lambda targets, total, n: 1.0, skip),
           "the means are added up, so the gradient grows with the number of batches.")
          for skip in (True, False)),
        (lambda gradient, batches: _accumulated(
            gradient, batches, lambda targets, total, n: _count(targets) / total, skip=False),
         "the batch in which nothing counts gives NaN, and 0 times NaN is NaN: leave it out."),
        (lambda gradient, batches: _accumulated(
            gradient, batches, lambda targets, total, n: targets.numel() / sum(
                targets.numel() for _, targets in batches)),
         "padding is counted. Count only targets that are not IGNORED."),
        *((lambda gradient, batches, skip=skip: _accumulated(
            gradient, batches, lambda targets, total, n: int((targets > 0).sum()) / sum(
                int((targets > 0).sum()) for _, targets in batches), skip),
           "targets with id 0 are not counted. It is a token like others: only IGNORED, -100, does "
           "not count.")
          for skip in (True, False)),
        (lambda gradient, batches: _accumulated(
            gradient, batches, lambda targets, total, n: _count(targets)),
         "this is the gradient of the sum. Divide by the number of all targets."),
        (lambda gradient, batches: _accumulated(
            gradient, batches, lambda targets, total, n: 1 / total),
         "each batch's mean is divided by the number of all targets, so by its own number twice. "
         "Multiply by that first."),
        (lambda gradient, batches: _accumulated(
            gradient, batches, lambda targets, total, n: _count(targets) / total / n),
         "after the division by all targets, nothing is left to be divided by the number of "
         "batches."),
    ],
    but=[
        (uses("cat", "concat", "concatenate"),
         "this computes one large batch, which is what there is no memory for. Call `gradient` "
         "once for each batch."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
