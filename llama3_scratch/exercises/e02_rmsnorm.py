"""The exercises of notebook 02: parameters, a row of bytes, LayerNorm, folding, Gemma's norm."""

import struct

import torch
import torch.nn.functional as functional

from llama3_scratch.config import PRESETS
from llama3_scratch.exercises.frame import (
    Exercise,
    agree,
    answer_property,
    desk,
    drawn,
    of_each,
    uses,
)
from llama3_scratch.model import linear, rms_norm

MISFIT = "two shapes do not fit"


def _fitting(cases):
    """A `run` that is MISFIT in every case if shapes do not fit in the first one."""

    def run(answer, *case):
        first = next(iter(cases().values())) if isinstance(cases(), dict) else cases()[0]
        try:
            answer(*first)
        except RuntimeError as error:
            if "size of tensor" in str(error) or "cannot be multiplied" in str(error):
                return MISFIT
        except Exception:  # the call below raises it again
            pass
        return answer(*case)

    return run


NO_KEEPDIM = (
    "two shapes do not fit. A mean has one dimension less than x. With keepdim=True the last "
    "dimension stays, with length 1, and each row gets its own number."
)


# --- Counting parameters --------------------------------------------------------------------------


def _sizes_cases():
    small = (7, 1, 4, 2, 2, 2, 3), (11, 2, 12, 3, 1, 4, 7), (13, 3, 24, 6, 2, 4, 9)
    cases = {", ".join(f"{x} {n}" for x, n in zip("VLDNKHF", s, strict=True)): s for s in small}
    for name in ("Llama-3-8B", "Llama-3-70B"):
        cases[f"the sizes of {name}"] = tuple(PRESETS[name].sizes[letter] for letter in "VLDNKHF")
    return cases


def _count(V, L, D, N, K, H, F, tables=2, kv=None, wo=1, ffn=3, norms=2, last=1):
    kv = 2 * K * H * D if kv is None else kv
    return tables * V * D + L * ((1 + wo) * N * H * D + kv + ffn * F * D + norms * D) + last * D


def _counted_with(**parts):
    return lambda *sizes: _count(*sizes, **parts)


def _outside_is_right(answer, V, L, D, *rest):
    return answer(V, 0, D, *rest) == 2 * V * D + D


def _feed_forward_is_right(answer, V, L, D, N, K, H, F):
    return answer(V, L, D, N, K, H, F + 1) - answer(V, L, D, N, K, H, F) == L * 3 * D


def _shared_heads_are_right(answer, V, L, D, N, K, H, F):
    more = answer(V, L, D, N, N, H, F) - answer(V, L, D, N, 1, H, F)
    return more == L * 2 * (N - 1) * H * D


def _rest_of_a_layer_is_right(answer, V, L, D, N, K, H, F):
    more = answer(V, L + 1, D, N, K, H, 0) - answer(V, L, D, N, K, H, 0)
    return more == 2 * N * H * D + 2 * K * H * D + 2 * D


