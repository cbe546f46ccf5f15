"""The exercises of notebook 04: one head, the mask, a head made by hand, a head ablated."""

import functools
import math
from itertools import count

import numpy as np
import torch
import torch.nn.functional as F

from llama3_scratch import model
from llama3_scratch.checkpoint.random import random_weights
from llama3_scratch.config import Config
from llama3_scratch.exercises.frame import (
    Exercise,
    agree,
    answer_property,
    desk,
    drawn,
    of_each,
)
from llama3_scratch.model import causal_mask, rotate

# --- One head -------------------------------------------------------------------------------------


def _attend_case(seed, front, positions, S, H, size=2):
    """Queries at these positions, keys at 0 to S - 1; `front` are the leading dimensions."""
    positions = torch.as_tensor(positions)
    query, keys, values = drawn(seed, (*front, len(positions), H), (*front, S, H), (*front, S, H))
    return size * query, 2 * keys, values, causal_mask(positions, S)


def _half_precision():
    """Shares of 1/2 and 1/4 and small whole numbers, which bfloat16 holds exactly."""
    values = torch.tensor([[4.0, 8.0], [0.0, -8.0], [12.0, 4.0], [8.0, -4.0]]).bfloat16()
    hidden = torch.tensor([[0.0, 0.0, -math.inf, -math.inf], [0.0] * 4])
    return torch.zeros(2, 2).bfloat16(), torch.ones(4, 2).bfloat16(), values, hidden


def _attend_cases():
    return {
        "3 tokens with H = 2": _attend_case(1, (), [0, 1, 2], 3, 2),
        "6 tokens with H = 10": _attend_case(2, (), range(6), 6, 10),
        "2 queries at positions 3 and 5 of 7 keys": _attend_case(3, (), [3, 5], 7, 4),
        "one token": _attend_case(4, (), [0], 1, 6),
        "leading dimensions, [2, 3, T, H]": _attend_case(5, (2, 3), range(1, 5), 5, 4),
        "scores of several hundred": _attend_case(6, (), range(5), 5, 8, size=100),
        "bfloat16": _half_precision(),
    }


def _right_attend(query, keys, values, mask):
    one = (x.unsqueeze(-2) for x in (query, keys, values))  # N = K = 1
    return model.attend(*one, mask).squeeze(-2)


def _products(q, k):
    return q @ k.transpose(-2, -1)


def _scores(q, k, by=None):
    return _products(q, k) / math.sqrt(by or q.shape[-1])


def _of(masked, dim=-1):
    """A head that is wrong only in its masked scores, or in the direction of its softmax."""
    return lambda q, k, v, m: F.softmax(masked(q, k, m).float(), dim=dim).type_as(v) @ v


def _own_mask(q, k):
    return torch.full((q.shape[-2], k.shape[-2]), -math.inf).triu(1)


def _probabilities(q, k, m):
    return F.softmax(_scores(q, k) + m, dim=-1).type_as(k)


def _hidden_keys_do_not_matter(answer, q, k, v, m):
    """Changing the last key and value must not change the rows that cannot see them."""
    blind = m[:, -1] == -math.inf
    changed = (torch.cat([x[..., :-1, :], x[..., -1:, :] + 1], -2) for x in (k, v))
    before, after = answer(q, k, v, m), answer(q, *changed, m)
    return agree(before[..., blind, :], after[..., blind, :])


