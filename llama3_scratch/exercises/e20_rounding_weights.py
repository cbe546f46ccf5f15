"""The exercises of notebook 20: round to nearest, all roundings, a step of GPTQ, two models."""

import itertools

import torch

from llama3_scratch.exercises.frame import Exercise, answer_property, desk, drawn, of_each

# --- Round to nearest -----------------------------------------------------------------------------


def _rtn(W, bits, low=None, high=None, steps=0, cut=True, to=torch.round, zero=torch.round, by=1):
    low = W.amin(by, keepdim=True).clamp(max=0) if low is None else low(W)
    high = W.amax(by, keepdim=True).clamp(min=0) if high is None else high(W)
    scales = (high - low) / (2**bits - 1 + steps)
    zeros = zero(-low / scales)
    codes = to(W / scales) + zeros
    codes = codes.clamp(0, 2**bits - 1) if cut else codes
    return codes, scales, zeros


def _from_the_end(W, bits):
    low = W.amin(1, keepdim=True).clamp(max=0)
    return ((W - low) / _rtn(W, bits)[1]).round()


def _parts(result):
    """What an answer returned -> (codes as whole numbers, scales [O], zeros [O])."""
    if not isinstance(result, tuple | list) or len(result) != 3:
        return result
    codes, scales, zeros = (x if isinstance(x, torch.Tensor) else torch.tensor(x) for x in result)
    whole = codes.is_floating_point() and bool((codes == codes.round()).all())
    codes = codes.to(torch.int64) if whole else codes
    flat = [x.float().squeeze(-1) if x.dim() == 2 and x.shape[-1] == 1 else x.float()
            for x in (scales, zeros)]  # fmt: skip
    return codes, *flat


def _matrices():
    small = torch.tensor([[-0.31, 0.08, 0.52, -0.17, 0.26, 0.44]])
    x, y, z = drawn(20, (5, 24), (3, 40), (4, 4))
    return {
        "one row in 3 bits": (small, 3),
        "five rows in 4 bits": (x * torch.tensor([[0.02], [1.0], [0.3], [5.0], [0.1]]), 4),
        "rows without negative numbers": (y.abs() + 1, 3),
        "rows without positive numbers": (-y.abs() - 0.5, 2),
        "a square matrix in 2 bits": (z, 2),
        "8 bits": (y, 8),
        "ends between two codes": (torch.tensor([[-1.5, 0.3, 5.5, 3.2]]), 3),
    }


rtn = Exercise(
    "A matrix W [O, I] and a number of bits -> (codes [O, I], scales [O], zeros [O]). Each row has "
    "its own scale and zero: the range from its least to its largest weight, widened so that 0 is "
    "in it, is cut into 2^bits - 1 steps; zero is the code that means 0, a whole number; codes are "
    "0 to 2^bits - 1, and w is about (code - zero) scale.",
    right=_rtn,
    cases=_matrices,
    run=lambda answer, W, bits: _parts(answer(W, bits)),
    hints=(
        "`amin(1)` and `amax(1)` give the ends of each row; `clamp` moves an end to 0 where 0 is "
        "outside. The scale is the width of the range over the number of steps.",
        "How many steps below 0 does the range begin? Rounded, that is the zero. Add it to the "
        "rounded w / scale, and cut the codes off at both ends.",
    ),
    mistakes=[
        (lambda W, b: _rtn(W, b, low=lambda W: W.amin(1, keepdim=True),
                           high=lambda W: W.amax(1, keepdim=True)),
         "the range leaves out 0 where a row has numbers of one sign only. 0 has to be in it: the "
         "low end is at most 0, the high end at least 0."),
        (lambda W, b: _rtn(W, b, low=lambda W: -W.abs().amax(1, keepdim=True),
                           high=lambda W: W.abs().amax(1, keepdim=True)),
         "the range goes from minus the largest magnitude to plus. Here it goes from the least "
         "weight (or 0) to the largest one (or 0)."),
        (lambda W, b: _rtn(W, b, steps=1),
         "the range is cut into 2^bits steps. 2^bits codes have 2^bits - 1 steps between them."),
        (lambda W, b: _rtn(W, b, low=lambda W: W.min().clamp(max=0).expand(len(W), 1),
                           high=lambda W: W.max().clamp(min=0).expand(len(W), 1)),
         "all rows share one scale. Each row has its own."),
        (lambda W, b: _rtn(W, b, cut=False),
         "some codes are below 0 or above 2^bits - 1, since the zero was rounded too. Cut them "
         "off at both ends."),
        (lambda W, b: _rtn(W, b, to=torch.floor),
         "weights are rounded down. Each goes to the nearest code."),
        (lambda W, b: _rtn(W, b, zero=lambda x: x),
         "the zeros are not whole numbers. The zero is a code."),
        (lambda W, b: (_from_the_end(W, b), *_rtn(W, b)[1:]),
         "the steps are counted from the least weight, so 0 may fall between two codes. Round w / "
         "scale and the zero each for itself, then add them."),
        (lambda W, b: _rtn(W, b, zero=lambda x: -x.round()),
         "the zeros have the wrong sign: a range that begins 3 steps below 0 has the zero 3."),
        (lambda W, b: (_rtn(W, b)[0] - _rtn(W, b)[2], *_rtn(W, b)[1:]),
         "the codes are those less their zero. Codes are 0 to 2^bits - 1: add the zero."),
        (lambda W, b: ((_rtn(W, b)[0] - _rtn(W, b)[2]) * _rtn(W, b)[1], *_rtn(W, b)[1:]),
         "these are the weights after rounding. Wanted are the codes."),
    ],
    properties=[
        (of_each(lambda found, W, bits: isinstance(found, tuple | list) and len(found) == 3),
         "the result is a tuple of three tensors: codes, scales, zeros."),
        (of_each(lambda found, W, bits: found[1].shape == found[2].shape == (len(W),)),
         "there is one scale and one zero for each row, [O]."),
        (of_each(lambda found, W, bits: found[0].shape == W.shape),
         "there is one code for each weight, [O, I]."),
    ],
)  # fmt: skip


