"""The exercises of notebook 06: the feed-forward's width, its neurons, its place, its cost."""

import ast
import math
from dataclasses import replace

import torch
import torch.nn.functional as functional

from llama3_scratch.config import PRESETS, Config
from llama3_scratch.errors import require
from llama3_scratch.exercises.frame import (
    Exercise,
    agree,
    answer_property,
    desk,
    drawn,
    loops,
    of_each,
)
from llama3_scratch.model import feed_forward, rms_norm

silu = functional.silu


# --- F from params.json ---------------------------------------------------------------------------


def _width(dim, multiple_of, multiplier, thirds=2, cut=int, fit=math.ceil):
    width = cut(thirds * (4 * dim) / 3)
    width = width if multiplier is None else cut(multiplier * width)
    return fit(width / multiple_of) * multiple_of


def _multiplied_last(dim, multiple_of, multiplier):
    width = _width(dim, multiple_of, None)
    return width if multiplier is None else int(multiplier * width)


def _multiplier_has_effect(answer, dim, multiple_of, multiplier):
    return answer(dim, multiple_of, 4.0) > answer(dim, multiple_of, 1.0)


def _none_is_one(answer, dim, multiple_of, multiplier):
    return answer(dim, multiple_of, None) == answer(dim, multiple_of, 1.0)


ffn_dim = Exercise(
    "F from what params.json says: (dim, multiple_of, ffn_dim_multiplier or None) -> whole number.",
    right=_width,
    cases=lambda: [  # the second line holds released models
        (10, 8, 1.3), (12, 8, None), (30, 100, 0.5),
        (4096, 1024, 1.3), (8192, 4096, 1.3), (16384, 4096, 1.2), (2048, 256, 1.5),
        (50, 1, 1.3), (52, 1, 1.3), (90, 13, None), (768, 256, 1.0),
    ],
    mistakes=[
        (lambda *case: _width(*case, thirds=3),
         "too wide by half: it starts from 4D. With three matrices in place of two, only two "
         "thirds of that are kept."),
        (lambda *case: _width(*case, fit=math.floor),
         "it is rounded down to a multiple of multiple_of. Meta rounds up."),
        (lambda *case: _width(*case, fit=round),
         "it is rounded to the nearest multiple of multiple_of. Meta always rounds up."),
        (lambda *case: _width(*case, fit=lambda n: math.floor(n) + 1),
         "a width that is a multiple already goes up to the next one. Round up only the others."),
        (_multiplied_last,
         "the multiplier comes last, after the rounding up. It comes before: the result has to be "
         "a multiple of multiple_of."),
        (lambda dim, multiple_of, _: _width(dim, multiple_of, None),
         "the multiplier is not used."),
        (lambda dim, multiple_of, multiplier: _width(dim, multiple_of, multiplier or 1.3),
         "where there is no multiplier, 1.3 is used. Leave that step out."),
        (lambda dim, _, multiplier: _width(dim, 1, multiplier),
         "it is not rounded up to a multiple of multiple_of."),
        (lambda *case: _width(*case, cut=round),
         "the widths are rounded. int() cuts the fraction off, after the 2/3 and again after the "
         "multiplier."),
        (lambda dim, m, multiplier: _width(dim, m, 2 / 3 * (multiplier or 1), thirds=3),
         "int() is taken once, after the multiplier. Meta takes it after the 2/3, too."),
        (lambda *case: _width(*case, cut=lambda width: width),
         "the fractions are carried along. Meta cuts them off, with int(), after the 2/3 and after "
         "the multiplier."),
    ],
    properties=[
        (of_each(lambda found, dim, multiple_of, multiplier: found % multiple_of == 0),
         "the result is not a multiple of multiple_of. The rounding up comes last."),
        (answer_property(_multiplier_has_effect),
         "a larger multiplier does not make F larger. Is it used?"),
        (answer_property(_none_is_one),
         "without a multiplier (None) the result should be the same as with 1."),
        (of_each(lambda found, *case: found >= _width(case[0], 1, case[2])),
         "too narrow: F is two thirds of 4D, times the multiplier, then rounded up."),
        (of_each(lambda found, *case: found < _width(case[0], 1, case[2]) + case[1]),
         "too wide: F is two thirds of 4D, times the multiplier, then rounded up to the next "
         "multiple of multiple_of and no further."),
    ],
)  # fmt: skip