attend = Exercise(
    "One head: rotated queries [..., T, H] and keys [..., S, H], values [..., S, H], and a mask "
    "[T, S] to be added to the scores -> the head's output [..., T, H].",
    right=_right_attend,
    cases=_attend_cases,
    mistakes=[
        (_of(lambda q, k, m: _scores(q, k, q.shape[-1] ** 2) + m),
         "the scores are too small: did you divide by H instead of sqrt(H)?"),
        (_of(lambda q, k, m: _scores(q, k, 1) + m),
         "the scores are too large: they are not divided by sqrt(H)."),
        (_of(lambda q, k, m: _scores(q, k, 1 / q.shape[-1]) + m),
         "the scores are multiplied by sqrt(H). Divide."),
        (_of(lambda q, k, m: _scores(q, k, q.shape[-2]) + m),
         "divided by the square root of T, the number of queries. It is H, the size of a head: "
         "the last dimension."),
        (_of(lambda q, k, m: _scores(q, k, k.shape[-2]) + m),
         "divided by the square root of S, the number of keys. It is H, the size of a head: the "
         "last dimension."),
        (lambda q, k, v, m: _of(lambda q, k, m: _products(q, k) + m)(q, k, v, m)
         / math.sqrt(q.shape[-1]),
         "sqrt(H) comes too late: divide the scores by it before the softmax, not the result."),
        (_of(lambda q, k, m: _scores(q, k)),
         "the mask is not used: each token sees the future. Add it to the scores."),
        (_of(lambda q, k, m: _scores(q, k, 1)),
         "two things are missing: the scores are not divided by sqrt(H), and the mask is not "
         "used."),
        (_of(lambda q, k, m: _scores(q, k) + _own_mask(q, k)),
         "right where the queries are all the keys, and only there: you make a mask of your own "
         "from T and S. Add the one that is given."),
        (_of(lambda q, k, m: _scores(q, k) * m),
         "it holds NaN, since the scores are multiplied by the mask. Add it: 0 changes nothing, "
         "and minus infinity swallows the score."),
        (_of(lambda q, k, m: _scores(q, k) - m),
         "the mask is subtracted: plus infinity stands on the future. Add it."),
        (_of(lambda q, k, m: _scores(q, k).where(m == 0, 0.0)),
         "the future's scores are set to zero. e to the power of 0 is 1, so the future still gets "
         "its share. Add the mask, which holds minus infinity there."),
        (_of(lambda q, k, m: _scores(q, k).where(m != 0, -math.inf)),
         "the mask is the wrong way round: it holds 0 where a query may attend, and that is where "
         "you hide the keys. Add it to the scores as it is."),
        (lambda q, k, v, m: (F.softmax(_scores(q, k), -1) * (m == 0)).type_as(v) @ v,
         "the future's probabilities are set to zero after the softmax, and what is left of a row "
         "does not add up to 1. Add the mask to the scores, before the softmax."),
        (lambda q, k, v, m: (F.softmax(_scores(q, k), -1) + m).type_as(v) @ v,
         "the mask is added after the softmax. It belongs before: to the scores."),
        (_of(lambda q, k, m: _scores(q, k) + m, dim=-2),
         "the softmax goes along the queries. Each query's row has to add up to 1: along the keys, "
         "the last dimension."),
        (lambda q, k, v, m: (_probabilities(q, k, m)).float() @ v.float(),
         "the output of bfloat16 values is float32. Bring the probabilities back to the type of "
         "the queries before they weight the values."),
        (lambda q, k, v, m: _probabilities(q, k, m),
         "these are the probabilities [..., T, S]. The head's output is the mean of the values "
         "that they weight, [..., T, H]."),
        (lambda q, k, v, m: _probabilities(q, k, m) @ k,
         "the mean is taken of the keys. Mix the values."),
        (lambda q, k, v, m: (_scores(q, k) + m).type_as(v) @ v,
         "there is no softmax: scores are not probabilities."),
        (lambda q, k, v, m: (_scores(q, k).exp() * (m == 0)
                             / (_scores(q, k).exp() * (m == 0)).sum(-1, keepdim=True)).type_as(v)
         @ v,
         "right for small scores, NaN for large ones: e to the power of 89 is too large for "
         "float32. Subtract the largest score of each row first, or use torch's softmax."),
    ],
    properties=[
        (answer_property(_hidden_keys_do_not_matter),
         "a query notices a key that is hidden from it: the mask is not used, or a row mixes "
         "tokens in another way than by its own probabilities."),
        (answer_property(lambda answer, q, k, v, m: agree(
            answer(q, k, torch.ones_like(v), m), torch.ones_like(q))),
         "values that are all 1 do not give 1: the probabilities of a row do not add up to 1, or "
         "something else than the values is mixed."),
    ],
    hints=(
        "Equations 4.2 to 4.5 are one line each. Which two dimensions of the keys have to "
        "change places so that every query meets every key? `.T` turns all dimensions round; "
        "`.transpose(-2, -1)` exchanges the last two, whatever stands before them.",
        "Four steps: products of all queries with all keys, divided by the root of the last size; "
        "the mask added; a softmax along the keys; the probabilities times the values. In "
        "bfloat16 the mask, which is float32, makes float32 of the scores: `type_as` goes back.",
    ),
    dtype=True,
)  # fmt: skip


# --- The mask from positions ----------------------------------------------------------------------


def _mask_cases():
    spans = ((0, 4, 0, 4), (5, 8, 0, 8), (2, 4, 0, 7), (6, 9, 4, 10), (7, 8, 0, 8))
    return [(torch.arange(*span[:2]), torch.arange(*span[2:])) for span in spans]