# --- All roundings --------------------------------------------------------------------------------


def _best(w, H, pick=torch.argmin, loss=lambda d, H: ((d @ H) * d).sum(-1), both=None):
    ways = torch.tensor(list(itertools.product((0.0, 1.0), repeat=len(w)))).to(w)
    every = (w.floor() if both is None else both(w)) + ways
    return every[pick(loss(every - w, H))]


def _one_by_one(w, H):
    q = w.clone()
    for i in range(len(w)):
        pair = [torch.cat([q[:i], new.view(1), q[i + 1 :]]) for new in (w[i].floor(), w[i].ceil())]
        q = min(pair, key=lambda q: float((q - w) @ H @ (q - w)))
    return q


def _rows():
    w, H = torch.tensor([0.4, 0.3]), torch.tensor([[2.0, 1.9], [1.9, 2.0]])
    cases = {"two weights with inputs that are alike": (w, H), "two weights near 1": (1 - w, H)}
    for n in (1, 3, 6, 10):
        x, u = drawn(40 + n, (2 * n + 2, n), (n,))
        x = x + 1.5 * x[:, :1]
        cases[f"{n} weight{'s' if n > 1 else ''}"] = (3 * u, 2 * x.T @ x)
    (u,) = drawn(52, (5,))
    cases["inputs that have nothing in common"] = (2 * u, torch.eye(5))
    return cases


best = Exercise(
    "A row w [n], in units of its scale, and H [n, n] -> the whole numbers q [n], each w rounded "
    "down or up, with the least (q - w) H (q - w)^T. All 2^n combinations are tried.",
    right=_best,
    cases=_rows,
    hints=(
        "`itertools.product((0, 1), repeat=n)` lists all combinations. Added to the row rounded "
        "down, each gives one candidate: a tensor [2^n, n].",
        "With d [2^n, n] the differences, `((d @ H) * d).sum(-1)` is the error of each "
        "combination.",
    ),
    mistakes=[
        (lambda w, H: w.round(),
         "every weight goes to its nearest whole number (as it does if only the diagonal of H "
         "counts). The other entries of H say which errors cancel: try all combinations."),
        (lambda w, H: _best(w, H, torch.argmax),
         "this is the combination with the largest error."),
        (_one_by_one,
         "weights are decided one after the other, each for good. A later one can make an earlier "
         "choice wrong: try all combinations."),
        (lambda w, H: _best(w, H, loss=lambda d, H: (d @ H).square().sum(-1)),
         "this minimises the size of (q - w) H. The error is (q - w) H (q - w)^T."),
        (lambda w, H: _best(w, H, both=torch.round),
         "0 and 1 are added to the nearest whole number. Then a weight just below a whole number "
         "cannot go down: use `floor`."),
        (lambda w, H: _best(w, H) - w,
         "these are the differences q - w. Wanted are the whole numbers q."),
        (lambda w, H: _best(w, H) - w.floor(),
         "this is 0 for down and 1 for up. Add the row rounded down."),
        (lambda w, H: _best(w, H, both=lambda w: w.trunc()),
         "0 and 1 are added to the whole part of w. For a negative w that is not the number "
         "below: use `floor`."),
        (lambda w, H: ((_best(w, H) - w) @ H @ (_best(w, H) - w)),
         "this is the least error. Wanted is the combination that has it."),
    ],
    properties=[
        (of_each(lambda found, w, H: bool(((found - w).abs() < 1).all())),
         "each weight is rounded down or up: q differs from w by less than 1."),
    ],
)  # fmt: skip


