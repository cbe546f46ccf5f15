"""The exercises of notebook 06: the feed-forward's width, its neurons, its place, its cost."""

import math

import torch
import torch.nn.functional as F

from llama3_scratch.check.frame import examine
from llama3_scratch.config import PRESETS, Config
from llama3_scratch.model import feed_forward, rms_norm


def _drawn(seed, *shapes):
    """Tensors from a seed, the same on every machine, on torch's default device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, device="cpu") for shape in shapes]
    return [tensor.to(torch.get_default_device()) for tensor in drawn]


# --- 6.1: F from params.json ----------------------------------------------------------------------

WIDTHS = [  # dim, multiple_of, ffn_dim_multiplier; the last four are of no released model
    (4096, 1024, 1.3), (8192, 4096, 1.3), (16384, 4096, 1.2), (2048, 256, 1.5),
    (50, 1, 1.3), (52, 1, 1.3), (90, 13, None), (768, 256, 1.0),
]  # fmt: skip


def _width(dim, multiple_of, multiplier, thirds=2, cut=int, fit=math.ceil):
    width = cut(thirds * (4 * dim) / 3)
    width = width if multiplier is None else cut(multiplier * width)
    return fit(width / multiple_of) * multiple_of


def _width_multiplied_last(dim, multiple_of, multiplier):
    width = _width(dim, multiple_of, None)
    return width if multiplier is None else int(multiplier * width)


def ffn_dim(answer):
    """F from what params.json says: (dim, multiple_of, ffn_dim_multiplier or None) -> int."""

    def right(dim, multiple_of, multiplier):
        return Config(
            dim=dim, n_layers=1, n_heads=1, n_kv_heads=1, vocab_size=1, multiple_of=multiple_of,
            norm_eps=1e-5, rope_theta=1.0, ffn_dim_multiplier=multiplier,
        ).ffn_dim  # fmt: skip

    mistakes = {
        "too wide by half: it starts from 4D. With three matrices in place of two, only two thirds "
        "of that are kept.": lambda *case: _width(*case, thirds=3),
        "it is rounded down to a multiple of multiple_of. Meta rounds up.":
            lambda *case: _width(*case, fit=math.floor),
        "it is rounded to the nearest multiple of multiple_of. Meta rounds up, always.":
            lambda *case: _width(*case, fit=round),
        "where the width is a multiple already, it goes up to the next one. Round up only what "
        "does not fit.": lambda *case: _width(*case, fit=lambda n: math.floor(n) + 1),
        "the multiplier comes last, after the rounding up. It comes before: the result has to be "
        "a multiple of multiple_of.": _width_multiplied_last,
        "the multiplier is not used.": lambda dim, multiple_of, _: _width(dim, multiple_of, None),
        "not rounded up to a multiple of multiple_of.":
            lambda dim, _, multiplier: _width(dim, 1, multiplier),
        "int() cuts the fraction off, after the 2/3 and after the multiplier; here it is rounded.":
            lambda *case: _width(*case, cut=round),
        "int() is taken once, after the multiplier. Meta takes it after the 2/3, too.":
            lambda dim, m, multiplier: _width(dim, m, 2 / 3 * (multiplier or 1), thirds=3),
        "the fractions are carried along. Meta cuts them off, with int(), after the 2/3 and after "
        "the multiplier.": lambda *case: _width(*case, cut=lambda width: width),
    }  # fmt: skip
    examine(answer, right, WIDTHS, mistakes)


# --- 6.2: one neuron ------------------------------------------------------------------------------


def _neuron(act, x, w1, w3, w2, j):
    return torch.outer(act(x @ w1[j]) * (x @ w3[j]), w2[:, j])


def one_neuron(answer):
    """What neuron j adds: (x [T, D], w1 [F, D], w3 [F, D], w2 [D, F], j) -> [T, D]."""

    cases = [
        (*_drawn(seed, (T, D), (width, D), (width, D), (D, width)), j)
        for seed, T, D, width, j in ((1, 3, 5, 8, 2), (2, 4, 6, 11, 5), (3, 2, 7, 9, 0))
    ]

    def right(*case):
        return _neuron(F.silu, *case)

    mistakes = {
        "the SiLU is on w3's side. It belongs to the gate, w1.":
            lambda x, w1, w3, w2, j: _neuron(F.silu, x, w3, w1, w2, j),
        "the gate alone, without up. The two are multiplied.":
            lambda x, w1, w3, w2, j: torch.outer(F.silu(x @ w1[j]), w2[:, j]),
        "up alone, without the gate. The two are multiplied.":
            lambda x, w1, w3, w2, j: torch.outer(x @ w3[j], w2[:, j]),
        "gate and up are added. They are multiplied.":
            lambda x, w1, w3, w2, j: torch.outer(F.silu(x @ w1[j]) + x @ w3[j], w2[:, j]),
        "the gate is the sigmoid alone (that is the older GLU). SiLU(a) is a times sigmoid(a).":
            lambda *case: _neuron(torch.sigmoid, *case),
        "the gate is a ReLU. Llama's is SiLU: a times sigmoid(a).":
            lambda *case: _neuron(F.relu, *case),
        "the gate is a GELU. Llama's is SiLU: a times sigmoid(a).":
            lambda *case: _neuron(F.gelu, *case),
        "there is no SiLU: gate and up are two plain products.":
            lambda *case: _neuron(lambda a: a, *case),
        "the SiLU is taken of the product. It is taken of the gate, before it is multiplied.":
            lambda x, w1, w3, w2, j: torch.outer(F.silu((x @ w1[j]) * (x @ w3[j])), w2[:, j]),
        "this is the row j of w2, with F numbers. A neuron writes with its column, w2[:, j], which "
        "has D.": lambda x, w1, w3, w2, j: torch.outer(F.silu(x @ w1[j]) * (x @ w3[j]), w2[j]),
        "this is how strongly the neuron fires, one number for each token. What it adds is that "
        "number times its column of w2.": lambda x, w1, w3, w2, j: F.silu(x @ w1[j]) * (x @ w3[j]),
        "this is what all neurons add together. Take the one, j.": lambda x, w1, w3, w2, j:
            (F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T,
    }  # fmt: skip
    examine(answer, right, cases, mistakes)


# --- 6.3: its place in the layer ------------------------------------------------------------------

EPS = 1e-5


class _Layer(dict):
    """The weights of one layer that stand behind attention, by their names inside a layer."""

    def __repr__(self):
        return "weights"


def _layer(seed, D, width):
    w1, w3, w2, one, two = _drawn(seed, (width, D), (width, D), (D, width), (D,), (D,))
    names = ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2", "attention_norm", "ffn_norm")
    tensors = w1, w3, w2, 1 + 0.3 * one, 1 + 0.3 * two
    return _Layer((f"{name}.weight", w) for name, w in zip(names, tensors, strict=True))


def second_half(answer):
    """The layer after attention: (stream [T, D], change [T, D], weights, eps) -> [T, D].

    stream: as it was before attention; change: attention's result.
    """

    cases = [
        (*_drawn(seed, (T, D), (T, D)), _layer(seed, D, width), EPS)
        for seed, T, D, width in ((4, 3, 6, 10), (5, 5, 4, 7), (6, 2, 8, 9))
    ]

    def norm(x, weights, eps, name="ffn_norm.weight"):
        return rms_norm(x, weights[name], eps)

    def ffn(x, weights, eps):
        return feed_forward(norm(x, weights, eps), weights)

    mistakes = {
        "the result is added to the normalised stream. The residual arrow starts from the stream "
        "as it was before the norm.":
            lambda s, c, w, eps: norm(s + c, w, eps) + ffn(s + c, w, eps),
        "the feed-forward runs on attention's change alone. It runs on the whole stream, with the "
        "change added, normalised.": lambda s, c, w, eps: s + c + ffn(c, w, eps),
        "attention's change is lost: the arrow starts from the stream before attention.":
            lambda s, c, w, eps: s + ffn(s + c, w, eps),
        "the feed-forward does not see attention's change. Add it to the stream first.":
            lambda s, c, w, eps: s + c + ffn(s, w, eps),
        "nothing is normalised. The feed-forward runs on rms_norm of the stream.":
            lambda s, c, w, eps: s + c + feed_forward(s + c, w),
        "the stream is gone: this is the feed-forward's result alone. It is added to the stream.":
            lambda s, c, w, eps: ffn(s + c, w, eps),
        "this is the norm of the first half. The second has its own, ffn_norm.weight.":
            lambda s, c, w, eps:
                s + c + feed_forward(norm(s + c, w, eps, "attention_norm.weight"), w),
        "the norm comes after the feed-forward. In Llama it comes before.":
            lambda s, c, w, eps: s + c + norm(feed_forward(s + c, w), w, eps),
        "the norm is taken of the sum, at the end, as in the first Transformer. In Llama it comes "
        "before the feed-forward, and the sum stays as it is.":
            lambda s, c, w, eps: norm(s + c + feed_forward(s + c, w), w, eps),
    }  # fmt: skip
    examine(answer, lambda s, c, w, eps: s + c + ffn(s + c, w, eps), cases, mistakes)


# --- 6.4: an exact product ------------------------------------------------------------------------


def multiplier(answer):
    """w1 [F, 2], w3 [F, 2], w2 [2, F] whose feed_forward makes (u·v, 0) of each row (u, v)."""

    def computed(x):
        found = answer()
        if found is None:
            return None
        if not isinstance(found, tuple | list) or len(found) != 3:
            raise ValueError("expected three tensors: return w1, w3, w2")
        names = (f"feed_forward.{name}.weight" for name in ("w1", "w3", "w2"))
        tensors = (torch.as_tensor(w, dtype=x.dtype, device=x.device) for w in found)
        return feed_forward(x, dict(zip(names, tensors, strict=True)))

    def first(values):
        return torch.stack([values, torch.zeros_like(values)], dim=-1)

    def product(function):
        return lambda x: first(function(x[..., 0], x[..., 1]))

    mistakes = {
        "the result stands in the second column. It belongs in the first row of w2.":
            lambda x: product(lambda u, v: u * v)(x).flip(-1),
        "the result stands in both columns. Leave the second row of w2 at zero.":
            lambda x: (x[..., 0] * x[..., 1])[..., None].expand(x.shape),
        "this is minus u·v: turn the signs in w2.": product(lambda u, v: -u * v),
        "this is u·u: w1 and w3 read the same input. Let one read u and the other v.":
            product(lambda u, v: u * u),
        "this is v·v: w1 and w3 read the same input. Let one read u and the other v.":
            product(lambda u, v: v * v),
    }  # fmt: skip
    for gate, up, pick in (("u", "v", lambda u, v: (u, v)), ("v", "u", lambda u, v: (v, u))):

        def of(function, pick=pick):
            return product(lambda u, v: function(*pick(u, v)))

        mistakes |= {
            f"w2 is transposed: it is [2, F], a row for each output and a column for each neuron "
            f"(this is SiLU({gate})·{up}, twice).":
                lambda x, of=of: of(lambda a, b: F.silu(a) * b)(x)[..., :1].expand(x.shape),
            f"w2 is transposed: it is [2, F], a row for each output and a column for each neuron "
            f"(this is SiLU(-{gate})·(-{up}), twice).":
                lambda x, of=of: of(lambda a, b: -F.silu(-a) * b)(x)[..., :1].expand(x.shape),
            f"this is SiLU({gate})·{up}, the product of one neuron: nearly nothing where {gate} is "
            "negative. A second neuron has to add what is missing there.":
                of(lambda a, b: F.silu(a) * b),
            f"this is 2·SiLU({gate})·{up}: both neurons do the same. Let the gate of one open "
            "where that of the other closes.": of(lambda a, b: 2 * F.silu(a) * b),
            f"this is u·v times tanh({gate}/2). The gate of the second neuron is turned round, and "
            "so must be exactly one of the other two: its up, or its column of w2.":
                of(lambda a, b: a * b * torch.tanh(a / 2)),
        }  # fmt: skip
    cases = [_drawn(seed, (rows, 2)) for seed, rows in ((7, 5), (8, 9), (9, 4))]
    examine(computed, product(lambda u, v: u * v), cases, mistakes)


# --- 6.5: attention and feed-forward cost the same ------------------------------------------------

MODELS = [(PRESETS[name],) for name in ("Llama-3-8B", "Llama-3-70B", "Llama-3.2-1B")]
MODELS += [(Config(60, 4, 6, 2, 101, 7, 1e-5, 500000.0),)]


def break_even(answer):
    """The T at which one layer's attention costs as many FLOPs as its feed-forward: Config -> T."""

    def of(formula):
        return lambda c: formula(c.dim, c.ffn_dim, c.n_kv_heads * c.head_dim, c.n_heads)

    mistakes = {
        "attention's four matrices are left out: wq, wk, wv and wo cost FLOPs as well.":
            of(lambda D, width, KH, N: 6 * D * width / (4 * D)),
        "twice too large. For each key a query costs 2·D FLOPs for its score and 2·D more when the "
        "values are mixed; and the whole square is computed, masked places too.":
            of(lambda D, width, KH, N: (6 * D * width - 4 * D * D - 4 * D * KH) / (2 * D)),
        "wk and wv are counted as wide as wq. They have K·H rows.":
            of(lambda D, width, KH, N: (6 * D * width - 8 * D * D) / (4 * D)),
        "wo is left out: attention has four matrices.":
            of(lambda D, width, KH, N: (6 * D * width - 2 * D * D - 4 * D * KH) / (4 * D)),
        "the feed-forward has three matrices, w1, w3 and w2; here two are counted.":
            of(lambda D, width, KH, N: (4 * D * width - 4 * D * D - 4 * D * KH) / (4 * D)),
        "half of it: an entry of a matrix is counted as 1 FLOP, a pair of numbers in the scores as "
        "2. A multiplication and an addition are 2, everywhere.":
            of(lambda D, width, KH, N: (3 * D * width - 2 * D * D - 2 * D * KH) / (4 * D)),
        "the scores are counted for K heads. Keys are shared, but each of the N query heads is "
        "compared with them: grouping spares memory, not these FLOPs.":
            of(lambda D, width, KH, N: (6 * D * width - 4 * D * D - 4 * D * KH) / (4 * KH)),
        "the scores are counted with D numbers for each of the N heads. A head has H, and N·H "
        "is D.":
            of(lambda D, width, KH, N: (6 * D * width - 4 * D * D - 4 * D * KH) / (4 * D * N)),
    }  # fmt: skip
    right = of(lambda D, width, KH, N: (6 * D * width - 4 * D * D - 4 * D * KH) / (4 * D))
    examine(answer, right, MODELS, mistakes)
