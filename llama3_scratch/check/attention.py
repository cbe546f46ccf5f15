"""The exercises of notebook 04: the mask, the softmax, a whole head, a head made by hand."""

import math

import torch
import torch.nn.functional as F

from llama3_scratch.check.frame import examine
from llama3_scratch.model import attend, rotate


def _drawn(seed, *shapes):
    """Tensors from a seed, the same on every machine, on torch's default device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator, device="cpu") for shape in shapes]
    return [tensor.to(torch.get_default_device()) for tensor in drawn]


# --- 4.1: the mask from positions -----------------------------------------------------------------


def _ahead(queries, keys):
    return keys > queries[:, None]


def _filled(where, inside=-math.inf):
    return torch.where(where, inside, 0.0)


def causal_mask(answer):
    """Positions of queries [T] and of keys [S] -> [T, S]: 0, and minus infinity on the future."""

    def plain(answer):
        def with_one_large_number(queries, keys):
            found = answer(queries, keys)
            if isinstance(found, torch.Tensor) and found.is_floating_point():
                return found.where(~((found < -20) & found.isfinite()), -1e9)
            return found

        return with_one_large_number

    spans = (((0, 4), (0, 4)), ((5, 8), (0, 8)), ((2, 4), (0, 7)), ((6, 9), (4, 10)))
    cases = [tuple(torch.arange(*span) for span in both) for both in spans]

    def by_rows(queries, keys, diagonal):
        all_masked = torch.full((len(queries), len(keys)), -math.inf)
        return all_masked.triu(diagonal)

    mistakes = {
        "there is NaN in it: 0 times minus infinity is not a number. Choose between the two values "
        "with torch.where, or fill one in; do not multiply.":
            lambda q, k: _ahead(q, k) * -math.inf,
        "there is NaN in it: 0 times minus infinity is not a number, so do not multiply. It counts "
        "rows and columns, too: compare the positions.":
            lambda q, k: torch.ones(len(q), len(k)).triu(1) * -math.inf,
        "each token is hidden from itself: the diagonal is masked too. A token may look at itself, "
        "and the first one has nothing else to look at.": lambda q, k: _filled(k >= q[:, None]),
        "the wrong side is masked: each token sees itself and the future. Mask the keys whose "
        "position is larger than the query's.": lambda q, k: _filled(k < q[:, None]),
        "the past and the token itself are masked, and the future is open: zeros and infinities "
        "are exchanged.": lambda q, k: _filled(k <= q[:, None]),
        "each token sees one token of the future, the one after it.":
            lambda q, k: _filled(k > q[:, None] + 1),
        "rows and columns are exchanged: the mask has a row for each query and a column for each "
        "key.": lambda q, k: _filled(_ahead(q, k)).T,
        "it holds ones and zeros. The mask is added to the scores: 0 where a token may look, minus "
        "infinity where it may not.": lambda q, k: (~_ahead(q, k)).float(),
        "it holds ones on the future. The mask is added to the scores: minus infinity there, and 0 "
        "elsewhere.": lambda q, k: _ahead(q, k).float(),
        "it holds True and False. The mask is added to the scores: 0 where a token may look, minus "
        "infinity where it may not.": lambda q, k: ~_ahead(q, k),
        "it holds True and False: the right places, but the mask is added to the scores. Put minus "
        "infinity where it says True, and 0 elsewhere.": _ahead,
        "the infinity is positive: the softmax would give everything to the future.":
            lambda q, k: _filled(_ahead(q, k), math.inf),
        "it holds a large negative number. That works while the scores are small beside it; minus "
        "infinity, -math.inf, works always.": lambda q, k: _filled(_ahead(q, k), -1e9),
        "right where the queries begin at position 0, and only there: it counts rows and columns. "
        "Compare the positions.": lambda q, k: by_rows(q, k, 1),
        "right where the last query is the last key, and only there: it counts rows and columns. "
        "Compare the positions.": lambda q, k: by_rows(q, k, 1 + len(k) - len(q)),
        "right where the keys begin at position 0, and only there: it counts the keys. Compare "
        "their positions.": lambda q, k: _filled(_ahead(q, torch.arange(len(k)))),
        "right where the queries begin at position 0, and only there: it counts the queries. "
        "Compare their positions.": lambda q, k: _filled(_ahead(torch.arange(len(q)), k)),
    }  # fmt: skip
    examine(plain(answer), lambda q, k: _filled(_ahead(q, k)), cases, mistakes)


# --- 4.2: the softmax -----------------------------------------------------------------------------


def softmax(answer):
    """Scores [T, S], of any size, minus infinity among them -> probabilities [T, S]."""
    square, levels, large = _drawn(11, (5, 5), (4, 6), (3, 7))
    square = square + _filled(_ahead(torch.arange(5), torch.arange(5)))
    levels = levels + torch.tensor([[-200.0], [0.0], [-90.0], [30.0]])  # every row on its own
    cases = [(square,), (levels,), (150 * large,)]

    def exps(scores):
        return (scores - scores.max(-1, keepdim=True).values).exp()

    def of_columns(scores):
        e = (scores - scores.max(0, keepdim=True).values).exp()
        return e / e.sum(-1, keepdim=True)

    def over_all_maxima(scores):
        e = (scores - scores.max()).exp()
        return e / e.sum(-1, keepdim=True)

    mistakes = {
        "right for small scores, NaN for large ones: e to the power of 89 is too large for "
        "float32. Subtract the largest score of each row first; it cancels.":
            lambda s: s.exp() / s.exp().sum(-1, keepdim=True),
        "rows with small scores come out as NaN: the largest score of the whole matrix was "
        "subtracted, and nothing is left of them. Each row needs its own.": over_all_maxima,
        "the largest score of each column was subtracted, and it does not cancel: a row is divided "
        "by its sum, so one number is subtracted from the whole row.": of_columns,
        "the columns add up to 1. It is each query's row that has to: the softmax goes along the "
        "keys, the last dimension.": lambda s: F.softmax(s, dim=-2),
        "all rows together add up to 1. Divide each row by its own sum.":
            lambda s: F.softmax(s.flatten(), dim=0).view_as(s),
        "every row is divided by the sum over all rows. Divide each row by its own sum.":
            lambda s: exps(s) / exps(s).sum(),
        "the largest of each row is 1: not divided by the row's sum yet.": exps,
        "these are the logarithms of the probabilities.": lambda s: F.log_softmax(s, dim=-1),
        "the scores are divided by their sum. First comes e to the power of each.":
            lambda s: s / s.sum(-1, keepdim=True),
        "the base is 2. The softmax raises e to the scores.": lambda s:
            F.softmax(s * math.log(2), dim=-1),
    }  # fmt: skip
    examine(answer, lambda s: F.softmax(s, dim=-1), cases, mistakes)


# --- 4.3: a whole head ----------------------------------------------------------------------------


def one_head(answer):
    """One causal head: q, k (rotated already) and v, [T, H] each -> its output [T, H]."""
    sizes = ((1, 5, 8), (2, 7, 4), (3, 6, 10))
    cases = [tuple(2 * x for x in _drawn(seed, *[(T, H)] * 3)) for seed, T, H in sizes]

    def mask(q, compare=torch.gt):
        t = torch.arange(len(q))
        return _filled(compare(t, t[:, None]))

    def right(q, k, v):
        one = (x[:, None] for x in (q, k, v))  # N = K = 1
        return attend(*one, mask(q))[:, 0]

    def scores(q, k, by=None):
        return q @ k.T / math.sqrt(by or q.shape[-1])

    def of(masked, dim=-1):
        """A head that is wrong only in its masked scores, or in where its softmax goes."""
        return lambda q, k, v: F.softmax(masked(q, k), dim=dim) @ v

    def after(change):
        """A head that is wrong only in what it does with its probabilities."""
        return lambda q, k, v: change(F.softmax(scores(q, k) + mask(q), dim=-1), q, v)

    mistakes = {
        "the scores are too small: did you divide by H instead of sqrt(H)?":
            of(lambda q, k: scores(q, k, q.shape[-1] ** 2) + mask(q)),
        "the scores are too large: they are not divided by sqrt(H).":
            of(lambda q, k: scores(q, k, 1) + mask(q)),
        "the scores are multiplied by sqrt(H). Divide.":
            of(lambda q, k: scores(q, k, 1 / q.shape[-1]) + mask(q)),
        "divided by the square root of T, the number of tokens. It is H, the size of a head: the "
        "last dimension of q.": of(lambda q, k: scores(q, k, len(q)) + mask(q)),
        "sqrt(H) comes too late: divide the scores by it before the softmax, not the result.":
            lambda q, k, v: F.softmax(q @ k.T + mask(q), -1) @ v / math.sqrt(q.shape[-1]),
        "nothing is masked: each token sees the future.": of(scores),
        "two things are missing: the scores are not divided by sqrt(H), and nothing is masked.":
            of(lambda q, k: scores(q, k, 1)),
        "all of it is NaN: 0 times minus infinity is not a number. Fill the infinity in, or choose "
        "with torch.where; do not multiply.": lambda q, k, v: v * math.nan,
        "the future's scores are set to zero. e to the power of 0 is 1, so the future still gets "
        "its share: set them to minus infinity.":
            of(lambda q, k: scores(q, k).where(mask(q) == 0, 0.0)),
        "the future's probabilities are set to zero after the softmax, and what is left of a row "
        "does not add up to 1. Mask the scores, before the softmax.":
            lambda q, k, v: F.softmax(scores(q, k), -1).tril() @ v,
        "the mask is added after the softmax. It belongs before: to the scores.":
            lambda q, k, v: (F.softmax(scores(q, k), -1) + mask(q)) @ v,
        "the first row is NaN: each token is hidden from itself, and the first has nothing else.":
            of(lambda q, k: scores(q, k) + mask(q, torch.ge)),
        "each token sees itself and the future: the mask is turned round.":
            of(lambda q, k: scores(q, k) + mask(q, torch.lt)),
        "the past and the token itself are masked, and the future is open: zeros and infinities "
        "are exchanged.": of(lambda q, k: scores(q, k) + mask(q, torch.le)),
        "the softmax goes along the queries. Each query's row has to add up to 1: along the keys, "
        "the last dimension.": of(lambda q, k: scores(q, k) + mask(q), dim=0),
        "queries and keys are exchanged: row t is what token t's key meets. Rows belong to the "
        "queries.": of(lambda q, k: scores(k, q) + mask(q)),
        "these are the probabilities [T, T]. The head's output is the mean of the values that they "
        "weight, [T, H].": after(lambda p, q, v: p),
        "the values are mixed by the columns: multiply the probabilities as they are, not "
        "transposed, with v.": after(lambda p, q, v: p.T @ v),
        "the mean is taken of the queries. Mix the values, v.": after(lambda p, q, v: p @ q),
        "the mean is taken of the keys. Mix the values, v.":
            lambda q, k, v: F.softmax(scores(q, k) + mask(q), dim=-1) @ k,
        "there is no softmax: scores are no probabilities.":
            lambda q, k, v: (scores(q, k) + mask(q)) @ v,
    }  # fmt: skip
    examine(answer, right, cases, mistakes)


# --- 4.4: a head made by hand ---------------------------------------------------------------------

TEXT = 24  # tokens of the text that the head is tried on


def previous_token_head(answer):
    """Frequencies [P] -> q [H], k [H], the same for every token, that look one position back."""
    pairs = ((12, 5e5), (16, 1e4), (64, 5e5))
    cases = [(theta ** -(torch.arange(P) / P),) for P, theta in pairs]

    def tried(q, k, frequencies):
        """What a head with such a q and k does with a text."""
        t = torch.arange(TEXT)
        angles = torch.outer(t.float(), frequencies)
        rotations = torch.polar(torch.ones_like(angles), angles)
        q, k = (rotate(x.float().expand(TEXT, 1, -1), rotations)[:, 0] for x in (q, k))
        scores = q @ k.T / math.sqrt(q.shape[-1])
        masked = (scores + _filled(_ahead(t, t))).softmax(-1)
        if (scores.max() - scores.min()) <= 1e-4 * scores.abs().max():
            return "at no token", False, []
        if (masked.argmax(-1)[1:] == t[:-1]).all():
            return "at the token before", bool(masked.diagonal(-1).min() > 0.5), []
        back = t - scores.argmax(-1)  # the future counted as well
        return "at another token", False, back[1:-1].tolist()

    def looks(function):
        def seen(frequencies):
            found = function(frequencies)
            if found is None:
                return None
            size = [2 * len(frequencies)]
            is_pair = isinstance(found, tuple | list | torch.Tensor) and len(found) == 2
            if is_pair and all(isinstance(x, torch.Tensor) and x.is_complex() for x in found):
                return "complex", False, []
            if not is_pair or any(list(getattr(x, "shape", [])) != size for x in found):
                return "at nothing", False, []
            verdict = tried(*found, frequencies)
            paired = (x.unflatten(-1, (2, -1)).T.flatten() for x in found)
            if verdict[0] == "at another token" and tried(*paired, frequencies)[1]:
                return "two halves", False, []
            return verdict

        return seen

    def turned(by, size=1000.0, alike=False):
        def made(frequencies):
            one = torch.ones_like(frequencies)
            ahead = by * (one if alike else frequencies)
            q = torch.view_as_real(torch.polar(one * size, ahead)).flatten()
            return q, torch.view_as_real(torch.polar(one, 0 * one)).flatten()

        return looks(made)

    mistakes = {
        "it looks one position ahead, where the mask is: turn the other way.": turned(1),
        "every pair is turned by the same angle. In one position each pair turns by a frequency of "
        "its own, so each needs an angle of its own.": turned(-1, alike=True),
        "every pair is turned by the same angle, and forward. In one position each pair turns by a "
        "frequency of its own, and the key to be found is one position back.":
            turned(1, alike=True),
        "it looks two positions back, twice as far as it should.": turned(-2),
        "each token looks at itself: q and k point the same way in every pair. Turn one of them, "
        "by as much as one position does.": turned(0),
        "it looks at the token before, but with less than half of its probability. Make q or k "
        "longer.": turned(-1, 1.0),
        "all scores are equal: nothing tells one position from another.": turned(0, 0.0),
        "it has to return a query and a key, q, k: two tensors of 2 P numbers each.":
            lambda _: ("at nothing", False, []),
        "q and k are complex numbers still. torch.view_as_real(q).flatten() lays them out as real "
        "ones.": lambda _: ("complex", False, []),
        "the numbers are right, and they lie in two halves. In Llama's files neighbours are a "
        "pair: cosine, sine, cosine, sine.": lambda _: ("two halves", False, []),
    }  # fmt: skip
    examine(looks(answer), turned(-1), cases, mistakes)
