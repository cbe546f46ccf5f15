"""The exercises of notebook 02: RMSNorm, LayerNorm, norms folded into matrices, Gemma's norm."""

import re

import torch
import torch.nn.functional as functional

from llama3_scratch import model
from llama3_scratch.exercises.frame import Exercise, agree, answer_property, desk, drawn, of_each

MISFIT = "two shapes do not fit"


def _fitting(cases):
    """A `run` that is MISFIT in every case if shapes do not fit in the first one."""

    def run(answer, *case):
        first = next(iter(cases().values())) if isinstance(cases(), dict) else cases()[0]
        try:
            answer(*first)
        except (RuntimeError, ValueError) as error:
            if re.search("size of tensor|cannot be multiplied|broadcast", str(error)):
                return MISFIT
        except Exception:  # the call below raises it again
            pass
        return answer(*case)

    return run


# --- What the three norms share -------------------------------------------------------------------

NO_KEEPDIM = (
    "two shapes do not fit. A mean has one dimension less than x. With keepdim=True the last "
    "dimension stays, with length 1, and each row gets its own number."
)


def _mean_square(x, dim=-1):
    return x.pow(2).mean(dim, keepdim=True)


def _unit(x, eps, square=_mean_square):
    return x * torch.rsqrt(square(x) + eps)


def _centred(x, dim=-1):
    return x - x.mean(dim, keepdim=True)


def _as_it_is(x, dim=-1):
    return x


def _norm(divide, before=_as_it_is):
    """A norm in Llama's order, with another division; before: what happens to the rows first."""
    return lambda x, weight, eps: divide(before(x.float()), eps).type_as(x) * weight


def _along(before, dim):
    return lambda x, weight, eps: (
        _unit(before(x.float(), dim), eps, lambda rows: _mean_square(rows, dim)).type_as(x) * weight
    )


def _all_at_once(before):
    def norm(x, weight, eps):
        flat = before(x.float().flatten())
        return _unit(flat, eps).view_as(x).type_as(x) * weight

    return norm


def _mistakes(before):
    """Those that RMSNorm and LayerNorm share."""
    wrong = [
        (lambda rows, eps: rows,
         "nothing is divided. Each row is divided by the root of its mean square."),
        (lambda rows, eps: _unit(rows, 0.0),
         "eps is missing, or a small number is typed in for it: use the argument."),
        (lambda rows, eps: rows / (_mean_square(rows).sqrt() + eps),
         "eps is added to the root. Add it before, to the mean of the squares."),
        (lambda rows, eps: rows / (_mean_square(rows) + eps),
         "you divide by the mean of the squares. Take its root."),
        (lambda rows, eps: rows * (_mean_square(rows) + eps).sqrt(),
         "you multiply by the root of the mean square. Divide by it."),
        (lambda rows, eps: _unit(rows, eps, lambda x: x.pow(2).sum(-1, keepdim=True)),
         "the squares are only added up. Divide the sum by D: their mean is needed."),
        (lambda rows, eps: _unit(rows, eps, lambda x: x.var(-1, keepdim=True)),
         "`var` and `std` subtract the row's mean and divide by D - 1, unless told otherwise. Take "
         "the mean of the squares, over D numbers."),
    ]  # fmt: skip
    return [
        *((_norm(divide, before), message) for divide, message in wrong),
        (_along(before, 0),
         "the mean is taken down the columns, over all tokens. Take it along the last dimension, "
         "inside a row: each token alone."),
        (_along(before, 1),
         "right for [T, D], but not for [..., T, D]: your dimension is counted from the front. The "
         "last one is -1."),
        (_all_at_once(before),
         "all rows share one size. Each row has its own: dim -1, keepdim=True."),
        (lambda x, weight, eps: _unit(before(x.float()), eps).type_as(x),
         "the weight is missing: at the end each column is multiplied by its own."),
        (lambda x, weight, eps: _unit(before(x.float() * weight), eps).type_as(x),
         "the weight is multiplied at the beginning. Multiply at the end, when the row has size "
         "1."),
    ]  # fmt: skip


def _has_size_1(factor):
    """With this as the weight, so that the factor is 1, and a tiny eps, rows have mean square 1."""

    def holds(answer, x, weight, eps):
        square = _mean_square(torch.as_tensor(answer(x, factor(weight), 1e-9)).float())
        return bool(((square - 1).abs() < 0.02).all())

    return answer_property(holds)