# --- One neuron -----------------------------------------------------------------------------------


def _neuron_cases():
    sizes = ((1, 2, 3, 4, 1), (2, 4, 6, 11, 5), (3, 2, 7, 9, 0), (4, 1, 8, 5, 4), (5, 3, 6, 6, 5))
    return {
        f"x {[T, D]}, w1 and w3 {[F, D]}, w2 {[D, F]}, neuron {j}": (
            *drawn(seed, (T, D), (F, D), (F, D), (D, F)), j)
        for seed, T, D, F, j in sizes
    }  # fmt: skip


def _neuron(act, x, w1, w3, w2, j):
    return torch.outer(act(x @ w1[j]) * (x @ w3[j]), w2[:, j])


def _with_silu(*case):
    return _neuron(silu, *case)


def _writes_its_column(found, x, w1, w3, w2, j):
    """Whether every token's row is a multiple of column j."""
    column = w2[:, j] / w2[:, j].norm()
    return torch.allclose(torch.outer(found @ column, column), found, atol=1e-4)


def _nothing_at_gate_zero(answer, x, w1, w3, w2, j):
    return not answer(x, 0 * w1, w3, w2, j).any()


def _is_linear_in_up(answer, x, w1, w3, w2, j):
    return agree(answer(x, w1, 2 * w3, w2, j), 2 * answer(x, w1, w3, w2, j))


def _one_gives_silu(answer, x, w1, w3, w2, j):
    """A gate of 1 and an up of 1, with a column of ones."""
    one = torch.ones_like(x[:, :1])
    weights = [torch.ones_like(w[:, :1]) for w in (w1, w3)]
    found = answer(one, *weights, torch.ones_like(w2[:1]), j)
    return agree(found, silu(one))


