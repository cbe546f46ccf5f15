"""The exercises of notebook 06: the feed-forward, an exact product, silent neurons."""

import ast

import torch
from torch.nn import functional

from llama3_scratch import model
from llama3_scratch.exercises.frame import (
    Exercise,
    agree,
    answer_property,
    desk,
    drawn,
    of_each,
)

silu = functional.silu


def _named(w1, w3, w2):
    return {f"feed_forward.{name}.weight": w for name, w in (("w1", w1), ("w3", w3), ("w2", w2))}


def _three(weights):
    return (weights[f"feed_forward.{name}.weight"] for name in ("w1", "w3", "w2"))


def _drawn_layer(seed, *leading, D, F):
    """x [..., D] and the feed-forward's weights."""
    x, *weights = drawn(seed, (*leading, D), (F, D), (F, D), (D, F))
    return x, _named(*weights)


# --- The feed-forward -----------------------------------------------------------------------------


def _in_bfloat16():
    """A case without rounding: each way to compute it has the same bits."""
    x = ((32, 0), (0, 64), (-32, 0))
    weights = ((1, 1), (0, 2), (1, 0)), ((0.5, 0), (0, 1), (0.25, 0.25)), ((1, 0, 2), (0, 1, 0))
    x, *weights = (torch.tensor(rows, dtype=torch.bfloat16) for rows in (x, *weights))
    return x, _named(*weights)


def _whole_layer(x, weights):
    """The weights by name only: in another order, and among others."""
    named = {"ffn_norm.weight": torch.ones(x.shape[-1])} | dict(reversed(weights.items()))
    return x, named


def _cases():
    return {
        "x [1, 2], F = 3": _drawn_layer(1, 1, D=2, F=3),
        "x [5, 4], F = 7, all weights of a layer": _whole_layer(*_drawn_layer(2, 5, D=4, F=7)),
        "x [6, 6], F = 6": _drawn_layer(3, 6, D=6, F=6),
        "x [2, 3, 4], a batch, F = 10": _drawn_layer(4, 2, 3, D=4, F=10),
        "x [5], the row of one token, F = 8": _drawn_layer(5, D=5, F=8),
        "x [3, 2] in bfloat16, F = 3": _in_bfloat16(),
    }


def _like(combine):
    """An answer that makes of a = x W1ᵀ and b = x W3ᵀ what the neurons write with."""

    def answer(x, weights):
        w1, w3, w2 = _three(weights)
        return combine(x @ w1.T, x @ w3.T) @ w2.T

    return answer


def _scaled(weights, **factors):
    return {name: factors.get(name[-9:-7], 1) * w for name, w in weights.items()}


def _is_silent_without(name):
    return answer_property(lambda answer, x, w: not answer(x, _scaled(w, **{name: 0})).any())


def _doubles_with(name):
    return answer_property(
        lambda answer, x, w: agree(answer(x, _scaled(w, **{name: 2})), 2 * answer(x, w))
    )


@answer_property
def _one_gives_silu(answer, x, weights):
    """A gate of SiLU(1) and an up of 1, written with 1."""
    one = torch.ones(1, 1)
    return agree(answer(one, _named(one, one, one)), silu(one))


@answer_property
def _rows_are_alone(answer, x, weights):
    return x.dim() < 2 or agree(answer(x.flip(-2), weights), answer(x, weights).flip(-2))