n_parameters = Exercise(
    "V, L, D, N, K, H, F -> how many numbers a Llama 3 of these sizes has, a whole number.",
    right=_count,
    cases=_sizes_cases,
    mistakes=[
        (_counted_with(tables=1),
         "the output matrix is missing. In Llama 3 8B it is a table of its own, [V, D] once more."),
        (_counted_with(tables=0),
         "the two tables are missing: the embedding and the output matrix, [V, D] each."),
        (lambda V, L, D, N, K, H, F: _count(V, L, D, N, K, H, F, kv=2 * N * H * D),
         "wk and wv are counted as large as wq. They have K heads, not N: [K*H, D]."),
        (lambda V, L, D, N, K, H, F: _count(V, L, D, N, K, H, F, kv=2 * H * D),
         "wk and wv are counted with one head. They have K: [K*H, D]."),
        (lambda V, L, D, N, K, H, F: _count(V, L, D, N, K, H, F, kv=K * H * D),
         "one of wk and wv is missing."),
        (_counted_with(wo=0),
         "wo is missing: attention has four matrices."),
        (_counted_with(ffn=2),
         "two matrices of the feed-forward part are counted. It has three: w1, w3 and w2."),
        (_counted_with(norms=1),
         "one norm is counted in each layer. There are two, one before each half."),
        (_counted_with(norms=0),
         "the norms in the layers are missing: two of D numbers each in every layer."),
        (_counted_with(last=0),
         "the last norm is missing: `norm.weight`, after all layers."),
        (_counted_with(norms=0, last=0),
         "all norms are missing: two in every layer, and one after the last layer."),
        (_counted_with(tables=1, last=0),
         "what comes after the layers is missing: the last norm, [D], and the output matrix, "
         "[V, D]."),
        (_counted_with(norms=4, last=2),
         "each norm is counted with 2*D numbers. An RMSNorm has D, one for each column, and no "
         "bias."),
        (lambda V, L, *sizes: _count(V, 1, *sizes),
         "only one layer is counted. There are L."),
        (lambda V, L, *sizes: _count(V, L, *sizes, tables=2 * L),
         "the tables are counted once for each layer. They are outside the layers."),
        (lambda V, L, *sizes: _count(V, L, *sizes, last=L),
         "the last norm is counted once for each layer. There is one, after all layers."),
        (lambda *sizes: 2 * _count(*sizes),
         "these are bytes in bfloat16. Count the numbers."),
    ],
    properties=[
        (answer_property(_outside_is_right),
         "what is outside the layers is not counted right. With L = 0 your result should be the "
         "two tables, [V, D] each, and the last norm, [D]."),
        (answer_property(_feed_forward_is_right),
         "the feed-forward part is not counted right: it has three matrices of F times D in every "
         "layer."),
        (answer_property(_shared_heads_are_right),
         "wk and wv are not counted right: both are [K*H, D], in every layer."),
        (answer_property(_rest_of_a_layer_is_right),
         "attention or the norms of a layer are not counted right: in every layer there are wq, "
         "wk, wv and wo, and two norms of D numbers each."),
    ],
)  # fmt: skip


# --- One row from raw bytes -----------------------------------------------------------------------


def _table_cases():
    cases = {}
    for seed, V, D, id in ((1, 3, 2, 1), (2, 7, 5, 3), (3, 6, 8, 1), (4, 9, 6, 4)):
        (table,) = drawn(seed, (V, D))
        table[id, -1] = 0.0  # its exponent is 0: a number put together by hand needs care here
        raw = bytes(table.bfloat16().cpu().view(torch.uint8).flatten().tolist())
        cases[f"row {id} of a table [{V}, {D}]"] = (raw, D, id)
    return cases


def _numbers(raw, start, D, form="<f", before=b"\0\0", after=b"", step=1):
    pairs = (raw[i : i + 2][::step] for i in range(start, start + 2 * D, 2))
    return [struct.unpack(form, before + pair + after)[0] for pair in pairs]


def _row(raw, D, id):
    return _numbers(raw, 2 * id * D, D)