def _whole_products(tree):
    """Whether x is multiplied with a whole weight and not with the row of one neuron."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda)]
    names = {argument.arg for argument in functions[0].args.args[1:4]} if functions else set()

    def is_whole(node):
        node = node.func if isinstance(node, ast.Call) else node  # w1.t(), w1.transpose(0, 1)
        if isinstance(node, ast.Attribute) and node.attr in ("T", "mT", "t", "transpose"):
            node = node.value
        return isinstance(node, ast.Name) and node.id in names

    factors = []
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            factors += [node.left, node.right]
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            factors += node.args if name in ("linear", "matmul", "mm", "einsum") else []
    return any(map(is_whole, factors))


one_neuron = Exercise(
    "What neuron j adds: (x [T, D], w1 [F, D], w3 [F, D], w2 [D, F], j) -> [T, D].",
    right=_with_silu,
    cases=_neuron_cases,
    mistakes=[
        (lambda x, w1, w3, w2, j: _with_silu(x, w3, w1, w2, j),
         "the SiLU is on w3's side. It belongs to the gate, w1."),
        (lambda x, w1, w3, w2, j: torch.outer(silu(x @ w1[j]), w2[:, j]),
         "this is the gate alone, without up. The two are multiplied."),
        (lambda x, w1, w3, w2, j: torch.outer(x @ w3[j], w2[:, j]),
         "this is up alone, without the gate. The two are multiplied."),
        (lambda x, w1, w3, w2, j: torch.outer(silu(x @ w1[j]) + x @ w3[j], w2[:, j]),
         "gate and up are added. They are multiplied."),
        (lambda *case: _neuron(torch.sigmoid, *case),
         "the gate is the sigmoid alone (that is the older GLU). SiLU(a) is a times sigmoid(a)."),
        (lambda *case: _neuron(functional.relu, *case),
         "the gate is a ReLU. Llama's is SiLU: a times sigmoid(a)."),
        (lambda *case: _neuron(functional.gelu, *case),
         "the gate is a GELU. Llama's is SiLU: a times sigmoid(a)."),
        (lambda *case: _neuron(lambda a: a, *case),
         "there is no SiLU: gate and up are two plain products."),
        (lambda x, w1, w3, w2, j: torch.outer(silu((x @ w1[j]) * (x @ w3[j])), w2[:, j]),
         "the SiLU is taken of the product. It is taken of the gate, before the multiplication."),
        (lambda x, w1, w3, w2, j: torch.outer(silu(x @ w1[j]) * (x @ w3[j]), w2[j]),
         "this is row j of w2, with F numbers. A neuron writes with its column, w2[:, j], which "
         "has D."),
        (lambda x, w1, w3, w2, j: silu(x @ w1[j]) * (x @ w3[j]),
         "this is how strongly the neuron fires, one number for each token. What it adds is that "
         "number times its column of w2."),
        (lambda x, w1, w3, w2, j: (silu(x @ w1.T) * (x @ w3.T)) @ w2.T,
         "this is what all neurons add together. Take only neuron j."),
        (lambda x, w1, w3, w2, j: _with_silu(x, w1, w3, w2, j - 1),
         "this is neuron j - 1. Neurons count from 0: use j as it is."),
        (lambda *case: _with_silu(*case).T,
         "the result is transposed: [D, T]. Expected a row for each token, [T, D]."),
        (lambda *case: _with_silu(*case).sum(0, keepdim=True).expand_as(case[0]),
         "the tokens are added up. Each token has its own row of the result."),
    ],
    properties=[
        (of_each(_writes_its_column),
         "the rows are not multiples of w2[:, j], the column with which neuron j writes."),
        (answer_property(_nothing_at_gate_zero),
         "where the gate's product x @ w1[j] is 0, the result is not 0. SiLU(0) is 0, and it is "
         "multiplied with up."),
        (answer_property(_is_linear_in_up),
         "twice w3 does not give twice the result. Up is the plain product x @ w3[j]: the SiLU is "
         "on the gate alone."),
        (answer_property(_one_gives_silu),
         "a gate of 1 times an up of 1 should be SiLU(1) = 0.731. SiLU(a) is a times sigmoid(a)."),
    ],
    but=[
        (loops,
         "it has a loop. `x @ w1[j]` gives the gate of all tokens at once."),
        (_whole_products,
         "it computes the other neurons as well: x is multiplied with a whole weight. Take row j "
         "of w1 and of w3 first."),
    ],
)  # fmt: skip


# --- Its place in the layer -----------------------------------------------------------------------


def _layer(seed, D, F):
    """The weights of one layer that come after attention, and the first norm's."""
    w1, w3, w2, one, two = drawn(seed, (F, D), (F, D), (D, F), (D,), (D,))
    names = ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2", "attention_norm", "ffn_norm")
    tensors = w1, w3, w2, 1 + 0.3 * one, 1 + 0.3 * two
    return {f"{name}.weight": w for name, w in zip(names, tensors, strict=True)}


def _second_half_cases():
    sizes = ((3, 2, 3, 4, 0.1), (4, 3, 6, 10, 0.5), (5, 5, 4, 7, 1e-5), (6, 1, 8, 8, 0.02))
    return {
        f"stream and change {[T, D]}, weights with F = {F}, eps {eps}": (
            *drawn(seed, (T, D), (T, D)), _layer(seed + 10, D, F), eps)
        for seed, T, D, F, eps in sizes
    }  # fmt: skip


def _norm(x, weights, eps, name="ffn_norm.weight"):
    return rms_norm(x, weights[name], eps)