feed_forward = Exercise(
    "SwiGLU: (x [..., T, D], the weights of one layer) -> [..., T, D].",
    right=model.feed_forward,
    cases=_cases,
    dtype=True,
    hints=(
        "Write the shapes down. x is [T, D], w1 is [F, D], and the gate has to be [T, F]: over "
        "which letter does the product add, and what must be transposed?",
        "Gate and up have one number for each token and each neuron, and meet number by number. "
        "After that a third product, with w2, adds up what the neurons write.",
    ),
    mistakes=[
        (_like(lambda a, b: a * silu(b)),
         "the SiLU is on w3's side. It belongs to the gate, w1."),
        (_like(lambda a, b: silu(a)),
         "this is the gate alone, without up. The two are multiplied."),
        (_like(lambda a, b: b),
         "this is up alone, without the gate. The two are multiplied."),
        (_like(lambda a, b: silu(a) + b),
         "gate and up are added. They are multiplied."),
        (_like(lambda a, b: a.sigmoid() * b),
         "the gate is the sigmoid alone (that is the older GLU). SiLU(a) is a times sigmoid(a)."),
        (_like(lambda a, b: a.relu() * b),
         "the gate is a ReLU. Llama's is SiLU: a times sigmoid(a)."),
        (_like(lambda a, b: functional.gelu(a) * b),
         "the gate is a GELU. Llama's is SiLU: a times sigmoid(a)."),
        (_like(lambda a, b: a * b),
         "there is no SiLU: gate and up are two plain products."),
        (_like(lambda a, b: silu(a * b)),
         "the SiLU is taken of the product. It is taken of the gate, before the multiplication."),
        (_like(lambda a, b: silu(a) * silu(b)),
         "there is a SiLU on both sides. Up is the plain product with w3."),
        (lambda x, weights: silu(_like(lambda a, b: a * b)(x, weights)),
         "the SiLU comes last, on the result. It is taken of the gate, before w2."),
        (lambda x, weights: x + model.feed_forward(x, weights),
         "x is added to the result. The sum with the stream is not part of this function; the "
         "layer adds, and it adds to the stream before the norm."),
        (lambda x, w: silu(x @ w["feed_forward.w1.weight"].T) * (x @ w["feed_forward.w3.weight"].T),
         "this is how strongly each neuron fires, [..., T, F]. Then w2 brings it back to D."),
    ],
    properties=[
        (_is_silent_without("w3"),
         "with a w3 of zeros the result is not 0. Up is the plain product with w3; it is "
         "multiplied with the gate, and nothing is added."),
        (_is_silent_without("w1"),
         "with a w1 of zeros the result is not 0. SiLU(0) is 0, and it is multiplied with up."),
        (_doubles_with("w3"),
         "twice w3 does not give twice the result. Up is the plain product of x with w3."),
        (_doubles_with("w2"),
         "twice w2 does not give twice the result. The product with w2 comes last."),
        (_rows_are_alone,
         "with the tokens in reversed order the result is not the same rows in reversed order. "
         "Each token is worked on by itself."),
        (_one_gives_silu,
         "a gate reading of 1 and an up of 1 should give SiLU(1) = 0.731: a times sigmoid(a)."),
    ],
    but=[
        (lambda tree: any(isinstance(node, ast.For | ast.While) for node in ast.walk(tree)),
         "it has a loop. `x @ w.T` makes a number for every token and every row of w at once."),
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
    """What feed_forward makes of x with the weights of an answer; a text if they do not fit."""
    found = answer()
    if found is None:
        return None
    if not isinstance(found, tuple | list) or len(found) != 3:
        return "not three"
    w1, w3, w2 = (torch.as_tensor(w, dtype=x.dtype, device=x.device) for w in found)
    if w1.dim() != 2 or not w1.shape == w3.shape == (len(w1), 2) or w2.shape != (2, len(w1)):
        return "no fit"
    return model.feed_forward(x, _named(w1, w3, w2))


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
    hints=(
        "Equation 6.5 has two neurons. What does the gate of each read, and what does its up read?",
        "A row (1, 0) of w1 or w3 reads u, a row (0, 1) reads v; a minus sign is a -1 there. w2 "
        "has a row for each output, and both neurons write to the first.",
    ),
    mistakes=[
        (lambda: (),
         "expected three tensors: return w1, w3, w2."),
        (lambda: _weights(*_NAMED.values(), BOTH[:1])(),
         "these shapes do not fit together. With F neurons w1 and w3 are [F, 2], and w2 is [2, F]: "
         "a row for each output."),
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
         "the result is always 0. Either the second neuron takes away what the first adds (their "
         "gates have to read opposite signs), or each neuron lacks a reading: it has one row of w1 "
         "and one row of w3."),
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


# --- Silent neurons -------------------------------------------------------------------------------


def _silence_cases():
    sizes = ((1, (3,), 3, 4, [1]), (2, (5,), 5, 9, [4, 0]), (3, (5, 6), 4, 7, [2, 3, 1]))
    return {
        f"x {[*leading, D]}, F = {F}, neurons {neurons}": (
            *_drawn_layer(10 + seed, *leading, D=D, F=F), neurons)
        for seed, leading, D, F, neurons in sizes
    }  # fmt: skip


def _without(x, weights, neurons, kept=False, where=-1):
    """where: the dimension of gate times up in which the numbers are meant."""
    w1, w3, w2 = _three(weights)
    fires = silu(x @ w1.T) * (x @ w3.T)
    chosen = torch.zeros_like(fires, dtype=torch.bool)
    chosen.movedim(where, -1)[..., neurons] = True
    return torch.where(chosen == kept, fires, 0) @ w2.T


def _without_rows(x, weights, neurons):
    """The rows of w2 set to 0, not its columns."""
    found = model.feed_forward(x, weights)
    found[..., neurons] = 0
    return found


def _without_inputs(x, weights, neurons):
    read = x.clone()
    read[..., neurons] = 0
    return model.feed_forward(read, weights)


@answer_property
def _none_is_all(answer, x, weights, neurons):
    return agree(answer(x, weights, []), model.feed_forward(x, weights))


@answer_property
def _all_is_nothing(answer, x, weights, neurons):
    F = len(weights["feed_forward.w1.weight"])
    return not answer(x, weights, list(range(F))).any()


silence = Exercise(
    "The feed-forward with silent neurons: (x [..., T, D], weights, [neuron, ...]) -> [..., T, D].",
    right=_without,
    cases=_silence_cases,
    hints=(
        "A silent neuron writes nothing, for no token. What has to be 0 for that: which of the "
        "numbers between the matrices, or which part of a matrix?",
        "`h[..., neurons]` are these neurons for all tokens, however many dimensions stand before. "
        "Change a tensor that you made yourself, never one of `weights`.",
    ),
    mistakes=[
        (lambda x, weights, neurons: model.feed_forward(x, weights),
         "nothing is silent: this is the whole feed-forward."),
        (lambda *case: _without(*case, kept=True),
         "this is what these neurons write. They are to be silent, and all others are to write."),
        (lambda x, weights, neurons: _without(x, weights, neurons[:1]),
         "only the first neuron of the list is silent."),
        *((lambda *case, where=where: _without(*case, where=where),
           "these are tokens: their rows are 0. Neurons are the last dimension of gate times up.")
          for where in (-2, 0)),
        (lambda *case: _without(*case, where=1),
         "right for a matrix [T, F]. In a batch the second dimension is that of the tokens; the "
         "neurons are always the last one, `h[..., neurons]`."),
        (_without_rows,
         "columns of the result are 0. They are places in the stream; a neuron writes with a "
         "column of w2, `w2[:, neurons]`."),
        (_without_inputs,
         "columns of x are 0. They are places in the stream; a neuron reads with a row of w1 and "
         "a row of w3."),
    ],
    properties=[
        (_none_is_all,
         "with an empty list the result should be that of `feed_forward`."),
        (_all_is_nothing,
         "with all neurons silent the result should be 0."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