def _with_one_large_number(answer, queries, keys):
    """Any large negative number stands for all of them."""
    found = answer(queries, keys)
    if isinstance(found, torch.Tensor) and found.is_floating_point():
        return found.where(~((found < -20) & found.isfinite()), -1e9)
    return found


def _ahead(queries, keys):
    return keys > queries[:, None]


def _filled(where, inside=-math.inf):
    return torch.where(where, inside, 0.0)


def _by_rows(queries, keys, diagonal):
    return torch.full((len(queries), len(keys)), -math.inf).triu(diagonal)


mask = Exercise(
    "Positions of queries [T] and of keys [S] -> [T, S]: 0, and minus infinity on the future.",
    right=lambda q, k: _filled(_ahead(q, k)),
    cases=_mask_cases,
    run=_with_one_large_number,
    mistakes=[
        (lambda q, k: _ahead(q, k) * -math.inf,
         "there is NaN in it: 0 times minus infinity is not a number. Choose between the two "
         "values with torch.where, or fill one in; do not multiply."),
        (lambda q, k: torch.ones(len(q), len(k)).triu(1) * -math.inf,
         "there is NaN in it: 0 times minus infinity is not a number, so do not multiply. It also "
         "counts rows and columns: compare the positions."),
        (lambda q, k: _filled(k >= q[:, None]),
         "each token is hidden from itself: the diagonal is masked too. A token may attend to "
         "itself, and the first one has nothing else to attend to."),
        (lambda q, k: _filled(k < q[:, None]),
         "the wrong side is masked: each token sees itself and the future. Mask the keys whose "
         "position is larger than the query's."),
        (lambda q, k: _filled(k <= q[:, None]),
         "the past and the token itself are masked, and the future is open: zeros and infinities "
         "are exchanged."),
        (lambda q, k: _filled(k > q[:, None] + 1),
         "each token sees one token of the future, the one after it."),
        (lambda q, k: _filled(_ahead(q, k)).T,
         "rows and columns are exchanged: the mask has a row for each query and a column for each "
         "key."),
        (lambda q, k: (~_ahead(q, k)).float(),
         "it holds ones and zeros. The mask is added to the scores: 0 where a token may attend, "
         "minus infinity where it may not."),
        (lambda q, k: _ahead(q, k).float(),
         "it holds ones on the future. The mask is added to the scores: minus infinity there, and "
         "0 elsewhere."),
        (lambda q, k: ~_ahead(q, k),
         "it holds True and False. The mask is added to the scores: 0 where a token may attend, "
         "minus infinity where it may not."),
        (_ahead,
         "it holds True and False: the right places, but the mask is added to the scores. Put "
         "minus infinity where it says True, and 0 elsewhere."),
        (lambda q, k: _filled(_ahead(q, k), math.inf),
         "the infinity is positive: the softmax would give everything to the future."),
        (lambda q, k: _filled(_ahead(q, k), -1e9),
         "it holds a large negative number. That works while the scores are small compared with "
         "it; minus infinity, -math.inf, works always."),
        (lambda q, k: _by_rows(q, k, 1),
         "right where the queries begin at position 0, and only there: it counts rows and columns. "
         "Compare the positions."),
        (lambda q, k: _by_rows(q, k, 1 + len(k) - len(q)),
         "right where the last query is the last key, and only there: it counts rows and columns. "
         "Compare the positions."),
        (lambda q, k: _filled(_ahead(q, torch.arange(len(k)))),
         "right where the keys begin at position 0, and only there: it counts the keys. Compare "
         "their positions."),
        (lambda q, k: _filled(_ahead(torch.arange(len(q)), k)),
         "right where the queries begin at position 0, and only there: it counts the queries. "
         "Compare their positions."),
    ],
    properties=[
        (of_each(lambda found, q, k: bool((found[_ahead(q, k)] == -math.inf).all())),
         "a key of the future is not masked: where a key's position is larger than the query's, "
         "minus infinity is expected."),
        (of_each(lambda found, q, k: bool((found[~_ahead(q, k)] == 0).all())),
         "a key that the query may attend to has no 0: it is 0 for the token itself and all tokens "
         "before it."),
    ],
    hints=(
        "The sizes of the two arguments do not say enough: compare the positions themselves.",
        "`queries[:, None]` has the shape [T, 1]. Compared with [S], it gives [T, S], and "
        "`torch.where` chooses between two numbers by the result.",
    ),
)  # fmt: skip


# --- A head made by hand --------------------------------------------------------------------------

TEXT = 24  # tokens of the text that the head is tried on