def _ffn(x, weights, eps):
    return feed_forward(_norm(x, weights, eps), weights)


def _with_change(stream, change, weights, eps):
    return stream + change + _ffn(stream + change, weights, eps)


def _with_factor(factor, *names):
    """The arguments of `second_half` with these weights multiplied by a factor."""

    def case(stream, change, weights, eps):
        scaled = {f"{name}.weight": factor * weights[f"{name}.weight"] for name in names}
        return stream, change, weights | scaled, eps

    return case


def _stream_stays(answer, stream, change, weights, eps):
    """A feed-forward that writes zeros must leave the stream with the change as it is."""
    silent = _with_factor(0, "feed_forward.w2")(stream, change, weights, eps)
    return agree(answer(*silent), stream + change)


def _only_the_sum_counts(answer, stream, change, weights, eps):
    moved = answer(stream + 2 * change, -change, weights, eps)
    return agree(moved, answer(stream, change, weights, eps))


def _has_no_other_norm(answer, *case):
    return agree(answer(*_with_factor(2, "attention_norm")(*case)), answer(*case))


def _has_effect_of_norm(answer, *case):
    """Twice the norm's weight has the effect of twice w1 and w3."""
    by_weights = _with_factor(2, "feed_forward.w1", "feed_forward.w3")(*case)
    return agree(answer(*_with_factor(2, "ffn_norm")(*case)), answer(*by_weights))


def _has_effect_of_eps(answer, stream, change, weights, eps):
    return not agree(answer(stream, change, weights, eps + 1), answer(stream, change, weights, eps))


second_half = Exercise(
    "The layer after attention: (stream [T, D], change [T, D], weights, eps) -> [T, D]. stream: as "
    "it was before attention; change: attention's result.",
    right=_with_change,
    cases=_second_half_cases,
    mistakes=[
        (lambda s, c, w, eps: _norm(s + c, w, eps) + _ffn(s + c, w, eps),
         "the result is added to the normalised stream. The residual arrow starts from the stream "
         "as it was before the norm."),
        (lambda s, c, w, eps: s + c + _ffn(c, w, eps),
         "the feed-forward runs on attention's change alone. It runs on the whole stream, with the "
         "change added, normalised."),
        (lambda s, c, w, eps: s + _ffn(s + c, w, eps),
         "attention's change is lost: the arrow starts from the stream before attention."),
        (lambda s, c, w, eps: s + c + _ffn(s, w, eps),
         "the feed-forward does not see attention's change. Add it to the stream first."),
        (lambda s, c, w, eps: s + c + feed_forward(s + c, w),
         "nothing is normalised. The feed-forward runs on rms_norm of the stream."),
        (lambda s, c, w, eps: _ffn(s + c, w, eps),
         "the stream is gone: this is the feed-forward's result alone. It is added to the stream."),
        (lambda s, c, w, eps: s + c + feed_forward(
            _norm(s + c, w, eps, "attention_norm.weight"), w),
         "this is the norm of the first half. The second has its own, ffn_norm.weight."),
        (lambda s, c, w, eps: s + c + _norm(feed_forward(s + c, w), w, eps),
         "the norm comes after the feed-forward. In Llama it comes before."),
        (lambda s, c, w, eps: _norm(s + c + feed_forward(s + c, w), w, eps),
         "the norm is taken of the sum, at the end, as in the first Transformer. In Llama it comes "
         "before the feed-forward, and the sum stays as it is."),
        (lambda s, c, w, eps: s + c - _ffn(s + c, w, eps),
         "the feed-forward's result is subtracted. It is added to the stream."),
        (lambda s, c, w, eps: _with_change(s, c, w, 1e-5),
         "a small number, 1e-5 for example, is typed in. Use the argument eps."),
        (lambda s, c, w, eps: s + c + feed_forward(rms_norm(s + c, 1, eps), w),
         "the norm's weight is missing: rms_norm gets ffn_norm.weight."),
        (lambda s, c, w, eps: s + _with_change(s, c, w, eps),
         "the stream is added twice: once with the change, and once more at the end."),
        (lambda s, c, w, eps: c + _with_change(s, c, w, eps),
         "attention's change is added twice: once to the stream, and once more at the end."),
    ],
    properties=[
        (answer_property(_stream_stays),
         "if the feed-forward writes only zeros, the result is not stream + change. That sum goes "
         "around the norm and the feed-forward unchanged, once."),
        (answer_property(_has_no_other_norm),
         "attention_norm.weight has an effect on the result. It belongs to the first half; the "
         "second has ffn_norm.weight."),
        (answer_property(_only_the_sum_counts),
         "only stream + change may count: with a part moved from one to the other, the result is "
         "another one. Does the norm or the feed-forward see only one of the two?"),
        (answer_property(_has_effect_of_norm),
         "ffn_norm.weight does not act on what w1 and w3 read. The norm comes right before the "
         "feed-forward."),
        (answer_property(_has_effect_of_eps),
         "eps has no effect on the result. Is a number typed in, or is there no norm?"),
    ],
)  # fmt: skip


