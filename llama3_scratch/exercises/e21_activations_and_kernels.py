"""The exercises of notebook 21: LLM.int8's split, W8A8, SmoothQuant's scales, a cache's bytes."""

import math

import torch

from llama3_scratch.exercises.frame import Exercise, desk, drawn, of_each

# --- LLM.int8 -------------------------------------------------------------------------------------


def _scale(size, most=127):
    return size.clamp(min=1e-30) / most


def whole(x, W):
    """[..., I], [O, I] -> [..., O]: x W^T in whole numbers, a scale for each row of x and of W."""
    return _w8a8(x, W)


def in_halves(x, W):
    """Another `product`, of another kind of rounding: only x is rounded, to multiples of 1/2."""
    return (2 * x).round() / 2 @ W.T


def _columns(x, threshold):
    return _rows(x.abs() >= threshold).any(0)


def _rows(x):
    return x.reshape(-1, x.shape[-1])


def _llm_int8(x, W, threshold, product, outliers=_columns):
    out = outliers(x, threshold)
    return x[..., out] @ W[:, out].T + product(x.masked_fill(out, 0), W)


def _of_single_numbers(x, W, threshold, product):
    out = x.abs() >= threshold
    return x.masked_fill(~out, 0) @ W.T + product(x.masked_fill(out, 0), W)


def _of_what_is_left(x, W, threshold, product):
    out = _columns(x, threshold)
    exact = x[..., out] @ W[:, out].T
    return exact if out.all() else exact + product(x[..., ~out], W[:, ~out])


def _split():
    hand = torch.tensor([[1.0, -2.0, 8.0, 0.5], [0.3, 1.5, 0.2, -1.0]])
    W_hand = torch.tensor([[0.5, -0.2, 0.9, 0.1], [-0.3, 0.4, 0.1, 0.2], [0.2, 0.1, -0.6, 0.7]])
    x, W, y = drawn(21, (5, 24), (7, 24), (2, 3, 24))
    x[1, 4], x[3, 20], x[0, 9] = 40.0, -25.0, 4.5
    W[2, 4], W[5, 13] = 9.0, -8.0
    y[1, 2, 7], y[0, 0, 0] = -30.0, 6.0
    return {
        "two tokens, four columns": (hand, W_hand, 6.0, whole),
        "outliers of both signs": (x, W, 6.0, whole),
        "another threshold": (x, W, 3.0, whole),
        "leading dimensions, one magnitude equal to the threshold": (y, W, 6.0, whole),
        "threshold 0": (x, W, 0.0, whole),
        "threshold infinity": (x, W, math.inf, whole),
        "one token without leading dimensions": (y[0, 0], W, 6.0, whole),
        "another `product`": (x, W, 6.0, in_halves),
    }


llm_int8 = Exercise(
    "x [..., I], W [O, I], a threshold, and `product`, which multiplies in whole numbers -> x W^T "
    "[..., O]. The columns of x in which any magnitude is at least the threshold meet their "
    "columns of W as they are. The rest goes through `product`: all of W, and x with zeros in the "
    "outlier columns.",
    right=_llm_int8,
    cases=_split,
    hints=(
        "First a mask [I]: True for a column in which any token has a magnitude of at least the "
        "threshold. `x.reshape(-1, x.shape[-1])` turns all leading dimensions into one.",
        "Two products are added. For the first one take the same columns out of x and out of W; "
        "for the second one `masked_fill` puts zeros into x.",
    ),
    mistakes=[
        (lambda x, W, t, p: _llm_int8(x, W, t, p, lambda x, t: (W.abs() >= t).any(0)),
         "the outliers are looked for in the weights. They are outliers of the activations: the "
         "columns of x decide, and the columns of W that meet them come along."),
        (_of_single_numbers,
         "single numbers are taken out of x. LLM.int8 takes whole columns, so that both parts "
         "stay plain matrix products."),
        (lambda x, W, t, p: _llm_int8(x, W, t, p, lambda x, t: _rows(x >= t).any(0)),
         "only positive outliers are found: compare magnitudes."),
        (lambda x, W, t, p: _llm_int8(x, W, t, p, lambda x, t: _rows(x.abs() > t).any(0)),
         "a magnitude equal to the threshold is an outlier too: at least the threshold."),
        (lambda x, W, t, p: _llm_int8(x, W, t, p, lambda x, t: _rows(x.abs() >= t).all(0)),
         "a column counts only if all its numbers are large. One large number is enough."),
        (lambda x, W, t, p: x[..., _columns(x, t)] @ W[:, _columns(x, t)].T + p(x, W),
         "the outliers are counted twice: put zeros in their place before `product` gets x."),
        (lambda x, W, t, p: p(x.masked_fill(_columns(x, t), 0), W),
         "the product of the outlier columns is missing."),
        (lambda x, W, t, p: x[..., _columns(x, t)] @ W[:, _columns(x, t)].T,
         "the columns without outliers are missing: they go through `product`."),
        (lambda x, W, t, p: _llm_int8(x, W, t, whole),
         "`product` is not called: the numbers are rounded in a way of your own. Give `product` "
         "all but the outlier columns, however it rounds."),
        (lambda x, W, t, p: x @ W.T,
         "this is the product without rounding. All but the outlier columns goes through "
         "`product`."),
        (_of_what_is_left,
         "W is rounded without its outlier columns. Its codes are made once, before any text is "
         "read: give `product` all of W, and x with zeros in the outlier columns."),
    ],
    properties=[
        (of_each(lambda y, x, W, t, p: t != math.inf or torch.allclose(y, p(x, W), atol=1e-3)),
         "with a threshold of infinity nothing is an outlier: all of it goes through `product`."),
    ],
)  # fmt: skip