def _tried(q, k, frequencies):
    """What a head with such a q and k does with a text."""
    t = torch.arange(TEXT)
    angles = torch.outer(t.float(), frequencies)
    rotations = torch.polar(torch.ones_like(angles), angles)
    q, k = (rotate(x.float().expand(TEXT, 1, -1), rotations)[:, 0] for x in (q, k))
    scores = q @ k.T / math.sqrt(q.shape[-1])
    masked = (scores + causal_mask(t, TEXT)).softmax(-1)
    if (scores.max() - scores.min()) <= 1e-4 * scores.abs().max():
        return "at no token", False, []
    if (masked.argmax(-1)[1:] == t[:-1]).all():
        return "at the token before", bool(masked.diagonal(-1).min() > 0.5), []
    back = t - scores.argmax(-1)  # the future counted as well
    return "at another token", False, back[1:-1].tolist()


def _looks(answer, frequencies):
    """Where the head of an answer looks: that, and no number of q and k, is what is compared."""
    found = answer(frequencies)
    if found is None:
        return None
    size = [2 * len(frequencies)]
    is_pair = isinstance(found, tuple | list | torch.Tensor) and len(found) == 2
    if is_pair and all(isinstance(x, torch.Tensor) and x.is_complex() for x in found):
        return "complex", False, []
    if not is_pair or not all(isinstance(x, torch.Tensor | np.ndarray) for x in found):
        return "at nothing", False, []
    if any(list(x.shape) != size for x in found):
        return "of another size", False, []
    found = [torch.as_tensor(x) for x in found]
    if any(not x.isfinite().all() for x in found):
        return "at NaN", False, []
    verdict = _tried(*found, frequencies)
    paired = (x.unflatten(-1, (2, -1)).T.flatten() for x in found)
    if verdict[0] == "at another token" and _tried(*paired, frequencies)[1]:
        return "two halves", False, []
    return verdict


def _turned(by, size=1000.0, alike=False):
    def made(frequencies):
        one = torch.ones_like(frequencies)
        ahead = by * (one if alike else frequencies)
        q = torch.view_as_real(torch.polar(one * size, ahead)).flatten()
        return q, torch.view_as_real(torch.polar(one, 0 * one)).flatten()

    return made


previous_token = Exercise(
    "Frequencies [P] -> q [H], k [H], the same for every token, that attend to the token before.",
    right=_turned(-1),
    cases=lambda: [(theta ** -(torch.arange(P) / P),)
                   for P, theta in ((12, 5e5), (16, 1e4), (64, 5e5))],
    run=_looks,
    mistakes=[
        (_turned(1),
         "it attends to the position after, where the mask is: turn the other way."),
        (_turned(-1, alike=True),
         "every pair is turned by the same angle. In one position each pair turns by a frequency "
         "of its own, so each needs an angle of its own."),
        (_turned(1, alike=True),
         "every pair is turned by the same angle, and forward. In one position each pair turns by "
         "a frequency of its own, and the key to be found is one position back."),
        (_turned(-2),
         "it attends two positions back, twice as far as it should."),
        (_turned(0),
         "each token attends to itself: q and k point the same way in every pair. Turn one of "
         "them, by as much as one position does."),
        (_turned(-1, 1.0),
         "it attends to the token before, but with less than half of its probability. Make q or k "
         "longer."),
        (_turned(0, 0.0),
         "all scores are equal: nothing tells one position from another."),
        (lambda f: 2 * f,
         "it has to return a query and a key, q, k: two tensors of 2 P numbers each."),
        (lambda f: (torch.polar(torch.ones_like(f), -f), torch.polar(torch.ones_like(f), 0 * f)),
         "q and k are complex numbers still. torch.view_as_real(q).flatten() lays them out as real "
         "ones."),
        (lambda f: tuple(x.unflatten(-1, (-1, 2)).T.flatten() for x in _turned(-1)(f)),
         "the numbers are right, and they are in two halves. In Llama's files neighbours are a "
         "pair: cosine, sine, cosine, sine."),
    ],
    properties=[
        (of_each(lambda found, frequencies: found[0] != "of another size"),
         "q and k have to be vectors of H = 2 P numbers each: one query and one key, for all "
         "tokens, with two numbers for each frequency."),
        (of_each(lambda found, frequencies: found[0] != "at NaN"),
         "q or k holds NaN or infinity."),
        (of_each(lambda found, frequencies: sum(back < 0 for back in found[2]) < TEXT / 2),
         "for most tokens the largest score is at a later position, where the mask is. Which way "
         "does each pair turn, and are neighbours a pair?"),
        (of_each(lambda found, frequencies: found[0] != "at another token"),
         "the largest score is not at the position before: pair p of the query has to start "
         "exactly one position, the angle frequencies[p], behind the key."),
    ],
    hints=(
        "Think of a pair of numbers as an arrow. At position t the query's arrow of pair p has "
        "turned by t times frequencies[p], the key's at position s by s times frequencies[p]. "
        "Their product is largest where they point the same way. If both start at angle 0, for "
        "which s is that?",
        "Give the query's arrow a start angle that one more position would undo. Longer arrows "
        "make larger scores. `torch.polar` makes arrows from lengths and angles; "
        "`torch.view_as_real(arrows).flatten()` lays them out as H numbers.",
    ),
)  # fmt: skip