# --- A step of GPTQ -------------------------------------------------------------------------------


def _step(W, u, scale, zero, top, cut=True, error=lambda e, u: e / u[0], sign=1, first=1, raw=None):
    codes = (W[:, 0] / scale).round() + zero
    codes = codes.clamp(0, top) if cut else codes
    kept = (codes - zero) * scale if raw is None else raw(codes, scale, zero)
    change = torch.outer(error(W[:, 0] - kept, u), u[first:])
    return codes, W[:, first:] - sign * change


def _pair(result):
    if not isinstance(result, tuple | list) or len(result) != 2:
        return result
    codes, rest = result
    whole = isinstance(codes, torch.Tensor) and not codes.is_floating_point()
    return codes.float() if whole else codes, rest


def _columns():
    small = torch.tensor([[0.34, 1.0, -0.5], [-0.81, 0.2, 0.7]])
    u = torch.tensor([2.0, 1.0, -0.5])
    cases = {"two rows of three": (small, u, torch.tensor([0.2, 0.3]), torch.tensor([4.0, 3.0]), 7)}
    for name, m, n, top in (("a matrix", 6, 9, 15), ("2 bits", 5, 4, 3), ("two columns", 4, 2, 7)):
        W, u, s = drawn(60 + n, (m, n), (n,), (m,))
        u[0] = u[0].abs() + 0.7
        zero = torch.arange(m) % top + 0.0
        cases[name] = (W, u, s.abs() * 0.3 + 0.1, zero, top)
    W, u, s = drawn(80, (4, 1), (1,), (4,))
    cases["the last column"] = (W, u.abs() + 1, s.abs() + 0.2, torch.ones(4), 3)
    return cases


gptq_step = Exercise(
    "(W [O, n], u [n], scale [O], zero [O], top) -> (codes [O], rest [O, n - 1]). W has the "
    "columns that are not yet rounded, u is proportional to the first row of the inverse Hessian "
    "of their inputs. The codes are those of W's first column, 0 to top; rest has the other "
    "columns, each changed so that it makes up for the error of the first.",
    right=_step,
    cases=_columns,
    run=lambda answer, *case: _pair(answer(*case)),
    hints=(
        "Three lines: the codes of column 0, as in exercise 20.1; the error that this makes in "
        "the weights of column 0, divided by u[0]; the change of the others.",
        "The error [O] and u[1:] [n - 1] give a matrix [O, n - 1]: `torch.outer`.",
    ),
    mistakes=[
        (lambda *case: _step(*case, cut=False),
         "some codes are below 0 or above `top`. Cut them off, and take the error of what is then "
         "left."),
        (lambda *case: _step(*case, sign=-1),
         "the change has the wrong sign: with error = w - rounded w, it is subtracted."),
        (lambda *case: _step(*case, error=lambda e, u: e),
         "the error is not divided by u[0]."),
        (lambda *case: _step(*case, error=lambda e, u: e * u[0]),
         "the error is multiplied by u[0]. It is divided by it."),
        (lambda *case: _step(*case, error=lambda e, u: e / u[0] ** 2),
         "the error is divided by the square of u[0]. Divide once: then u may have any length."),
        (lambda *case: _step(*case, raw=lambda codes, scale, zero: codes * scale),
         "the rounded weights lack their zero: (code - zero) scale."),
        (lambda *case: _step(*case, raw=lambda codes, scale, zero: codes - zero),
         "the rounded weights lack their scale: (code - zero) scale."),
        (lambda *case: _step(*case, raw=lambda codes, scale, zero: codes),
         "the error is that of the codes. Take it of the weights: (code - zero) scale."),
        (lambda W, u, scale, *case: _step(W, u, scale, *case, error=lambda e, u: e / scale / u[0]),
         "the error is in steps. Take it in weights: w - (code - zero) scale."),
        (lambda *case: _step(*case, first=0),
         "the rest has the first column, too. Leave it out: it is done."),
        (lambda W, *case: (_step(W, *case)[0], W[:, 1:]),
         "the other columns have not changed. This is round to nearest."),
        (lambda W, u, scale, zero, top: (_step(W, u, scale, zero, top)[0],
                                         W[:, 1:] - (W[:, 1:] - _step(W, u, scale, zero, top)[1])
                                         .mean(0)),
         "all rows change by the same. Each row makes up for its own error."),
        (lambda W, u, scale, zero, top: ((_step(W, u, scale, zero, top)[0] - zero) * scale,
                                         _step(W, u, scale, zero, top)[1]),
         "the first result has weights after rounding. Wanted are their codes."),
    ],
    properties=[
        (of_each(lambda found, *case: isinstance(found, tuple | list) and len(found) == 2),
         "the result is a tuple of two tensors: codes, rest."),
        (of_each(lambda found, W, *case: found[1].shape == W[:, 1:].shape),
         "the rest has all columns but the first, [O, n - 1]."),
        (answer_property(lambda answer, W, u, *case: torch.allclose(
            _pair(answer(W, u, *case))[1], _pair(answer(W, 3 * u, *case))[1], atol=1e-5)),
         "the result changes if all of u is three times as large. Only the ratios of its entries "
         "matter."),
    ],
)  # fmt: skip