# --- W8A8 -----------------------------------------------------------------------------------------


def _w8a8(x, W, most=127, x_size=lambda x: x.abs().amax(-1, keepdim=True),
          W_size=lambda W: W.abs().amax(-1, keepdim=True), whole=torch.round):  # fmt: skip
    x_scale, W_scale = _scale(x_size(x), most), _scale(W_size(W), most)
    sums = whole(x / x_scale).double() @ whole(W / W_scale).double().T
    W_scale = W_scale[..., 0] if W_scale.dim() else W_scale
    return (sums * x_scale * W_scale).float()


def _codes(x):
    scale = _scale(x.abs().amax(-1, keepdim=True))
    return (x / scale).round().to(torch.int8), scale


def _kept(x):
    codes, scale = _codes(x)
    return codes * scale


def _in_int8(x, W):
    (x_codes, x_scale), (W_codes, W_scale) = _codes(x), _codes(W)
    sums = (x_codes.long() @ W_codes.long().T).to(torch.int8)  # what int8 keeps of a sum
    return sums.float() * x_scale * W_scale[:, 0]


def _products():
    hand = torch.tensor([[1.0, -0.5, 0.24], [10.0, 0.0, -4.0]])
    W_hand = torch.tensor([[0.2, 0.1, -0.4], [3.0, 1.0, 2.0]])
    x, W, y = drawn(22, (4, 33), (6, 33), (2, 3, 33))
    sizes = torch.tensor([[0.01], [1.0], [30.0], [0.0]])
    return {
        "two tokens, three columns": (hand, W_hand),
        "tokens of different sizes, and one of zeros": (x * sizes, W),
        "rows of W of different sizes": (x, W * torch.arange(6)[:, None] ** 2),
        "leading dimensions": (y * 3, W),
    }


