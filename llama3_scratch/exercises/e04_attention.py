"""The exercises of notebook 04: the mask, the softmax, a whole head, a head made by hand."""

import math

import torch
import torch.nn.functional as F

from llama3_scratch.exercises.frame import (
    Exercise,
    agree,
    answer_property,
    desk,
    drawn,
    of_each,
    uses,
)
from llama3_scratch.model import attend, causal_mask, rotate


def _ahead(queries, keys):
    return keys > queries[:, None]


def _filled(where, inside=-math.inf):
    return torch.where(where, inside, 0.0)


def _rows_add_up(probabilities, *_):
    sums = probabilities.sum(-1)
    return agree(sums, torch.ones_like(sums))


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
)  # fmt: skip


# --- The softmax ----------------------------------------------------------------------------------


def _softmax_cases():
    square, levels, large, row, column = drawn(11, (5, 5), (4, 6), (3, 7), (1, 4), (4, 1))
    square = square + causal_mask(torch.arange(5), 5)
    levels = levels + torch.tensor([[-200.0], [0.0], [-90.0], [30.0]])  # every row on its own
    return [(row,), (square,), (levels,), (600 * large,), (column,)]


def _exps(scores):
    return (scores - scores.max(-1, keepdim=True).values).exp()


def _softmax(scores):
    exps = _exps(scores)
    return exps / exps.sum(-1, keepdim=True)


def _less_the_maxima_of_columns(scores):
    e = (scores - scores.max(0, keepdim=True).values).exp()
    return e / e.sum(-1, keepdim=True)


def _less_one_maximum(scores):
    e = (scores - scores.max()).exp()
    return e / e.sum(-1, keepdim=True)


softmax = Exercise(
    "Scores [T, S], of any size, minus infinity among them -> probabilities [T, S].",
    right=_softmax,
    cases=_softmax_cases,
    mistakes=[
        (lambda s: s.exp() / s.exp().sum(-1, keepdim=True),
         "right for small scores, NaN for large ones: e to the power of 89 is too large for "
         "float32. Subtract the largest score of each row first; it cancels."),
        (_less_one_maximum,
         "rows with small scores come out as NaN: the largest score of the whole matrix was "
         "subtracted, and nothing is left of them. Each row needs its own."),
        (_less_the_maxima_of_columns,
         "the largest score of each column was subtracted, and it does not cancel: a row is "
         "divided by its sum, so one number is subtracted from the whole row."),
        (lambda s: F.softmax(s, dim=-2),
         "the columns add up to 1. Each query's row has to: the softmax goes along the keys, the "
         "last dimension."),
        (lambda s: F.softmax(s.flatten(), dim=0).view_as(s),
         "all rows together add up to 1. Divide each row by its own sum."),
        (lambda s: _exps(s) / _exps(s).sum(),
         "every row is divided by the sum over all rows. Divide each row by its own sum."),
        (_exps,
         "the largest of each row is 1: it is not divided by the row's sum yet."),
        (lambda s: F.log_softmax(s, dim=-1),
         "these are the logarithms of the probabilities."),
        (lambda s: s / s.sum(-1, keepdim=True),
         "the scores are divided by their sum. First comes e to the power of each."),
        (lambda s: F.softmax(s * math.log(2), dim=-1),
         "the base is 2. The softmax raises e to the scores."),
    ],
    properties=[
        (of_each(_rows_add_up),
         "the rows do not add up to 1. Divide each row by its own sum, at the end."),
        (of_each(lambda found, scores: bool((found.argmax(-1) == scores.argmax(-1)).all())),
         "the largest score of a row does not have the largest probability."),
    ],
    but=[
        (uses("softmax", "log_softmax", "Softmax"),
         "this is torch's own softmax. Write it with exp, sum and max."),
    ],
)  # fmt: skip


# --- A whole head ---------------------------------------------------------------------------------


def _head_cases():
    sizes = ((1, 3, 2), (2, 7, 4), (3, 6, 10), (4, 1, 6))
    return [tuple(2 * x for x in drawn(seed, *[(T, H)] * 3)) for seed, T, H in sizes]


def _mask(q, compare=torch.gt):
    t = torch.arange(len(q))
    return _filled(compare(t, t[:, None]))


def _scores(q, k, by=None):
    return q @ k.T / math.sqrt(by or q.shape[-1])


def _of(masked, dim=-1):
    """A head that is wrong only in its masked scores, or in the direction of its softmax."""
    return lambda q, k, v: F.softmax(masked(q, k), dim=dim) @ v


def _probabilities(q, k):
    return F.softmax(_scores(q, k) + _mask(q), dim=-1)


def _right_head(q, k, v):
    one = (x[:, None] for x in (q, k, v))  # N = K = 1
    return attend(*one, _mask(q))[:, 0]


def _is_causal(answer, q, k, v):
    """Changing the last token must not change what the others get."""
    changed = [torch.cat([x[:-1], x[-1:] + 1]) for x in (q, k, v)]
    return agree(answer(q, k, v)[:-1], torch.as_tensor(answer(*changed)[:-1]))