# --- A head ablated -------------------------------------------------------------------------------

HEADS = Config(24, 3, 4, 2, 40, 8, 1e-5, 10000.0, 1.0)  # L 3, N 4, K 2, H 6
TEXTS = torch.tensor([[7, 3, 30, 12, 5], [1, 39, 2, 8, 8]])  # [2, T]


@functools.cache
def _weights():
    return random_weights(HEADS, seed=2)


def _logits(answer, layer, head):
    made = answer(layer, head)
    return None if made is None else model.forward(_weights(), TEXTS, HEADS, attend=made)


def _in_layer(change, of=lambda i: i, before=None):
    """An answer that changes the outputs (or, before, the arguments) in one layer."""

    def answer(layer, head):
        calls = count()

        def changed(query, keys, values, mask):
            if next(calls) != of(layer):
                return model.attend(query, keys, values, mask)
            if before:
                query, keys, values = before(query, keys, values, head)
            outputs = model.attend(query, keys, values, mask)
            return outputs if before else change(outputs.clone(), head)

        return changed

    return answer


def _zeroed(x, head, dim=-2):
    return x.index_fill(dim, torch.tensor([head]), 0.0)


def _everywhere(layer, head):
    return lambda *given: _zeroed(model.attend(*given), head)


without = Exercise(
    "Ablate a head: a layer and a head -> a function to pass to `forward` as `attend`, for one "
    "forward pass, in which the output of this head is zero.",
    right=_in_layer(_zeroed),
    cases=lambda: {f"layer {i}, head {j}": (i, j) for i, j in ((0, 0), (1, 3), (2, 1))},
    run=_logits,
    mistakes=[
        (lambda layer, head: model.attend,
         "no head is ablated: the logits are those of the whole model."),
        (_everywhere,
         "this head is ablated in every layer. `attend` is called once for each layer, layer 0 "
         "first, and is not told which: count the calls."),
        (_in_layer(_zeroed, of=lambda i: i - 1),
         "the layer before is ablated: layers count from 0. When do you raise the count?"),
        (_in_layer(_zeroed, of=lambda i: i + 1),
         "the layer after is ablated: layers count from 0. When do you raise the count?"),
        (_in_layer(lambda outputs, head: outputs * 0),
         "all heads of the layer are ablated. The heads are the last dimension but one of what "
         "`attend` returns, [..., T, N, H]."),
        (_in_layer(lambda outputs, head: outputs - _zeroed(outputs, head)),
         "all heads of the layer but this one are ablated."),
        (_in_layer(lambda outputs, head: _zeroed(outputs, head, -3)),
         "a token is silenced in all heads, not a head at all tokens. What `attend` returns is "
         "[..., T, N, H], and the batch stands in front: count the dimensions from the end."),
        (_in_layer(lambda outputs, head: _zeroed(outputs, head, -1)),
         "one of the H numbers is silenced in all heads. The heads are the last dimension but "
         "one."),
        (_in_layer(None, before=lambda q, k, v, head: (_zeroed(q, head), k, v)),
         "the head's query is zero, so it attends to all tokens alike, and still writes their "
         "mean. Its output has to be zero."),
        (_in_layer(None, before=lambda q, k, v, head: (q, k, _zeroed(v, head // 2))),
         "a value head is zero, and several query heads share it: all of them are ablated. Change "
         "the output, which has N heads."),
    ],
    properties=[
        (of_each(lambda found, layer, head: bool(found.isfinite().all())),
         "there is NaN in the logits. Set the outputs to zero, no scores to minus infinity."),
    ],
    hints=(
        "Inside `my_without` define a function with the four arguments of `attend`, and return "
        "it. It calls `model.attend`. What tells it whether this call is the one for your layer?",
        "A counter that lives outside the inner function: `calls = itertools.count()`, then "
        "`next(calls)` gives 0, 1, 2, ... What `attend` returns is [..., T, N, H]: "
        "`outputs[..., head, :]` are all numbers of one head.",
    ),
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