w8a8 = Exercise(
    "x [..., I] and W [O, I] -> x W^T [..., O], float32, in whole numbers: every token (row of x) "
    "and every row of W has a scale, its largest magnitude over 127; the codes are rounded to the "
    "nearest whole number, their products are summed exactly, and the scales are multiplied in at "
    "the end. A row of zeros gives zeros.",
    right=_w8a8,
    cases=_products,
    hints=(
        "`amax(-1, keepdim=True)` of the magnitudes: [..., 1] for x and [O, 1] for W. Only one of "
        "them still has to be turned to meet the sums [..., O].",
        "A sum of int8 codes does not fit into int8: make them float64 (or int32) before they are "
        "multiplied. And a scale of 0 must not be divided by: replace it with any other number.",
    ),
    mistakes=[
        (lambda x, W: _w8a8(x, W, x_size=lambda x: x.abs().amax()),
         "all tokens share one scale. Each token, a row of x, has its own."),
        (lambda x, W: _w8a8(x, W, W_size=lambda W: W.abs().amax()),
         "all rows of W share one scale. Each row, an output, has its own."),
        (lambda x, W: _w8a8(x, W, x_size=lambda x: x.abs().amax(), W_size=lambda W: W.abs().amax()),
         "x has one scale and W has one. Each row of both has its own."),
        (lambda x, W: _w8a8(x, W, most=128),
         "the scale is the largest magnitude over 128. Codes go from -127 to 127: divide by 127."),
        (lambda x, W: _w8a8(x, W, most=255),
         "the scale is the largest magnitude over 255. Codes have a sign and go from -127 to 127."),
        (lambda x, W: _w8a8(x, W, whole=torch.trunc),
         "the codes are cut off. `.to(torch.int8)` rounds towards 0: call `.round()` first."),
        (lambda x, W: _w8a8(x, W, x_size=lambda x: x.amax(-1, keepdim=True).clamp(min=0),
                            W_size=lambda W: W.amax(-1, keepdim=True).clamp(min=0)),
         "the scales come from the largest number; they have to come from the largest magnitude, "
         "which may belong to a negative number."),
        (_in_int8,
         "the sums are kept in int8, which ends at 127. Make the codes int32 or float64 before "
         "they are multiplied."),
        (lambda x, W: _w8a8(x, W) / _scale(x.abs().amax(-1, keepdim=True)),
         "the scales of x are missing at the end."),
        (lambda x, W: _w8a8(x, W) / _scale(W.abs().amax(-1)),
         "the scales of W are missing at the end."),
        (lambda x, W: x @ W.T,
         "this is the product without rounding."),
        (lambda x, W: _kept(x) @ W.T,
         "W is not rounded. Each row of W has a scale and codes, too."),
        (lambda x, W: x @ _kept(W).T,
         "x is not rounded. Each token has a scale and codes, too."),
    ],
)  # fmt: skip


# --- SmoothQuant ----------------------------------------------------------------------------------


def _by_column(readers):
    return torch.stack([W.abs().amax(0) for W in readers]).amax(0)


def _smooth(norm, readers, largest, alpha, of=_by_column, power=lambda x, w, a: x**a / w ** (1 - a),
            up=True):  # fmt: skip
    s = power(largest, of(readers), alpha)
    s = s if up else 1 / s
    return norm / s, [W * s for W in readers]


def _own_scales(norm, readers, largest, alpha):
    made = [_smooth(norm, [W], largest, alpha) for W in readers]
    return made[0][0], [matrices[0] for _, matrices in made]


def _smoothed():
    norm = torch.tensor([1.0, 2.0, 60.0])
    W = torch.tensor([[0.5, -1.0, 0.01], [-0.25, 0.5, 0.02]])
    g, A, B, C, sizes = drawn(23, (8,), (5, 8), (3, 8), (6, 8), (8,))
    sizes = sizes.abs() * torch.tensor([1, 1, 90, 1, 1, 0.1, 1, 1])
    B = B * 4
    return {
        "three columns, one matrix": (norm, [W], torch.tensor([4.0, 4.0, 64.0]), 0.5),
        "three matrices": (g, [A, B, C], sizes, 0.5),
        "alpha 0.85": (g, [A, B], sizes, 0.85),
        "alpha 0": (g, [B, A], sizes, 0.0),
        "alpha 1": (g, [C, A], sizes, 1.0),
    }


def _same_function(found, norm, readers, largest, alpha):
    new_norm, new_readers = found
    x = drawn(24, (4, len(norm)))[0]
    pairs = zip(readers, new_readers, strict=True)
    return all(torch.allclose((x * norm) @ W.T, (x * new_norm) @ new.T, 1e-3, 1e-3)
               for W, new in pairs)  # fmt: skip


