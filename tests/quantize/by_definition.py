"""GPTQ and QuIP from their definitions, one number at a time: slow, and without torch's algebra.

GPTQ is computed in fractions, so exactly: its codes have no rounding but the intended one. The
inverse of the Hessian's remaining part is computed anew for every column.
"""

import math
import random
from fractions import Fraction

import numpy as np

CASES = {
    "4 bits": {"bits": 4},
    "3 bits, symmetric": {"bits": 3, "symmetric": True},
    "3 bits, groups of 8": {"bits": 3, "group": 8},  # the last group has 2 columns
    "2 bits, groups of 8, act-order": {"bits": 2, "group": 8, "act_order": True},
    "4 bits, act-order": {"bits": 4, "act_order": True},
    "4 bits, dead columns": {"bits": 4, "dead": [0, 11]},
    "3 bits, groups of 8, dead columns": {"bits": 3, "group": 8, "dead": [0, 11]},
}


def whole_numbers(seed, rows, columns, top):
    """A seed, a size -> whole numbers from -top to top, the same everywhere: list of rows."""
    draw = random.Random(seed)
    return [[draw.randint(-top, top) for _ in range(columns)] for _ in range(rows)]


def case(seed, rows=7, columns=26, T=60):
    """-> (W [rows, columns] in 1/256, X [T, columns] in 1/16, which depend on one another)."""
    W = whole_numbers(seed, rows, columns, 300)
    X, mix = whole_numbers(seed + 1, T, columns, 8), whole_numbers(seed + 2, columns, columns, 2)
    X = [[sum(x * m for x, m in zip(row, column, strict=True)) for column in mix] for row in X]
    return [[w / 256 for w in row] for row in W], [[x / 16 for x in row] for row in X]


def hessian(X):
    """X [T, I] -> 2 X^T X, in fractions."""
    columns = [[Fraction(x) for x in column] for column in zip(*X, strict=True)]
    return [[2 * sum(map(Fraction.__mul__, a, b)) for b in columns] for a in columns]


def inverse(A):
    """Gauss and Jordan: a matrix of fractions -> its inverse."""
    n = len(A)
    rows = [list(row) + [Fraction(i == j) for j in range(n)] for i, row in enumerate(A)]
    for i in range(n):
        pivot = next(r for r in range(i, n) if rows[r][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for r in range(n):
            if r != i and rows[r][i]:
                rows[r] = [x - rows[r][i] * y for x, y in zip(rows[r], rows[i], strict=True)]
    return [row[n:] for row in rows]


def grid(row, bits, symmetric):
    """Numbers of one group -> (scale, zero) in float32."""
    low, high = (np.float32(float(f([*row, 0]))) for f in (min, max))
    if symmetric:
        largest = max(-low, high)
        return (largest + largest) / np.float32(2**bits - 1), 2 ** (bits - 1)
    scale = (high - low) / np.float32(2**bits - 1)
    return scale, int(np.rint(-low / scale))


def nearest(w, scale, zero, bits):
    """-> the code of one number; fails next to a tie, where float32 might decide otherwise."""
    steps = w / Fraction(float(scale))
    assert abs(abs(steps - math.floor(steps)) - Fraction(1, 2)) > Fraction(1, 10**5)
    return min(max(math.floor(steps + Fraction(1, 2)) + zero, 0), 2**bits - 1)


def gptq(W, X, bits, group=None, act_order=False, symmetric=False, dead=()):
    """-> (codes, scales, zeros) as lists. dead: columns whose inputs are 0."""
    n = len(W[0])
    size = group or n
    X = [[0 if i in dead else x for i, x in enumerate(row)] for row in X]
    H = hessian(X)
    for i in dead:
        H[i][i] = Fraction(1)
    mean = sum(H[i][i] for i in range(n)) / n
    order = sorted(range(n), key=lambda i: -H[i][i]) if act_order else list(range(n))
    for i in range(n):
        H[i][i] += mean / 100
    inverses = [inverse([[H[a][b] for b in order[j:]] for a in order[j:]]) for j in range(n)]
    out = []
    for row in W:
        w = [Fraction(x) for x in row]
        grids = {} if group else {0: grid(w, bits, symmetric)}
        w = [Fraction(0) if i in dead else x for i, x in enumerate(w)]
        if act_order and group:
            grids = {g: grid(w[g * size :][:size], bits, symmetric) for g in range(-(-n // size))}
        codes = [0] * n
        for j, column in enumerate(order):
            g = column // size
            if g not in grids:
                grids[g] = grid(w[column : column + size], bits, symmetric)
            scale, zero = grids[g]
            codes[column] = nearest(w[column], scale, zero, bits)
            kept = Fraction(float(np.float32(codes[column] - zero) * scale))
            error = (w[column] - kept) / inverses[j][0][0]
            for k, later in enumerate(order[j:]):
                w[later] -= error * inverses[j][0][k]
        out.append((codes, *zip(*(grids[g] for g in sorted(grids)), strict=True)))
    codes, scales, zeros = zip(*out, strict=True)
    return codes, [[float(s) for s in row] for row in scales], zeros


def kronecker(order, left, right):
    """-> the dense matrix Q of a turn: (Q x)[a, b] = sum over c, d of left_ac right_bd x[order]."""
    p, q = len(left), len(right)
    Q = np.zeros((p * q, p * q))
    for a in range(p):
        for b in range(q):
            for c in range(p):
                for d in range(q):
                    Q[a * q + b, order[c * q + d]] += left[a][c] * right[b][d]
    return Q


def quip(W, X, bits, V, U):
    """V [I, I], U [O, O]: orthogonal. -> (codes, scale). All in float64."""
    W, X = np.array(W), np.array(X)
    H = 2 * X.T @ X
    n = len(H)
    H = H + np.eye(n) * 0.01 * np.mean(np.diag(H))
    by = np.array([(H[j, j] / np.sum(W[:, j] ** 2)) ** 0.25 for j in range(n)])
    by = by.astype(np.float32).astype(float)
    W, H = U @ (W * by) @ V.T, V @ (H / np.outer(by, by)) @ V.T
    scale = float(np.float32(2 * 2.4 * np.sqrt(np.mean(W**2)) / (2**bits - 1)))
    L = unit_lower(H)
    W = W / scale + (2**bits - 1) / 2
    codes = np.zeros_like(W)
    for row in range(len(W)):
        for i in reversed(range(n)):
            wanted = W[row, i]
            for k in range(i + 1, n):
                wanted += (W[row, k] - codes[row, k]) * L[k, i]
            assert abs(abs(wanted - math.floor(wanted)) - 0.5) > 1e-7
            codes[row, i] = min(max(math.floor(wanted + 0.5), 0), 2**bits - 1)
    return codes.astype(int).tolist(), scale


def unit_lower(H):
    """H = L D L^T with ones on L's diagonal: Gauss's elimination, a column at a time -> L."""
    rest, n = np.array(H), len(H)
    L = np.eye(n)
    for i in range(n):
        L[i + 1 :, i] = rest[i + 1 :, i] / rest[i, i]
        rest = rest - np.outer(rest[:, i], rest[i]) / rest[i, i]
    return L