# --- An exact product -----------------------------------------------------------------------------

LARGE = 1e6  # numbers of this size: an answer that is only nearly exact fails


def _multiplier_cases():
    signs = torch.tensor([[2.0, 3.0], [-2.0, 3.0], [2.0, -3.0], [-2.0, -3.0]])
    one, two, large = drawn(7, (5, 2), (9, 2), (4, 2))
    return {
        "(u, v) = (2, 3), (-2, 3), (2, -3), (-2, -3)": (signs,),
        "5 rows (u, v)": (one,),
        "9 rows (u, v)": (3 * two,),
        "4 rows with large u and v": (LARGE * large,),
    }


def _computed(answer, x):
    """What feed_forward makes of x with the weights of an answer."""
    found = answer()
    if found is None:
        return None
    is_three = isinstance(found, tuple | list) and len(found) == 3
    require(is_three, "expected three tensors: return w1, w3, w2")
    names = (f"feed_forward.{name}.weight" for name in ("w1", "w3", "w2"))
    tensors = (torch.as_tensor(w, dtype=x.dtype, device=x.device) for w in found)
    return feed_forward(x, dict(zip(names, tensors, strict=True)))


def _weights(w1, w3, w2):
    return lambda: tuple(torch.tensor(w, dtype=torch.float32) for w in (w1, w3, w2))


U, V, MINUS_U, MINUS_V, NONE = (1, 0), (0, 1), (-1, 0), (0, -1), (0, 0)
BOTH = ((1, 1), NONE)  # w2: both neurons write to the first output
_NAMED = {"u": (U, MINUS_U), "v": (V, MINUS_V)}


def _one_sided(gate, up):
    """The mistakes of an answer whose gates read this input and whose ups read the other."""
    g, p = _NAMED[gate], _NAMED[up]
    transposed = "w2 is transposed: it has a row for each output and a column for each neuron"
    return [
        (_weights(g, p, ((1, 0), (1, 0))),
         f"{transposed} (this is SiLU({gate})·{up}, twice)."),
        (_weights(g[::-1], p[::-1], ((1, 0), (1, 0))),
         f"{transposed} (this is SiLU(-{gate})·(-{up}), twice)."),
        (_weights(g[:1], p[:1], ((1,), (0,))),
         f"this is SiLU({gate})·{up}, the product of one neuron: nearly nothing where {gate} is "
         "negative. A second neuron has to add what is missing there."),
        (_weights(g[:1] * 2, p[:1] * 2, BOTH),
         f"this is 2·SiLU({gate})·{up}: both neurons do the same. Let the gate of one open where "
         "that of the other closes."),
        (_weights(g, p[:1] * 2, BOTH),
         f"this is u·v times tanh({gate}/2). The gate of the second neuron has the opposite sign, "
         "and so must exactly one of the other two: its up, or its column of w2."),
    ]  # fmt: skip