def _eps_is_used(answer, x, weight, eps):
    """With eps = 3 times the mean square of a row, the row comes out half as large as without."""
    row = _unit(_centred(x.float()), 0.0).type_as(x)
    with_eps, without = (torch.as_tensor(answer(row, weight, e)).float() for e in (3.0, 1e-9))
    return torch.allclose(2 * with_eps, without, rtol=0.02, atol=0.02)


def _weight_is_a_factor(answer, x, weight, eps):
    return agree(answer(x, 2 * weight, eps), 2 * torch.as_tensor(answer(x, weight, eps)))


FACTOR = (
    answer_property(_weight_is_a_factor),
    "with twice the weight your result is not twice as large. At the end each column is "
    "multiplied by its own weight, and nothing else uses it.",
)
NO_EPS = (
    "eps is missing or in the wrong place: add it to the mean of the squares, inside the root, and "
    "use the argument."
)
EPS = (answer_property(_eps_is_used), NO_EPS)


# --- RMSNorm --------------------------------------------------------------------------------------


def _rms_cases():
    by_hand = torch.tensor([[1.0, 1.0, 1.0, -3.0], [3.0, -1.0, -1.0, -1.0]])  # with eps, root 2
    cases = [(by_hand, torch.tensor([0.5, -0.25, 2.0, 1.0]), 1.0)]
    for seed, shape, eps, dtype in (
        (1, (5, 6), 0.1, torch.float32), (2, (2, 3, 7), 0.3, torch.float32),
        (3, (6, 30), 0.02, torch.bfloat16), (4, (2, 4, 24), 1e-5, torch.bfloat16),
    ):  # fmt: skip
        x, weight = drawn(seed, shape, shape[-1:])
        cases.append(((1.7 * x + 0.4).to(dtype), (1 + 0.4 * weight).to(dtype), eps))
    return {
        f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}, eps {eps:g}": (x, weight, eps)
        for x, weight, eps in cases
    }