# --- Two models -----------------------------------------------------------------------------------


def _apart(exact, found, swap=False, sum=False, wide=False, to=torch.mean):
    p, q = (x.double().log_softmax(-1) for x in ((found, exact) if swap else (exact, found)))
    each = (p.exp() * (p - q)).mean(-1) if wide else (p.exp() * (p - q)).sum(-1)
    flips = (exact.argmax(-1) != found.argmax(-1)).double()
    return float(to(each)), float(to(flips) if sum else flips.mean())


def _logits():
    small = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 1.5]])
    other = torch.tensor([[1.5, 1.0, 0.0], [0.0, 1.6, 1.5]])
    x, y, e, f = drawn(90, (7, 30), (5, 11), (7, 30), (5, 11))
    return {
        "two positions, three tokens": (small, other),
        "seven positions": (2 * x, 2 * x + 0.5 * e),
        "large logits": (40 * y + 100, 40 * y + 3 * f + 90),
        "the same model": (x, x),
        "logits with a constant added": (x, x + 5),
    }


def _in_float32(answer, exact, found):
    result = answer(exact, found)
    if not isinstance(result, tuple | list) or len(result) != 2:
        return result
    numbers = [float(x) for x in result if not isinstance(x, torch.Tensor) or x.numel() == 1]
    if len(numbers) < 2:
        return result
    return torch.tensor([0.0 if abs(x) < 1e-6 else x for x in numbers], dtype=torch.float64)


apart = Exercise(
    "Logits [T, V] of the model as it was, and of the rounded one -> (divergence, flipped): the "
    "Kullback-Leibler divergence sum of p (ln p - ln q), with p the probabilities of the model as "
    "it was and q those of the rounded one, as a mean over positions; and the share of positions "
    "whose most likely token is another one.",
    right=_apart,
    cases=_logits,
    run=_in_float32,
    hints=(
        "`log_softmax(-1)` makes ln p and ln q of the two; `exp` makes p of ln p.",
        "Sum over the tokens, then take the mean over the positions. For the second number compare "
        "the two `argmax(-1)`; `.double().mean()` makes a share of truth values.",
    ),
    mistakes=[
        (lambda a, b: _apart(a, b, swap=True),
         "p and q are exchanged: the sum is weighted by the probabilities of the model as it was."),
        (lambda a, b: _apart(a, b, wide=True),
         "the mean is taken over the tokens, too. Sum over the tokens; the mean is over the "
         "positions."),
        (lambda a, b: _apart(a, b, to=torch.sum),
         "the divergence is a sum over positions. Take the mean."),
        (lambda a, b: _apart(a, b, to=torch.sum, sum=True),
         "both are sums over positions. Take the means."),
        (lambda a, b: (_apart(a, b)[0], 1 - _apart(a, b)[1]),
         "the second number is the share that stays. Wanted is the share that changes."),
        (lambda a, b: (_apart(a, b)[0], _apart(a, b)[1] * len(a)),
         "the second number is a count. Divide it by the number of positions."),
        (lambda a, b: (_apart(a, b)[0] / torch.tensor(2.0).log().item(), _apart(a, b)[1]),
         "the divergence is in bits. Take natural logarithms."),
        (lambda a, b: (1000 * _apart(a, b)[0], _apart(a, b)[1]),
         "the divergence is a thousand times too large. The factor 1000 is for printing."),
        (lambda a, b: (float((a.softmax(-1) * (a - b)).sum(-1).mean()), _apart(a, b)[1]),
         "the logits take the place of the logarithms. They lack the normalisation: a constant "
         "added to all logits of a position must change nothing."),
        (lambda a, b: (float((a - b).square().mean()), _apart(a, b)[1]),
         "this is the mean square of the logits' change. Wanted is the divergence."),
        (lambda a, b: tuple(reversed(_apart(a, b))),
         "the two numbers are exchanged: the divergence comes first."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