one_head = Exercise(
    "One causal head: q, k (rotated already) and v, [T, H] each -> its output [T, H].",
    right=_right_head,
    cases=_head_cases,
    mistakes=[
        (_of(lambda q, k: _scores(q, k, q.shape[-1] ** 2) + _mask(q)),
         "the scores are too small: did you divide by H instead of sqrt(H)?"),
        (_of(lambda q, k: _scores(q, k, 1) + _mask(q)),
         "the scores are too large: they are not divided by sqrt(H)."),
        (_of(lambda q, k: _scores(q, k, 1 / q.shape[-1]) + _mask(q)),
         "the scores are multiplied by sqrt(H). Divide."),
        (_of(lambda q, k: _scores(q, k, len(q)) + _mask(q)),
         "divided by the square root of T, the number of tokens. It is H, the size of a head: the "
         "last dimension of q."),
        (lambda q, k, v: F.softmax(q @ k.T + _mask(q), -1) @ v / math.sqrt(q.shape[-1]),
         "sqrt(H) comes too late: divide the scores by it before the softmax, not the result."),
        (_of(_scores),
         "nothing is masked: each token sees the future."),
        (_of(lambda q, k: _scores(q, k, 1)),
         "two things are missing: the scores are not divided by sqrt(H), and nothing is masked."),
        (lambda q, k, v: v * math.nan,
         "all of it is NaN: 0 times minus infinity is not a number. Fill the infinity in, or "
         "choose with torch.where; do not multiply."),
        (_of(lambda q, k: _scores(q, k).where(_mask(q) == 0, 0.0)),
         "the future's scores are set to zero. e to the power of 0 is 1, so the future still gets "
         "its share: set them to minus infinity."),
        (lambda q, k, v: F.softmax(_scores(q, k), -1).tril() @ v,
         "the future's probabilities are set to zero after the softmax, and what is left of a row "
         "does not add up to 1. Mask the scores, before the softmax."),
        (lambda q, k, v: (F.softmax(_scores(q, k), -1) + _mask(q)) @ v,
         "the mask is added after the softmax. It belongs before: to the scores."),
        (_of(lambda q, k: _scores(q, k) + _mask(q, torch.ge)),
         "the first row is NaN: each token is hidden from itself, and the first has nothing else."),
        (_of(lambda q, k: _scores(q, k) + _mask(q, torch.lt)),
         "each token sees itself and the future: the mask is reversed."),
        (_of(lambda q, k: _scores(q, k) + _mask(q, torch.le)),
         "the past and the token itself are masked, and the future is open: zeros and infinities "
         "are exchanged."),
        (_of(lambda q, k: _scores(q, k) + _mask(q), dim=0),
         "the softmax goes along the queries. Each query's row has to add up to 1: along the keys, "
         "the last dimension."),
        (_of(lambda q, k: _scores(k, q) + _mask(q)),
         "queries and keys are exchanged: row t holds the scores of token t's key. Rows belong to "
         "the queries."),
        (lambda q, k, v: _probabilities(q, k),
         "these are the probabilities [T, T]. The head's output is the mean of the values that "
         "they weight, [T, H]."),
        (lambda q, k, v: _probabilities(q, k).T @ v,
         "the values are mixed by the columns: multiply the probabilities as they are, not "
         "transposed, with v."),
        (lambda q, k, v: _probabilities(q, k) @ q,
         "the mean is taken of the queries. Mix the values, v."),
        (lambda q, k, v: _probabilities(q, k) @ k,
         "the mean is taken of the keys. Mix the values, v."),
        (lambda q, k, v: (_scores(q, k) + _mask(q)) @ v,
         "there is no softmax: scores are not probabilities."),
    ],
    properties=[
        (answer_property(_is_causal),
         "an earlier token notices a change of the last one: the future is not masked, or a row "
         "mixes tokens in another way than by its own probabilities."),
        (answer_property(lambda answer, q, k, v: agree(
            answer(q, k, torch.ones_like(v)), torch.ones_like(v))),
         "values that are all 1 do not give 1: the probabilities of a row do not add up to 1, or "
         "something else than the values is mixed."),
        (of_each(lambda found, q, k, v: agree(found[0], v[0])),
         "the first token's output is not its own value. It has nothing else to attend to."),
    ],
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
    if not is_pair or any(list(getattr(x, "shape", [])) != size for x in found):
        return "at nothing", False, []
    found = [torch.as_tensor(x) for x in found]
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


previous_token_head = Exercise(
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
        (of_each(lambda found, frequencies: sum(back < 0 for back in found[2]) < TEXT / 2),
         "for most tokens the largest score is at a later position, where the mask is. Which way "
         "does each pair turn, and are neighbours a pair?"),
        (of_each(lambda found, frequencies: found[0] != "at another token"),
         "the largest score is not at the position before: pair p of the query has to start "
         "exactly one position, the angle frequencies[p], behind the key."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