rms_norm = Exercise(
    "x [..., D], weight [D], eps -> [..., D]: each row divided by the root of its mean square plus "
    "eps, in float32; back in x's type; then times the weight.",
    right=model.rms_norm,
    cases=_rms_cases,
    run=_fitting(_rms_cases),
    dtype=True,
    hints=(
        "Three lines, three names. One number for each row comes first: which dimension does the "
        "mean run along, and what keeps the result's shape fit for a division of [..., D]?",
        "x has two types here: float32 for everything inside, its own for the result. Keep both "
        "within reach. The weight comes last, after the cast back.",
    ),
    mistakes=[
        (lambda x, weight, eps: x / x.pow(2).mean(-1), NO_KEEPDIM),
        (lambda x, weight, eps: _unit(x.float(), eps) * weight,
         "the result is float32 where x is bfloat16. Cast back, before the weight, to the type "
         "that x had at the start."),
        (lambda x, weight, eps: (_unit(x.float(), eps) * weight.float()).type_as(x),
         "right in float32. In bfloat16 the order shows: cast back first, then multiply by the "
         "weight, as Meta's code does."),
        (lambda x, weight, eps: _unit(x, eps) * weight,
         "right in float32. In bfloat16 the size of every row is a little off, because the mean "
         "is computed in bfloat16 too: `x.float()` first."),
        (lambda x, weight, eps: functional.layer_norm(x, weight.shape, weight, None, eps),
         "this is LayerNorm: RMSNorm does not subtract the row's mean."),
        *_mistakes(_as_it_is),
    ],
    properties=[
        FACTOR,
        (_has_size_1(torch.ones_like),
         "with weights of 1 and a tiny eps, the rows of your result do not have mean square 1. "
         "Divide each row by the root of its own mean square."),
        EPS,
        (of_each(lambda found, x, weight, eps: agree(found, model.rms_norm(x, weight, eps))),
         "right but for the rounding of bfloat16. The order is: up to float32, divide, back to the "
         "type of x, times the weight."),
    ],
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


def _has_mean_0(answer, x, weight, eps):
    found = torch.as_tensor(answer(x, torch.ones_like(weight), 1e-9))
    return bool((found.mean(-1).abs() < 1e-3).all())


layer_norm = Exercise(
    "x [..., D], weight [D], eps -> [..., D]: each row with mean 0 and mean square 1, then times "
    "the weight; no bias.",
    right=_right_layer_norm,
    cases=_layer_norm_cases,
    run=_fitting(_layer_norm_cases),
    hints=(
        "Give the row without its mean a name of its own.",
        "From there on it is RMSNorm of that row: the squares are those of the new row, not of x.",
    ),
    mistakes=[
        (lambda x, weight, eps: x - x.mean(-1), NO_KEEPDIM),
        (model.rms_norm,
         "this is RMSNorm. LayerNorm subtracts the row's mean as well."),
        (lambda x, weight, eps: _centred(x) / (_mean_square(x) + eps).sqrt() * weight,
         "rows of your result have mean 0, but their size is not 1: did you take the mean of the "
         "squares before subtracting the mean?"),
        *_mistakes(_centred),
    ],
    properties=[
        FACTOR,
        (answer_property(_has_mean_0),
         "with weights of 1, the rows of your result do not have mean 0. Subtract each row's own "
         "mean, first of all."),
        (_has_size_1(torch.ones_like),
         "with weights of 1 and a tiny eps, the rows of your result do not have mean square 1. "
         "Divide each row by the root of its mean square, taken after the mean is subtracted."),
        EPS,
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
        now, before = (
            [(x * of[f"{norm}.weight"]) @ of[f"{name}.weight"].T for name in names]
            for of in (found, layer)
        )
        return agree(now, before)

    return of_each(holds)


fold = Exercise(
    "One layer's weights {name inside a layer: tensor} -> the nine of a layer that computes the "
    "same and whose norms are all ones.",
    right=_fold,
    cases=_layer_cases,
    run=_fitting(_layer_cases),
    hints=(
        "`(x * g) @ W.T` adds up x[d] * g[d] * W[o, d] over d. To which numbers of W can g[d] go?",
        "Take a W with 2 rows and 3 columns on paper: which of its six numbers ever meet g[1]? And "
        "which of the seven matrices never see the norm's result?",
    ),
    mistakes=[
        (_folded_with(scale=lambda matrix, g: matrix * g[:, None]),
         "two shapes do not fit. A norm's weight has D numbers, one for each column of the "
         "matrices that read it. Did you scale rows, or a matrix that does not read the norm's "
         "result?"),
        (_folded_with(scale=lambda w, g: w * (g[:, None] if len(w) == len(g) else g)),
         "in the square matrix wq the rows are scaled. A norm's weight has one number for each "
         "column, here as in the others."),
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


def _right_gemma_norm(x, weight, eps):
    return (_unit(x.float(), eps) * (1 + weight.float())).type_as(x)


def _factor_is_one_more(answer, x, weight, eps):
    threefold, rows = (answer(x, torch.full_like(weight, g), eps).float() for g in (2.0, 0.0))
    return torch.allclose(threefold, 3 * rows, rtol=0.02)


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
    hints=(
        "Only the last step rounds. Which of your own lines casts too early for that?",
        "The sum 1 + weight is part of what is computed in float32: eight bits are not enough for "
        "a 1 and a small number behind it.",
    ),
    mistakes=[
        (lambda x, weight, eps: x / x.pow(2).mean(-1), NO_KEEPDIM),
        (lambda x, weight, eps: _unit(x.float(), eps) * (1 + weight.float()),
         "the result is float32: cast it back to x's type at the end."),
        (model.rms_norm,
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
        (lambda x, weight, eps: _right_gemma_norm(x, weight, 0.0), NO_EPS),
    ],
    properties=[
        (_has_size_1(torch.zeros_like),
         "with a weight of zeros and a tiny eps, the rows do not have mean square 1. Each row is "
         "divided by the root of its own mean square, and the factor is 1 + weight."),
        (answer_property(_factor_is_one_more),
         "with a weight of 2 the result is not three times that with a weight of 0. The factor is "
         "1 + weight."),
        EPS,
        (of_each(_rounded_once),
         "some numbers are further from the exact ones than a single rounding explains. Is "
         "anything in bfloat16 before the end?"),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