smooth = Exercise(
    "A norm's weight [D], the matrices [O, D] that read its output, the largest magnitude of each "
    "column of that output [D], and alpha -> (the new weight, a list of the new matrices): column "
    "j of the output is divided by s_j and column j of every matrix multiplied by it, with s_j = "
    "largest_j^alpha / max |W_j|^(1 - alpha), where max |W_j| is over all the matrices.",
    right=_smooth,
    cases=_smoothed,
    hints=(
        "The matrices share s, because they share their input: stack their columns' largest "
        "magnitudes and take the largest of those, [D].",
        "The output of the norm is row times weight, so dividing column j of the output is "
        "dividing entry j of the weight. Nothing else in the model has to know.",
    ),
    mistakes=[
        (lambda n, r, x, a: _smooth(n, r, x, a, up=False),
         "the wrong way round: the norm's weight is divided by s, the matrices are multiplied."),
        (lambda n, r, x, a: (_smooth(n, r, x, a)[0], list(r)),
         "the norm's weight is divided, but the matrices are as they were: the model has changed."),
        (lambda n, r, x, a: (n, _smooth(n, r, x, a)[1]),
         "the matrices are multiplied, but the norm's weight is as it was: the model has changed."),
        (_own_scales,
         "each matrix has an s of its own, but there is only one norm's weight to divide: take the "
         "largest magnitude over all the matrices."),
        (lambda n, r, x, a: _smooth(n, r, x, 1 - a),
         "alpha and 1 - alpha are exchanged: alpha is the power of the activations."),
        (lambda n, r, x, a: _smooth(n, r, x, a, power=lambda x, w, a: (x / w) ** a),
         "the weights have the power alpha too. Theirs is 1 - alpha."),
        (lambda n, r, x, a: _smooth(n, r, x, a, power=lambda x, w, a: x**a * w ** (1 - a)),
         "multiplied by the weights' part; s is divided by it."),
        (lambda n, r, x, a: _smooth(n, r, x, a, of=lambda r: torch.cat(r).amax(0).clamp(min=1e-5)),
         "the largest number of a column may be negative: compare magnitudes."),
        (lambda n, r, x, a: _smooth(n, r, x, a, of=lambda r: torch.cat(r).abs().mean(0)),
         "s takes the largest magnitude in a column of weights, not the mean."),
        (lambda n, r, x, a: _smooth(n, r, x, a, of=lambda r: _by_column(r[:1])),
         "s looks at the first matrix only. The maximum is over all the matrices."),
        (lambda n, r, x, a: _smooth(n, r, x, a, of=lambda r: torch.cat(r).abs().amax()),
         "one number for all columns of weights. Each column has its own."),
    ],
    properties=[
        (of_each(_same_function),
         "the model's function has changed: (x * new weight) times a new matrix must be what (x * "
         "weight) times the old one was."),
    ],
)  # fmt: skip


# --- The cache in fewer bits ----------------------------------------------------------------------


def _cache_bytes(L, K, H, positions, bits, scale_bits, both=2, heads=1, up=math.ceil):
    vectors = both * L * K * positions
    return vectors * up(H * bits / 8) + vectors * scale_bits // 8 // heads


cache_bytes = Exercise(
    "(L, K, H, positions, bits, scale_bits) -> the bytes of a cache for so many positions: keys "
    "and values of every layer, position and key/value head, H codes of so many bits each, packed "
    "to whole bytes, and one scale of scale_bits.",
    right=_cache_bytes,
    cases=lambda: [
        (1, 1, 8, 1, 4, 16), (6, 2, 24, 100, 8, 32), (32, 8, 128, 8192, 4, 16),
        (32, 8, 128, 131072, 8, 16), (5, 3, 14, 7, 4, 32), (16, 8, 64, 1000, 3, 16),
        (5, 3, 14, 7, 3, 32), (32, 8, 128, 8192, 16, 0),
    ],
    hints=(
        "Count the vectors first: how many vectors of H numbers does one position have in all "
        "layers? Keys and values both count.",
        "A vector takes its codes, rounded up to whole bytes, and its scale.",
    ),
    mistakes=[
        (lambda *c: _cache_bytes(*c, both=1),
         "that is the keys or the values. The cache keeps both."),
        (lambda L, K, H, n, bits, s: _cache_bytes(L, K, H, n, bits, 0),
         "the scales are missing: every vector of H numbers has one."),
        (lambda L, K, H, n, bits, s: _cache_bytes(L, K, H, n, bits, 0) + 2 * L * n * s // 8,
         "the heads share a scale here. Every head has its own."),
        (lambda L, K, H, n, bits, s: _cache_bytes(L, K, H, n, bits, 0) + L * K * n * s // 8,
         "keys and values share a scale here. Each has its own."),
        (lambda L, K, H, n, bits, s: _cache_bytes(L, K, H, n, bits + s, 0),
         "every number has a scale here. The H numbers of a vector share one."),
        (lambda *c: 8 * _cache_bytes(*c),
         "these are the bits. A byte has eight."),
        (lambda *c: _cache_bytes(*c, up=math.floor),
         "a vector's codes are packed to whole bytes: round up."),
        (lambda *c: _cache_bytes(*c, up=lambda x: x),
         "a vector's codes are packed to whole bytes: round each vector up."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
