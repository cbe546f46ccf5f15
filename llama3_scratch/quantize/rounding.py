"""Rounding a matrix of weights to whole numbers of a few bits.

Each method takes W [O, I], the weight of y = x W^T, and returns a `Rounded`, from which
`dequantize` makes a matrix again. Some also look at X [..., I], inputs of that layer, or at their
`hessian`. They minimise the error of the layer's outputs, ||X (W - W')^T||^2, not that of W.
"""

import itertools
import math
from typing import NamedTuple

import torch

from llama3_scratch.errors import require, whole

SMALLEST = torch.finfo(torch.float32).tiny  # the scale of weights that are all 0


class Rounded(NamedTuple):
    """A matrix [O, I] in whole numbers: w = (code - zero) scale, with one scale for each group.

    codes: [O, I], uint8, 0 to 2^bits - 1. scales, zeros: [O, n_groups], float32. group: how many
    neighbours in a row share a scale (the last ones of a row may be fewer); None: the whole row.
    columns: AWQ, QuIP: [I], what the columns were multiplied by before they were rounded.
    turns: QuIP: the two `Turn`s, of the columns and of the rows, in which W was rounded.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bits: int
    group: int | None
    columns: torch.Tensor | None = None
    turns: tuple | None = None


def dequantize(rounded):
    """Rounded -> the matrix [O, I] that it stands for, float32."""
    scales, zeros = spread(rounded)
    W = (rounded.codes - zeros) * scales
    if rounded.turns:
        of_columns, of_rows = rounded.turns
        W = turned_back(turned_back(W.double().T, of_rows).T, of_columns).float()
    return W if rounded.columns is None else W / rounded.columns


def spread(rounded):
    """Rounded -> the scale and the zero of every weight, [O, I] each."""
    n = rounded.codes.shape[1]
    size = rounded.group or n
    return tuple(each.repeat_interleave(size, 1)[:, :n] for each in (rounded.scales, rounded.zeros))


# --- Round to nearest -----------------------------------------------------------------------------


def grid(part, bits, symmetric=False):
    """Weights [O, n] that share a scale in each row -> scale [O], zero [O], float32.

    The range takes in 0. It is cut into 2^bits - 1 steps; `zero` is the code that means 0.
    symmetric: from minus the largest magnitude to plus, zero in the middle: 2^(bits - 1).
    """
    part, steps = part.float(), 2**bits - 1
    low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scale = ((high - low) / steps).clamp(min=SMALLEST)
    return scale, torch.full_like(scale, 2.0 ** (bits - 1)) if symmetric else (-low / scale).round()


def encode(w, scale, zero, bits):
    """Weights [O, ...] with scale and zero of their shape -> the nearest codes, float32.

    Multiplied by 1 / scale in float32, as in torch.fake_quantize_per_channel_affine. Division would
    now and then decide otherwise for a weight that lies halfway between two codes.
    """
    return ((w.float() * (1 / scale)).round() + zero).clamp(0, 2**bits - 1)


def rtn(W, bits, group=None, symmetric=False):
    """[O, I] -> Rounded: each weight to the nearest number of its group's `grid`.

    Raises `InputError` for a W that is not a finite matrix, bits not in 2 to 8, a group below 1.
    """
    _check(W, bits, group)
    parts = W.split(group or W.shape[1], 1)
    scales, zeros = zip(*(grid(part, bits, symmetric) for part in parts), strict=True)
    codes = [
        encode(part, scale[:, None], zero[:, None], bits)
        for part, scale, zero in zip(parts, scales, zeros, strict=True)
    ]
    codes = torch.cat(codes, 1).to(torch.uint8)
    return Rounded(codes, torch.stack(scales, 1), torch.stack(zeros, 1), bits, group)


# --- GPTQ -----------------------------------------------------------------------------------------


def hessian(X):
    """Inputs of a layer [..., I] -> 2 X^T X [I, I], float64.

    The second derivative of ||(w - w') X^T||^2 by w', the same for every row w of W. It is a sum
    over the inputs, as in the paper, so Hessians of several batches can be added. (The published
    code divides it by the number of sequences; no method here depends on such a factor.)
    """
    X = X.reshape(-1, X.shape[-1]).double()
    return 2 * X.T @ X


def inverse_factor(H, damping=0.0):
    """Positive definite [I, I] -> U, upper triangular, with U^T U = H^-1, float64.

    Where the diagonal is 0 (an input that is always 0) it becomes 1, then `damping` times its mean
    is added to it. If J reverses the order and J H J = L L^T, then U = J L^-1 J. The published code
    takes a Cholesky factor, forms H^-1 from it, and factors that: the same U by more work and
    memory. Raises `InputError` if H is not positive definite.
    """
    H = H.double().flip(0, 1).mT  # a copy, in the order in memory that LAPACK computes on in place
    diagonal = H.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    L = cholesky_(H)
    invert_(L)
    return L.flip(0, 1)


def cholesky_(H):
    """Symmetric [I, I], stored by columns -> its lower Cholesky factor, in H's place."""
    fault = torch.empty((), dtype=torch.int32, device=H.device)
    torch.linalg.cholesky_ex(H, out=(H, fault))
    require(
        not fault,
        "the Hessian is not positive definite: expected that of inputs, with damping above 0.",
    )
    return H


def invert_(L, least=256):
    """Replace a lower triangular matrix by its inverse: first both triangles, then the square.

    [[A, 0], [C, B]]^-1 = [[A^-1, 0], [-B^-1 C A^-1, B^-1]].
    """
    if len(L) <= least:
        ones = torch.eye(len(L), dtype=L.dtype, device=L.device)
        L.copy_(torch.linalg.solve_triangular(L, ones, upper=False))
        return
    half = len(L) // 2
    invert_(L[:half, :half], least)
    invert_(L[half:, half:], least)
    L[half:, :half] = -(L[half:, half:] @ L[half:, :half]) @ L[:half, :half]


def gptq(W, H, bits, group=None, act_order=False, symmetric=False, damping=0.01, block=128):
    """[O, I], Hessian [I, I] -> Rounded: column by column; later columns make up for the error.

    Frantar et al. 2022, arXiv:2210.17323, and gptq.py in github.com/IST-DASLab/gptq. H is damped
    as in `inverse_factor`; the columns of inputs that are always 0 become 0. The grid of a group is
    taken when its first column is reached, from the weights as they are then. With act_order, which
    takes the columns by the diagonal of H, the largest first, all grids are taken at the start
    ("static groups"). The columns after a block of `block` are updated once for all its errors,
    which is quicker; the result does not depend on the block. Memory: besides W and H, two matrices
    of H's size and three of W's in float64; with act_order a third of H's size.

    Raises `InputError` as `rtn`, and if H is not the Hessian of W's inputs.
    """
    _check(W, bits, group)
    _check_hessian(H, W)
    n, size, dead = W.shape[1], group or W.shape[1], H.diagonal() == 0
    grids = {} if group else {0: grid(W, bits, symmetric)}  # a row's: before dead columns are 0
    W, order = W.double().masked_fill(dead, 0), list(range(n))
    if act_order:
        grids = grids or dict(enumerate(grid(each, bits, symmetric) for each in W.split(size, 1)))
        order = H.diagonal().masked_fill(dead, 1).argsort(descending=True, stable=True).tolist()
        W, H = W[:, order], H[order][:, order]
    U = inverse_factor(H, damping)

    codes = torch.empty(W.shape, dtype=torch.uint8, device=W.device)
    for start, end in itertools.pairwise(sorted({*range(0, n, block), *range(0, n, size), n})):
        part = W[:, start:end].T.contiguous().T  # a copy whose columns are together in memory
        errors = torch.empty_like(part)
        for j, column in enumerate(order[start:end]):
            if column // size not in grids:  # then it is the first of its group, and of this part
                grids[column // size] = grid(W[:, start : start + size], bits, symmetric)
            scale, zero = grids[column // size]
            code = encode(part[:, j], scale, zero, bits)
            codes[:, column] = code.to(torch.uint8)
            errors[:, j] = (part[:, j] - (code - zero) * scale) / U[start + j, start + j]
            part[:, j:].addr_(errors[:, j], U[start + j, start + j : end], alpha=-1)
        W[:, end:].addmm_(errors, U[start:end, end:], alpha=-1)
    scales, zeros = zip(*(grids[each] for each in sorted(grids)), strict=True)
    return Rounded(codes, torch.stack(scales, 1), torch.stack(zeros, 1), bits, group)


# --- AWQ ------------------------------------------------------------------------------------------


def awq(W, X, bits, group=None):
    """[O, I], inputs [..., I] -> Rounded: columns that meet large inputs are rounded more finely.

    Lin et al. 2023, arXiv:2306.00978. The columns of W are multiplied by `awq_columns`, rounded to
    nearest, and divided again (a model would divide the inputs). Of alpha = 0, 1/20, ..., 19/20 the
    one with the least error of the outputs is taken; alpha = 0 is `rtn`. The paper's second search,
    for a smaller range of each grid, is left out.

    Raises `InputError` as `rtn`, and for inputs that are not W's.
    """
    _check(W, bits, group)
    X = _inputs(X, W)
    best, least = None, math.inf
    for step in range(20):
        columns = awq_columns(X, step / 20)
        rounded = rtn(W.float() * columns, bits, group)._replace(columns=columns)
        error = float(row_errors(W, rounded, X).sum())
        if best is None or error < least:
            best, least = rounded, error
    return best


def awq_columns(X, alpha):
    """Inputs [..., I] -> [I]: (mean |x_i|)^alpha, centred so that largest times least is 1."""
    columns = (X.float().abs().flatten(0, -2).mean(0) ** alpha).clamp(min=1e-4)
    return columns / (columns.max() * columns.min()).sqrt()


def row_errors(W, rounded, X):
    """[O, I], Rounded, inputs [..., I] -> ||(w - w') X^T||^2 for each row, [O], float64."""
    return (X.float() @ (W.float() - dequantize(rounded)).T).double().square().flatten(0, -2).sum(0)


# --- AdaRound -------------------------------------------------------------------------------------


def adaround(W, X, bits, group=None, steps=500, seed=0):
    """[O, I], inputs [..., I] -> Rounded: whether each weight goes up or down is learned.

    Nagel et al. 2020, arXiv:2004.10568. On the grid of `rtn` a code is floor(w / scale) + zero + h
    with h = clamp(1.2 sigmoid(v) - 0.1, 0, 1), and Adam learns v. The loss is the error of the
    outputs on 256 inputs, drawn anew in each step; after a fifth of the steps the mean of
    1 - |2h - 1|^beta is added, which pulls h to 0 or 1 while beta falls from 20 to 2. Two things
    are ours: each row's error is divided by that of `rtn`, so that one factor between the two
    terms, 10, serves every layer; and a row keeps the codes of `rtn` unless its error is smaller.

    Raises `InputError` as `rtn`, and for inputs that are not W's.
    """
    _check(W, bits, group)
    X = _inputs(X, W)
    nearest, top = rtn(W, bits, group), 2**bits - 1
    with torch.inference_mode(False), torch.enable_grad():
        W, X = W.detach().float().clone(), X.detach().clone()
        scales, zeros = (each.clone() for each in spread(nearest))
        exact = W / scales + zeros
        low, high = exact.floor().clamp(0, top), exact.ceil().clamp(0, top)
        v = torch.logit(((exact - exact.floor()) + 0.1) / 1.2).requires_grad_()
        unit = row_errors(W, nearest, X).float().clamp(min=1e-30) / len(X)  # [O]
        adam = torch.optim.Adam([v], lr=0.1)
        draw = torch.Generator().manual_seed(seed)
        for step in range(steps):
            some = torch.randint(len(X), (256,), generator=draw)
            h = (1.2 * v.sigmoid() - 0.1).clamp(0, 1)
            change = (low + h * (high - low) - zeros) * scales - W
            loss = ((X[some] @ change.T).square().mean(0) / unit).mean()
            done = (step / steps - 0.2) / 0.8
            if done > 0:
                beta = 2 + 9 * (1 + math.cos(math.pi * done))
                loss = loss + 10 * (1 - (2 * h - 1).abs() ** beta).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        codes = torch.where(v >= 0, high, low).to(torch.uint8)
    learned = nearest._replace(codes=codes)
    better = row_errors(W, learned, X) < row_errors(W, nearest, X)
    return nearest._replace(codes=torch.where(better[:, None], learned.codes, nearest.codes))


# --- QuIP -----------------------------------------------------------------------------------------


class Turn(NamedTuple):
    """An orthogonal map of n = p q numbers, the Kronecker product of two small ones: 0 < p <= q.

    order: [n], in which the numbers are read first. left: [p, p], right: [q, q], float64.
    """

    order: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor


def turned(x, turn):
    """[..., n], Turn -> [..., n]: the numbers in their new order, as [p, q], become L x R^T."""
    x = x[..., turn.order].unflatten(-1, (len(turn.left), len(turn.right)))
    return (turn.left @ x @ turn.right.T).flatten(-2)


def turned_back(x, turn):
    """[..., n], Turn -> [..., n]: the numbers that `turned` made x from."""
    x = x.unflatten(-1, (len(turn.left), len(turn.right)))
    return (turn.left.T @ x @ turn.right).flatten(-2)[..., turn.order.argsort()]


def random_turn(n, draw, device=None):
    """A size, a torch.Generator -> Turn. p is the largest divisor of n up to its square root."""
    p = next(p for p in range(math.isqrt(n), 0, -1) if n % p == 0)
    order = torch.randperm(n, generator=draw)
    parts = order, random_orthogonal(p, draw), random_orthogonal(n // p, draw)
    return Turn(*(part.to(device) for part in parts))


def random_orthogonal(n, draw):
    """A size, a torch.Generator -> an orthogonal matrix [n, n], float64, uniformly at random."""
    Q, R = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=draw))
    return Q * R.diagonal().sign()


def ldlq(W, H, bits, block=128):
    """W [O, I] in codes (w / scale + zero), Hessian [I, I] -> codes [O, I], uint8.

    The rounding of QuIP, from the last column to the first: to each column are added the errors of
    the columns after it, w - code, times the entries of L below the diagonal, where H = L D L^T
    with ones on L's diagonal. No inverse is needed; the codes are those of `gptq` if that takes the
    columns in the same order. Blocks as in `gptq`. Raises `InputError` as `gptq`.
    """
    W, L = W.double(), cholesky_(H.to(torch.float64, copy=True).mT)
    L /= L.diagonal().clone()
    codes, errors = torch.empty(W.shape, dtype=torch.uint8, device=W.device), torch.empty_like(W)
    for end in range(W.shape[1], 0, -block):
        start = max(end - block, 0)
        part = W[:, start:end] + errors[:, end:] @ L[end:, start:end]
        for j in reversed(range(start, end)):
            wanted = part[:, j - start] + errors[:, j + 1 : end] @ L[j + 1 : end, j]
            code = wanted.round().clamp(0, 2**bits - 1)
            codes[:, j] = code.to(torch.uint8)
            errors[:, j] = W[:, j] - code
    return codes


def quip(W, H, bits, seed=0):
    """[O, I], Hessian [I, I] -> Rounded: rounded by `ldlq` where no weight and no input stands out.

    Chee et al. 2023, arXiv:2307.13304. 0.01 of the mean of H's diagonal is added to it.
    Column j of W is multiplied by (H_jj / sum of its w^2)^(1/4), and H divided to match. Then W
    becomes U W V^T and H becomes V H V^T, with U and V random `Turn`s: tr(W H W^T), of which the
    error is one, does not change. One grid serves all weights, from -2.4 to 2.4 times their root
    mean square; its zero lies between two codes. What is beyond is cut off; of normally distributed
    weights this is the larger part of the error from 5 bits on.

    Raises `InputError` as `gptq`.
    """
    _check(W, bits)
    _check_hessian(H, W)
    draw = torch.Generator().manual_seed(seed)
    of_columns, of_rows = (random_turn(n, draw, W.device) for n in reversed(W.shape))
    columns, W, H = rescaled(W, H)
    W = turned(turned(W, of_columns).T, of_rows).T
    H = turned(turned(H, of_columns).T, of_columns)
    steps = 2**bits - 1
    scale = (2 * 2.4 * W.square().mean().sqrt() / steps).float().clamp(min=SMALLEST)
    codes = ldlq(W / scale + steps / 2, H, bits)
    scales = scale.expand(len(W), 1).clone()
    zeros = torch.full_like(scales, steps / 2)
    return Rounded(codes, scales, zeros, bits, None, columns, (of_columns, of_rows))


def rescaled(W, H, damping=0.01):
    """[O, I], Hessian [I, I] -> factors of the columns [I]; W times, H divided by them, float64.

    The factors that make the product of QuIP's two measures of size, tr(H) and ||W||^2, least.
    """
    W, H = W.double(), H.to(torch.float64, copy=True)
    H.diagonal().add_(damping * H.diagonal().mean())
    sizes = W.square().sum(0)
    columns = (H.diagonal() / sizes.clamp(min=1e-8 * float(sizes.max()) + 1e-60)) ** 0.25
    columns = columns.float().double()
    return columns.float(), W * columns, H / columns / columns[:, None]


# --- Checks ---------------------------------------------------------------------------------------


def _check(W, bits, group=None):
    """Raise `InputError` unless W is a matrix of finite numbers, 2 <= bits <= 8, and 1 <= group."""
    require(
        isinstance(W, torch.Tensor) and W.dim() == 2 and W.is_floating_point() and W.numel(),
        f"W is {tuple(getattr(W, 'shape', [type(W).__name__]))}: expected a matrix of floats.",
    )
    require(W.isfinite().all(), "W has NaN or infinity: expected finite numbers.")
    require(2 <= whole("bits", bits) <= 8, f"bits is {bits}: expected 2 to 8.")
    require(group is None or whole("group", group) >= 1, f"group is {group}: expected 1 or more.")


def _check_hessian(H, W):
    """Raise `InputError` unless H is a finite [I, I] for this W."""
    n = W.shape[1]
    require(
        isinstance(H, torch.Tensor) and H.shape == (n, n),
        f"H is {tuple(getattr(H, 'shape', [type(H).__name__]))}: expected {(n, n)}, as hessian(X) "
        "gives it.",
    )
    require(H.isfinite().all(), "H has NaN or infinity: expected finite numbers.")


def _inputs(X, W):
    """Inputs [..., I] -> [T, I], float32. Raise `InputError` unless they are finite ones for W."""
    n = W.shape[1]
    require(
        isinstance(X, torch.Tensor) and X.dim() and X.shape[-1] == n and X.numel(),
        f"X is {tuple(getattr(X, 'shape', [type(X).__name__]))}: expected inputs [..., {n}].",
    )
    require(X.isfinite().all(), "X has NaN or infinity: expected finite numbers.")
    return X.reshape(-1, n).float()