def _is_the_same(change):
    """A property: whether changing u and v like this changes the result as it changes u·v."""

    def holds(answer, x):
        changed, factor = change(x)
        return agree(_computed(answer, changed), factor * _computed(answer, x))

    return answer_property(holds)


def _large_as_small(answer, given, cases):
    """Whether the largest numbers are as right as the others, if those are right."""
    right = [agree(found[:, 0], x.prod(-1)) for found, (x,) in zip(given, cases, strict=True)]
    return right[-1] or not all(right[:-1])


multiplier = Exercise(
    "() -> w1 [F, 2], w3 [F, 2], w2 [2, F] whose feed_forward makes (u·v, 0) of each row (u, v).",
    right=_weights(*_NAMED.values(), BOTH),
    cases=_multiplier_cases,
    run=_computed,
    mistakes=[
        (_weights(*_NAMED.values(), BOTH[::-1]),
         "the result is in the second column. It belongs in the first: use the first row of w2."),
        (_weights(*_NAMED.values(), ((1, 1), (1, 1))),
         "the result is in both columns. Leave the second row of w2 at zero."),
        (_weights(*_NAMED.values(), ((-1, -1), NONE)),
         "this is minus u·v: change the signs in w2."),
        (_weights(_NAMED["u"], _NAMED["u"], BOTH),
         "this is u·u: w1 and w3 read the same input. Let one read u and the other v."),
        (_weights(_NAMED["v"], _NAMED["v"], BOTH),
         "this is v·v: w1 and w3 read the same input. Let one read u and the other v."),
        (_weights((U, U), _NAMED["v"], BOTH),
         "the result is always 0: the second neuron takes away what the first adds. Their gates "
         "have to read opposite signs."),
        *_one_sided("u", "v"),
        *_one_sided("v", "u"),
        (_weights(*_NAMED.values(), ((0.5, 0.5), NONE)),
         "this is half of u·v. The two neurons complete each other; there is nothing to average."),
    ],
    properties=[
        (_large_as_small,
         "nearly right for small u and v, wrong for large ones: this is an approximation. There is "
         "an exact solution."),
        (of_each(lambda found, x: not found[:, 1].any()),
         "the second output is not 0. Leave the second row of w2 at zero."),
        (_is_the_same(lambda x: (-x, 1)),
         "with -u and -v in place of u and v the result is another one. The second neuron does for "
         "negative numbers what the first does for positive ones."),
        (_is_the_same(lambda x: (x.flip(-1), 1)),
         "with u and v exchanged the result is another one. One weight reads only u, the other "
         "only v."),
        (_is_the_same(lambda x: (x * torch.tensor([1.0, -1.0]), -1)),
         "with -v in place of v the result does not change its sign. One weight reads only u, the "
         "other only v."),
    ],
)  # fmt: skip


# --- Attention and feed-forward cost the same -----------------------------------------------------


def _break_even_cases():
    cases = {
        "a small model (D 60, F 161, N 6, K 2)": (Config(60, 4, 6, 2, 101, 7, 1e-5, 500000.0),),
        "a model without grouping (D 64, F 176, N 4, K 4)": (
            Config(64, 2, 4, 4, 99, 16, 1e-5, 10000.0),),
    }  # fmt: skip
    names = "Llama-3-8B", "Llama-3-70B", "Llama-3.2-1B"
    return cases | {name: (PRESETS[name],) for name in names}


def _flops(wq=1, wk=1, wv=1, wo=1, ups=3, scores=4):
    """T, with each matrix's part of the FLOPs and the numbers D of a pair changed."""

    def T(c):
        D, KH = c.dim, c.n_kv_heads * c.head_dim
        attention = 2 * (wq + wo) * D * D + 2 * (wk + wv) * D * KH
        return (2 * ups * D * c.ffn_dim - attention) / (scores * D)

    return T