def _in_the_table(found, raw, *_):
    return {float(x) for x in found} <= set(_numbers(raw, 0, len(raw) // 2))


read_row = Exercise(
    "The bytes of a bfloat16 table [V, D], D, id -> row `id`, a list of D floats.",
    right=_row,
    cases=_table_cases,
    mistakes=[
        (lambda raw, D, id: _numbers(raw, id * D, D),
         "you start at number id*D, but `raw` is counted in bytes. A number has two of them."),
        (lambda raw, D, id: _numbers(raw, 2 * id * D, D, form="<e", before=b""),
         "the two bytes are read as float16. bfloat16 has the exponent of float32: it is the upper "
         "half of a float32."),
        (lambda raw, D, id: _numbers(raw, 2 * id * D, D, before=b"", after=b"\0\0"),
         "the two zero bytes come after the pair. The file is little-endian, the lowest byte "
         "first, so the bytes that float32 has in addition come before the pair."),
        (lambda raw, D, id: _numbers(raw, 2 * id * D, D, step=-1),
         "the two bytes of each number are swapped: the file has the lower one first."),
        (lambda raw, D, id: _numbers(raw, 2 * id * D, D, form="<H", before=b""),
         "these are the bit patterns as whole numbers. Read them as floats."),
        (lambda raw, D, id: [x or 2.0**-127 for x in _row(raw, D, id)],
         "right except for 0: where all bits of a number are 0, it is 0. `struct` knows that."),
        (lambda raw, D, id: _row(raw, D, id - 1),
         "this is the row before. Ids count from 0, so `id` rows come before row `id`."),
        (lambda raw, D, id: _row(raw, D, id + 1),
         "this is the row after. Ids count from 0, so `id` rows come before row `id`."),
        (lambda raw, D, id: _row(raw, D, id)[: (D + 1) // 2],
         "you stop after D bytes. A row has D numbers, of two bytes each."),
        (lambda raw, D, id: _numbers(raw, 0, len(raw) // 2),
         "this is the whole table. Return one row of it, row `id`."),
        (lambda raw, D, id: [_row(raw, D, i)[id] for i in range(len(raw) // (2 * D))],
         "this is a column. The numbers of a token are next to each other: they are a row."),
    ],
    properties=[
        (of_each(lambda found, raw, D, id: len(found) == D),
         "a row has D numbers, and your result has another number of entries."),
        (of_each(_in_the_table),
         "your result has numbers that are not in the table. Which two bytes belong together, and "
         "what comes before them?"),
        (of_each(lambda found, raw, D, id: {float(x) for x in found} == {*_row(raw, D, id)}),
         "these are numbers of the table, but not those of row `id`. A row has 2*D bytes, and `id` "
         "rows come before it."),
    ],
    but=[(uses("torch"), "the exercise asks for a way without PyTorch: `struct` is enough.")],
)  # fmt: skip


# --- LayerNorm ------------------------------------------------------------------------------------


def _layer_norm_cases():
    by_hand = torch.tensor([[1.0, 1.0, 4.0], [7.0, 4.0, 4.0]]), torch.tensor([1.5, 3.0, 0.75]), 0.25
    cases = [by_hand]  # the root is 1.5 in both rows
    for seed, shape, eps in ((1, (4, 6), 0.1), (2, (3, 7), 0.02), (3, (2, 3, 5), 0.3)):
        x, weight = drawn(seed, shape, shape[-1:])
        cases.append((1.3 * x + 0.8, 1 + 0.4 * weight, eps))
    return cases


def _right_layer_norm(x, weight, eps):
    return functional.layer_norm(x, weight.shape, weight, None, eps)


def _centred(x, dim=-1):
    return x - x.mean(dim, keepdim=True)


def _mean_square(x, dim=-1):
    return x.pow(2).mean(dim, keepdim=True)


def _normed_along(dim):
    def norm(x, weight, eps):
        centred = _centred(x, dim)
        return centred / (_mean_square(centred, dim) + eps).sqrt() * weight

    return norm


def _normed_by(square):
    """A LayerNorm that is wrong only in what it takes for the mean square."""
    return lambda x, weight, eps: _centred(x) / (square(x) + eps).sqrt() * weight


def _without_weight(answer, x, weight, eps=1e-9):
    return torch.as_tensor(answer(x, torch.ones_like(weight), eps))


def _has_mean_0(answer, x, weight, eps):
    return bool((_without_weight(answer, x, weight).mean(-1).abs() < 1e-3).all())


def _has_size_1(answer, x, weight, eps):
    return bool(((_mean_square(_without_weight(answer, x, weight)) - 1).abs() < 1e-3).all())


def _weight_is_a_factor(answer, x, weight, eps):
    return agree(answer(x, 2 * weight, eps), 2 * torch.as_tensor(answer(x, weight, eps)))


def _eps_is_in_the_root(answer, x, weight, eps):
    return agree(answer(x, weight, eps), _right_layer_norm(x, weight, eps))


layer_norm = Exercise(
    "x [..., D], weight [D], eps -> [..., D]: each row with mean 0 and mean square 1, then times "
    "the weight; no bias.",
    right=_right_layer_norm,
    cases=_layer_norm_cases,
    run=_fitting(_layer_norm_cases),
    mistakes=[
        (lambda x, weight, eps: x - x.mean(-1), NO_KEEPDIM),
        (rms_norm,
         "this is RMSNorm. LayerNorm subtracts the row's mean as well."),
        (_normed_by(_mean_square),
         "rows of your result have mean 0, but their size is not 1: did you take the mean of the "
         "squares before subtracting the mean?"),
        (lambda x, weight, eps: _centred(x) * weight,
         "the mean is subtracted, but nothing is divided."),
        (lambda x, weight, eps: _right_layer_norm(x, torch.ones_like(weight), eps),
         "the weight is missing: at the end each column is multiplied by its own."),
        (lambda x, weight, eps: _right_layer_norm(x, weight, 0.0),
         "eps is missing, or so small that it has no effect: use the argument."),
        (lambda x, weight, eps: (
            _centred(x) / (_mean_square(_centred(x)).sqrt() + eps) * weight),
         "eps is added to the root. Add it before, to the mean of the squares."),
        (lambda x, weight, eps: _centred(x) / (_mean_square(_centred(x)) + eps) * weight,
         "you divide by the mean of the squares. Take its root."),
        (_normed_by(lambda x: x.var(-1, keepdim=True)),
         "the squares are divided by D - 1, as `var` and `std` do unless told otherwise. LayerNorm "
         "divides by D: take a mean, or `correction=0`."),
        (_normed_by(lambda x: _centred(x).pow(2).sum(-1, keepdim=True)),
         "the squares are only added up. Divide the sum by D: their mean is needed."),
        (_normed_along(0),
         "each column has mean 0. The mean is taken along the last dimension, inside a row: each "
         "token alone."),
        (_normed_along(1),
         "right for [T, D], but not for [..., T, D]: your dimension is counted from the front. The "
         "last one is -1."),
        (lambda x, weight, eps: _centred(x.flatten()).view_as(x)
            / (_mean_square(_centred(x.flatten())) + eps).sqrt() * weight,
         "all rows have one mean and one size. Each row has its own: dim -1, keepdim=True."),
        (lambda x, weight, eps: _right_layer_norm(x * weight, torch.ones_like(weight), eps),
         "the weight is multiplied at the beginning. Multiply at the end, when the row has size "
         "1."),
    ],
    properties=[
        (answer_property(_weight_is_a_factor),
         "with twice the weight your result is not twice as large. At the end each column is "
         "multiplied by its own weight, and nothing else uses it."),
        (answer_property(_has_mean_0),
         "with weights of 1, the rows of your result do not have mean 0. Subtract each row's own "
         "mean, first of all."),
        (answer_property(_has_size_1),
         "with weights of 1 and a tiny eps, the rows of your result do not have mean square 1. "
         "Divide each row by the root of its mean square, taken after the mean is subtracted."),
        (answer_property(_eps_is_in_the_root),
         "right without eps. Use the argument, and add it to the mean of the squares, inside the "
         "root."),
    ],
)  # fmt: skip


# --- A layer whose norms have no weights ----------------------------------------------------------

ATTENTION = ("attention.wq", "attention.wk", "attention.wv")  # they read attention_norm's result
FFN = ("feed_forward.w1", "feed_forward.w3")  # they read ffn_norm's result


def _layer_cases():
    sizes = ((1, 4, 2, 3), (2, 6, 2, 11), (3, 8, 4, 5), (4, 10, 5, 13))
    return {f"a layer with D = {size[1]}": (_layer(*size),) for size in sizes}


def _layer(seed, D, KH, F):
    """One layer's weights by their names inside a layer; the three sizes differ."""
    shapes = {
        "attention.wq": (D, D), "attention.wk": (KH, D), "attention.wv": (KH, D),
        "attention.wo": (D, D), "feed_forward.w1": (F, D), "feed_forward.w3": (F, D),
        "feed_forward.w2": (D, F), "attention_norm": (D,), "ffn_norm": (D,),
    }  # fmt: skip
    tensors = zip(shapes, drawn(seed, *shapes.values()), strict=True)
    return {f"{name}.weight": 1 + 0.3 * w if w.dim() == 1 else w for name, w in tensors}


def _fold(layer, attention=ATTENTION, ffn=FFN, scale=torch.mul, ones=("attention", "ffn")):
    folded = dict(layer)
    for half, names in (("attention", attention), ("ffn", ffn)):
        norm = f"{half}_norm.weight"
        for name in names:
            folded[f"{name}.weight"] = scale(layer[f"{name}.weight"], layer[norm])
        if half in ones:
            folded[norm] = torch.ones_like(layer[norm])
    return folded


def _folded_with(*parts, **options):
    return lambda layer: _fold(layer, *parts, **options)


def _same_results(norm, names):
    """Whether these matrices make the same of a normalised row as they and the norm did before."""

    def holds(found, layer):
        (x,) = drawn(5, (3, len(layer["ffn_norm.weight"])))
        before = [linear(x * layer[f"{norm}.weight"], layer[f"{name}.weight"]) for name in names]
        now = [linear(x * found[f"{norm}.weight"], found[f"{name}.weight"]) for name in names]
        return agree(now, before)

    return of_each(holds)


fold = Exercise(
    "One layer's weights {name inside a layer: tensor} -> the nine of a layer that computes the "
    "same and whose norms are all ones.",
    right=_fold,
    cases=_layer_cases,
    run=_fitting(_layer_cases),
    mistakes=[
        (_folded_with(scale=lambda matrix, g: matrix * g[:, None]),
         "two shapes do not fit. A norm's weight has D numbers, one for each column of the "
         "matrices that read it. Did you scale rows, or a matrix that does not read the norm's "
         "result?"),
        (lambda layer: layer,
         "nothing is changed. Multiply the norms' weights into the matrices that read them."),
        (_folded_with(ones=()),
         "the norms still have their weights, so these act twice. Set both to ones."),
        (_folded_with((), ()),
         "the norms are 1, but their weights are lost. Multiply them into the matrices."),
        (_folded_with((*ATTENTION, "attention.wo")),
         "wo is scaled as well. It reads the output of the heads, not the norm's result."),
        (lambda layer: _fold(layer | {
            "attention_norm.weight": layer["ffn_norm.weight"],
            "ffn_norm.weight": layer["attention_norm.weight"]}),
         "the two norms are exchanged: attention_norm comes before wq, wk and wv, ffn_norm before "
         "w1 and w3."),
        (_folded_with(ATTENTION[:1]),
         "of wq, wk and wv only wq is scaled. All three read attention_norm's result."),
        (_folded_with(ATTENTION[:2]),
         "wv is left out: values are made from the norm's result as well."),
        (_folded_with(ffn=FFN[:1]),
         "w3 is left out. It reads the same as w1."),
        (_folded_with(ffn=(), ones=("attention",)),
         "the feed-forward's norm is left out: ffn_norm comes before w1 and w3."),
        (_folded_with((), ones=("ffn",)),
         "attention's norm is left out: attention_norm comes before wq, wk and wv."),
        (_folded_with(scale=torch.div),
         "the matrices are divided by the weights. Multiply: the matrix now does what the norm did "
         "before."),
    ],
    properties=[
        (of_each(lambda found, layer: all(
            agree(found[f"{half}_norm.weight"], torch.ones(len(layer["ffn_norm.weight"])))
            for half in ("attention", "ffn"))),
         "the norms of the result are not all ones. Set both, `attention_norm.weight` and "
         "`ffn_norm.weight`."),
        (of_each(lambda found, layer: all(
            agree(found[name], layer[name])
            for name in ("attention.wo.weight", "feed_forward.w2.weight"))),
         "wo or w2 is changed. Neither reads a norm's result, so both stay as they are."),
        (_same_results("attention_norm", ATTENTION),
         "wq, wk and wv do not compute the same as before: with a normalised row x, `x @ new.T` "
         "has to be `(x * g) @ old.T`, where g is the weight of attention_norm."),
        (_same_results("ffn_norm", FFN),
         "w1 and w3 do not compute the same as before: with a normalised row x, `x @ new.T` has to "
         "be `(x * g) @ old.T`, where g is the weight of ffn_norm."),
    ],
)  # fmt: skip


# --- Gemma's norm ---------------------------------------------------------------------------------


def _gemma_cases():
    x = torch.tensor([[1.0, 1.0, 1.0, -3.0], [3.0, -1.0, -1.0, -1.0]])
    cases = [(x.bfloat16(), torch.tensor([0.5, -0.25, 0.125, 1.0]).bfloat16(), 1.0)]  # root 2
    for seed, T, D, eps in ((1, 5, 24, 1e-6), (2, 7, 18, 0.05), (3, 4, 30, 1e-3)):
        x, weight = drawn(seed, (T, D), (D,))
        cases.append(((1.7 * x).bfloat16(), (0.4 * weight).bfloat16(), eps))
    return cases


def _unit(x, eps):
    return x * torch.rsqrt(_mean_square(x) + eps)


def _right_gemma_norm(x, weight, eps):
    return (_unit(x.float(), eps) * (1 + weight.float())).type_as(x)


def _zero_weight_leaves_size_1(answer, x, weight, eps):
    square = _mean_square(answer(x, torch.zeros_like(weight), 1e-9).float())
    return bool(((square - 1).abs() < 0.02).all())


def _factor_is_one_more(answer, x, weight, eps):
    rows, threefold = (answer(x, torch.full_like(weight, w), eps).float() for w in (0.0, 2.0))
    return torch.allclose(threefold, 3 * rows, rtol=0.02)


def _eps_is_used(answer, x, weight, eps):
    """With eps = 3 times the mean square of a row, a row is half as large as without."""
    row = torch.ones_like(x)
    with_eps, without = (answer(row, weight, e).float() for e in (3.0, 1e-9))
    return torch.allclose(2 * with_eps, without, rtol=0.02)


def _rounded_once(found, x, weight, eps):
    """Whether every number is as near to the exact one as a single rounding to bfloat16 leaves."""
    exact = _unit(x.double(), eps) * (1 + weight.double())
    return bool(((found.double() - exact).abs() <= 1.001 * 2**-8 * exact.abs()).all())


gemma_norm = Exercise(
    "x [T, D], weight [D], both bfloat16, eps -> [T, D], bfloat16: RMSNorm with the factor "
    "1 + weight, all of it in float32 and cast once, at the end.",
    right=_right_gemma_norm,
    cases=_gemma_cases,
    run=_fitting(_gemma_cases),
    dtype=True,
    mistakes=[
        (lambda x, weight, eps: x / x.pow(2).mean(-1), NO_KEEPDIM),
        (lambda x, weight, eps: _unit(x.float(), eps) * (1 + weight.float()),
         "the result is float32: cast it back to x's type at the end."),
        (rms_norm,
         "this is Llama's norm, with the weight itself as the factor. Gemma's is 1 + weight."),
        (lambda x, weight, eps: (_unit(x.float(), eps) * weight.float()).type_as(x),
         "the factor is the weight itself. Gemma's is 1 + weight."),
        (lambda x, weight, eps: _unit(x.float(), eps).type_as(x) * (1 + weight),
         "this is Llama's order: back to bfloat16 before the factor. Gemma multiplies in float32 "
         "and casts once, at the end."),
        (lambda x, weight, eps: (
            _unit(x.float(), eps).type_as(x).float() * (1 + weight.float())).type_as(x),
         "the row is cast back to bfloat16 before the factor. Gemma casts once, at the end."),
        (lambda x, weight, eps: (_unit(x.float(), eps) * (1 + weight).float()).type_as(x),
         "1 + weight is added in bfloat16, which has too few digits for it: `weight.float()` "
         "first."),
        (lambda x, weight, eps: _unit(x, eps) * (1 + weight),
         "all of it is in bfloat16, so the size of every row is a little off: `x.float()` first."),
        (lambda x, weight, eps: (
            x.float() * torch.rsqrt(_mean_square(x) + eps).float() * (1 + weight.float())
            ).type_as(x),
         "the mean of the squares is taken in bfloat16, so the size of every row is a little off: "
         "`x.float()` before the squares."),
        (lambda x, weight, eps: _right_gemma_norm(x, weight, 0.0),
         "eps is missing, or so small that it has no effect: use the argument."),
    ],
    properties=[
        (answer_property(_zero_weight_leaves_size_1),
         "with a weight of zeros and a tiny eps, the rows do not have mean square 1. Each row is "
         "divided by the root of its own mean square, and the factor is 1 + weight."),
        (answer_property(_factor_is_one_more),
         "with a weight of 2 the result is not three times that with a weight of 0. The factor is "
         "1 + weight."),
        (answer_property(_eps_is_used),
         "eps is missing or in the wrong place: add it to the mean of the squares, inside the "
         "root."),
        (of_each(_rounded_once),
         "some numbers are further from the exact ones than a single rounding explains. Is "
         "anything in bfloat16 before the end?"),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