_break_even = _flops()


def _counts_three_matrices(answer, c):
    """How the result depends on F alone."""
    wider = replace(c, ffn_dim_multiplier=2 * (c.ffn_dim_multiplier or 1))
    return agree(answer(wider) - answer(c), 1.5 * (wider.ffn_dim - c.ffn_dim))


def _counts_shared_heads(answer, c):
    """How the result depends on K alone."""
    one = replace(c, n_kv_heads=1)
    return agree(float(answer(one) - answer(c)), float((c.n_kv_heads - 1) * c.head_dim))


def _counts_no_others(answer, c):
    other = replace(c, n_layers=c.n_layers + 1, vocab_size=2 * c.vocab_size, trained_length=77)
    return answer(other) == answer(c)


break_even = Exercise(
    "The T at which one layer's attention costs as many FLOPs as its feed-forward: Config -> T.",
    right=_break_even,
    cases=_break_even_cases,
    mistakes=[
        (lambda c: 1.5 * c.ffn_dim,
         "attention's four matrices are left out: wq, wk, wv and wo cost FLOPs as well."),
        (_flops(scores=2),
         "twice too large. For each key a query costs 2·D FLOPs for its score and 2·D more when "
         "the values are mixed; and the whole square is computed, masked places too."),
        (lambda c: 1.5 * c.ffn_dim - 2 * c.dim,
         "wk and wv are counted as wide as wq. They have K·H rows."),
        (_flops(wo=0),
         "wo is left out: attention has four matrices."),
        (_flops(wv=0),
         "only one of wk and wv is counted. Both have K·H rows."),
        (_flops(ups=2),
         "the feed-forward has three matrices, w1, w3 and w2; here two are counted."),
        (lambda c: _break_even(c) / 2,
         "half of it: an entry of a matrix is counted as 1 FLOP, a pair of numbers in the scores "
         "as 2. A multiplication and an addition are always 2."),
        (lambda c: _break_even(c) * c.n_heads / c.n_kv_heads,
         "the scores are counted for K heads. Keys are shared, but each of the N query heads is "
         "compared with them: grouping saves memory, not these FLOPs."),
        (lambda c: _break_even(c) / c.n_heads,
         "the scores are counted with D numbers for each of the N heads. A head has H, and N·H "
         "is D."),
        (lambda c: _break_even(c) * c.n_heads,
         "the scores are counted for one head. Each of the N heads has its own, and N·H is D."),
        (lambda c: 1.5 * c.ffn_dim - c.dim - c.head_dim,
         "wk and wv are counted for one head. There are K of them, with H rows each."),
        (lambda c: _break_even(c) // 1,
         "the fraction is cut off. T need not be a whole number here."),
        (lambda c: 4 * c.dim - c.dim - c.n_kv_heads * c.head_dim,
         "F is taken as two thirds of 4D. `config.ffn_dim` is the model's own width."),
    ],
    properties=[
        (answer_property(_counts_no_others),
         "the number of layers, the vocabulary or the trained length has an effect. The question "
         "is about one layer alone, and T is the unknown."),
        (answer_property(_counts_three_matrices),
         "the feed-forward's part is not right: three matrices with D·F entries, 2 FLOPs each for "
         "every token. Divided by 4·D that makes 1.5·F."),
        (answer_property(_counts_shared_heads),
         "the part of wk and wv is not right: two matrices with D·K·H entries, 2 FLOPs each for "
         "every token. Divided by 4·D that makes K·H."),
        (of_each(lambda found, c: agree(found, float(_break_even(c)))),
         "the part of wq and wo is not right: two matrices with D·D entries, 2 FLOPs each for "
         "every token. Divided by 4·D that makes D, and attention's parts are subtracted."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
