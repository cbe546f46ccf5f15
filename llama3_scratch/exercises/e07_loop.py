"""The exercises of notebook 07: the layer, the model, the lens, who wrote a logit, equal logits.

Its last checker, `model`, puts the reader's functions together.
"""

import functools
import math
import textwrap
from dataclasses import replace
from importlib import import_module
from types import FunctionType, SimpleNamespace

import regex
import torch

from llama3_scratch import PROMPT, STORY, load
from llama3_scratch import model as core
from llama3_scratch.config import Config, weight_shapes
from llama3_scratch.errors import first_line, require
from llama3_scratch.exercises.frame import (
    SECONDS,
    Exercise,
    agree,
    answer_property,
    desk,
    difference,
    drawn,
    of_each,
    time_limit,
)
from llama3_scratch.exercises.workbook import CORE
from llama3_scratch.model import causal_mask, layer, rotations_at
from llama3_scratch.tokenizer import SPLIT_PATTERN

TINY = Config(4, 1, 2, 1, 5, 3, 0.05, 500000.0, 0.3)  # D, L, N, K, V; F = 3
SMALL = Config(24, 3, 6, 2, 101, 7, 0.02, 500000.0, 1.3)  # all sizes differ from one another
TEXTS = {"prompt": PROMPT, "story": STORY}


def _weights(shapes, seed):
    tensors = zip(shapes.items(), drawn(seed, *shapes.values()), strict=True)
    return {
        name: 1 + 0.3 * w if "norm" in name else w if "emb" in name else w / size[-1] ** 0.5
        for (name, size), w in tensors
    }


def _values_or_dtype(answer, *case):
    """In bfloat16 the result's dtype alone: its values depend on the order of the sums."""
    found = answer(*case)
    (weights,) = (each for each in case if isinstance(each, dict))
    wide = all(w.dtype == torch.float32 for w in weights.values())
    return found if wide or not isinstance(found, torch.Tensor) else [str(found.dtype)]


# --- A layer --------------------------------------------------------------------------------------


def _layer_cases():
    sizes = {
        "x [2, 4]": (TINY, (2,), torch.float32),
        "x [5, 24]": (SMALL, (5,), torch.float32),
        "x [3, 7, 24], three texts at once": (SMALL, (3, 7), torch.float32),
        "x [6, 24] in bfloat16": (SMALL, (6,), torch.bfloat16),
    }
    cases = {}
    for seed, (name, (config, rows, dtype)) in enumerate(sizes.items(), start=1):
        weights = _weights(layer(weight_shapes(config), 0), seed + 10)
        weights = {part: w.to(dtype) for part, w in weights.items()}
        (x,), positions = drawn(seed, (*rows, config.dim)), torch.arange(rows[-1])
        rotations, mask = rotations_at(positions, config), causal_mask(positions, rows[-1])
        cases[name] = x.to(dtype), weights, rotations, mask, config
    return cases


def _layer(first=lambda x, n: (n(x), x), second=lambda x, a, m, n: (n(m), m), f=core):
    """A layer by what its parts read and where its sums start; it calls the functions of f.

    first: (x, norm) -> what attention reads, where the first sum starts; second: the same for
    feed-forward, from x, attention's change a, the middle m and the second norm.
    """

    def answer(x, weights, rotations, mask, config):
        def norm(name):
            return lambda rows: f.rms_norm(rows, weights[f"{name}.weight"], config.norm_eps)

        reads, start = first(x, norm("attention_norm"))
        change = f.attention(reads, weights, rotations, mask, config)
        middle = start + change
        reads, start = second(x, change, middle, norm("ffn_norm"))
        return start + f.feed_forward(reads, weights)

    return answer


def _post_norm(x, w, r, m, c):
    middle = core.rms_norm(
        x + core.attention(x, w, r, m, c), w["attention_norm.weight"], c.norm_eps
    )
    after = middle + core.feed_forward(middle, w)
    return core.rms_norm(after, w["ffn_norm.weight"], c.norm_eps)


def _with_norms(first, second):
    """A block whose norms have other weights."""

    def wrong(x, w, r, m, c):
        norms = {"attention_norm.weight": w[first], "ffn_norm.weight": w[second]}
        return core.block(x, w | norms, r, m, c)

    return wrong


def _right_without(*names):
    """Whether an answer is right where these matrices are zero, so that a part adds nothing."""

    def holds(answer, x, w, r, m, c):
        silent = w | {name: torch.zeros_like(w[name]) for name in names}
        right = core.block(x, silent, r, m, c)
        return w["ffn_norm.weight"].dtype != torch.float32 or agree(
            answer(x, silent, r, m, c), right
        )

    return answer_property(holds)


block = Exercise(
    "x [..., T, D], one layer's weights, rotations [T, P], mask [T, T], Config -> [..., T, D]: one "
    "layer of Llama 3, equations 7.1 and 7.2.",
    right=lambda x, weights, rotations, mask, config: core.block(
        x, weights, rotations, mask, config),
    cases=_layer_cases,
    run=_values_or_dtype,
    mistakes=[
        (_layer(second=lambda x, a, m, n: (n(m), n(m))),
         "the second sum starts from the normalised rows. Only what a part reads is normalised: "
         "both sums start from the stream as it is, here m."),
        (_layer(first=lambda x, n: (n(x), n(x))),
         "the first sum starts from the normalised rows. Only what a part reads is normalised: "
         "both sums start from the stream as it is, here x."),
        (_layer(lambda x, n: (n(x), n(x)), lambda x, a, m, n: (n(m), n(m))),
         "both sums start from the normalised rows. Only what a part reads is normalised: the sums "
         "start from the stream as it is, x and then m."),
        (_layer(second=lambda x, a, m, n: (n(m), x)),
         "the second sum starts from x, so what attention added to the stream is lost. It starts "
         "from m."),
        (_layer(second=lambda x, a, m, n: (n(x), m)),
         "the feed-forward part reads x, so it does not see what attention added. It reads m, "
         "normalised."),
        (_layer(second=lambda x, a, m, n: (n(a), m)),
         "the feed-forward part reads attention's change alone. It reads the whole stream in the "
         "middle of the layer, m, normalised."),
        (_layer(lambda x, n: (x, x), lambda x, a, m, n: (m, m)),
         "the norms are missing: each part reads its rows normalised."),
        (_layer(second=lambda x, a, m, n: (m, m)),
         "the second norm is missing: the feed-forward part reads m normalised."),
        (_layer(first=lambda x, n: (x, x)),
         "the first norm is missing: attention reads x normalised."),
        (_with_norms("attention_norm.weight", "attention_norm.weight"),
         "both norms use `attention_norm.weight`. The second has its own, `ffn_norm.weight`."),
        (_with_norms("ffn_norm.weight", "attention_norm.weight"),
         "the norms' weights are exchanged: `attention_norm.weight` belongs to the first norm, "
         "`ffn_norm.weight` to the second."),
        (lambda x, w, r, m, c: core.block(x, w, r, m, replace(c, norm_eps=1e-5)),
         "eps is typed in, or missing: use `config.norm_eps`."),
        (_post_norm,
         "you normalise the sums. That is the layer of 2017; in Llama 3 the stream itself is never "
         "normalised, only what the two parts read."),
        (_layer(lambda x, n: (n(x), 0), lambda x, a, m, n: (n(m), 0)),
         "nothing is added: the result of each part replaces the stream. `x + ...` and `m + ...` "
         "are missing."),
    ],
    properties=[
        (_right_without("attention.wo.weight", "feed_forward.w2.weight"),
         "where both parts give zeros, x should come out as it went in. In your layer it does "
         "not: something happens to the stream itself."),
        (_right_without("feed_forward.w2.weight"),
         "the first half is not right: with a feed-forward part that gives zeros the result should "
         "be x + Attention(RMSNorm(x))."),
        (_right_without("attention.wo.weight"),
         "the second half is not right: what does the feed-forward part read, and what is its "
         "result added to?"),
    ],
    hints=(
        "Each equation is two lines of code: normalise a copy, then add what the part makes of it.",
        "The second equation does not mention x. Which of your names is m, and is it normalised?",
    ),
)  # fmt: skip


# --- The model ------------------------------------------------------------------------------------


def _model_cases():
    sizes = {
        "3 tokens": (TINY, (3,), torch.float32),
        "7 tokens": (SMALL, (7,), torch.float32),
        "tokens [2, 5], two texts at once": (SMALL, (2, 5), torch.float32),
        "4 tokens, weights in bfloat16": (SMALL, (4,), torch.bfloat16),
    }
    cases = {}
    for seed, (name, (config, shape, dtype)) in enumerate(sizes.items(), start=1):
        weights = {part: w.to(dtype) for part, w in _weights(weight_shapes(config), seed).items()}
        numbers = torch.arange(math.prod(shape)).view(shape)
        cases[name] = weights, (numbers * 3 + 2) % config.vocab_size, config
    return cases


def _whole(f=core, layers=range, mask=causal_mask, rotations=rotations_at, output="output"):
    """The model, in which something may be wrong, from the functions of f."""

    def answer(weights, tokens, config):
        positions = torch.arange(tokens.shape[-1])
        made = rotations(positions, config), mask(positions, len(positions))
        stream = weights["tok_embeddings.weight"][tokens]
        for i in layers(config.n_layers):
            stream = f.block(stream, layer(weights, i), *made, config)
        normed = f.rms_norm(stream, weights["norm.weight"], config.norm_eps)
        return (normed @ weights[f"{output}.weight"].T).float()

    return answer


def _is_causal(answer, weights, tokens, config):
    """Whether the first rows stay what they are when the last token is another one."""
    other = tokens.clone()
    other[..., -1] = (other[..., -1] + 1) % config.vocab_size
    rows = [answer(weights, ids, config)[..., :-1, :] for ids in (tokens, other)]
    return bool(((rows[0] - rows[1]).abs() <= 1e-4 * rows[0].abs().max()).all())


forward = Exercise(
    "All weights, tokens [..., T], Config -> [..., T, V], float32: the logits at every position, "
    "equations 7.3 and 7.4.",
    right=lambda weights, tokens, config: core.forward(weights, tokens, config),
    cases=_model_cases,
    run=_values_or_dtype,
    mistakes=[
        (_whole(SimpleNamespace(block=core.block, rms_norm=lambda x, weight, eps: x)),
         "the last norm is missing: after the last layer each row is normalised once more, with "
         "`norm.weight`."),
        (lambda w, ids, c: core.forward(
            w | {"norm.weight": torch.ones_like(w["norm.weight"])}, ids, c),
         "the last norm's weight is missing: multiply by `norm.weight`."),
        (lambda w, ids, c: core.forward(w, ids, replace(c, norm_eps=1e-5)),
         "eps is typed in, or missing: use `config.norm_eps`."),
        (_whole(mask=lambda positions, T: torch.zeros(T, T)),
         "every token sees those after it: the mask is missing, or all zeros."),
        (_whole(rotations=lambda *args: rotations_at(*args) ** 0),
         "no position has any effect: the rotations turn by nothing."),
        (_whole(layers=lambda L: [0] * L),
         "all layers have the weights of layer 0. Layer i has its own: `layer(weights, i)`."),
        (_whole(layers=lambda L: range(L - 1)),
         "one layer is missing: they count from 0 to L-1."),
        (_whole(layers=lambda L: range(1, L)),
         "layer 0 is missing: layers count from 0."),
        (_whole(layers=lambda L: [L - 1]),
         "only the last layer has an effect. Each layer reads what the one before it left."),
        (_whole(output="tok_embeddings"),
         "the rows are compared with the embedding table. The output matrix is `output.weight`."),
        (lambda w, ids, c: core.forward(w, ids, c).softmax(-1),
         "these are probabilities. The logits are asked for, before any softmax."),
        (lambda w, ids, c: core.forward(w, ids, c).to(w["norm.weight"].dtype),
         "with weights in bfloat16 the logits should be float32: `.float()` at the end."),
    ],
    properties=[
        (answer_property(_is_causal),
         "another last token changes the logits of positions before it: is the mask right?"),
    ],
    hints=(
        "Before the loop: the embeddings' rows, the rotations, the mask. After it: a norm and a "
        "matrix. In the loop there is one line.",
        "How many positions are there if `tokens` is [2, 5]? The last dimension counts: "
        "`tokens.shape[-1]`.",
    ),
)  # fmt: skip


# --- Settled predictions --------------------------------------------------------------------------


def _tops_cases():
    rows = [5, 5, 6, 7, 8], [5, 6, 5, 8, 5], [5, 6, 6, 9, 8], [5, 6, 5, 9, 8]
    cases = [(torch.tensor(rows),)]
    for seed, L, T in ((1, 9, 23), (2, 4, 14), (3, 12, 31), (4, 1, 6)):
        (numbers,) = drawn(seed, (L + 1, T))
        tops = (numbers > -0.4).long() + (numbers > 0.4) + 7  # three tokens
        tops[:, 1] = 8  # settled before the first layer
        cases.append((tops,))
    return [*cases, (cases[3][0][:, 5:6],)]  # one position


def _list_as_tensor(answer, first, *rest):
    found = answer(first, *rest)
    return torch.tensor(found, device=first.device) if isinstance(found, list) else found


def _first_row(tops):
    agrees = (tops == tops[-1]).flip(0).int()
    return len(tops) - agrees.cumprod(0).sum(0)


def _agree_from_there_on(found, tops):
    return all(bool((tops[n:, t] == tops[-1, t]).all()) for t, n in enumerate(found.tolist()))


def _not_before(found, tops):
    return all(n == 0 or tops[n - 1, t] != tops[-1, t] for t, n in enumerate(found.tolist()))


settled = Exercise(
    "tops [L+1, T], the top token after 0, 1, ..., L layers -> [T], whole numbers from 0 to L: "
    "after how many layers the top token is the final one and stays it.",
    right=_first_row,
    cases=_tops_cases,
    run=_list_as_tensor,
    mistakes=[
        (lambda tops: (tops == tops[-1]).int().argmax(0),
         "this is the first row with the final token on top. It may lose the top again: the "
         "question is from which row on it stays there."),
        (lambda tops: (tops != tops[-1]).sum(0),
         "you counted the rows that disagree with the last one. A row that agrees but comes before "
         "one that disagrees counts too: the token does not stay on top there."),
        (lambda tops: len(tops) - (tops != tops[-1]).flip(0).int().argmax(0),
         "right except where all rows agree: there `argmax` finds nothing and says 0, and you get "
         "L+1. The answer there is 0."),
        (lambda tops: _first_row(tops) - 1,
         "one too few: this is the last row that still disagrees, and -1 where all rows agree. The "
         "final token is on top from the next row on."),
        (lambda tops: (_first_row(tops) - 1).clamp(0),
         "one too few: this is the last row that still disagrees. The final token is on top from "
         "the next row on."),
        (lambda tops: _first_row(tops) + 1,
         "one too many: row 0 is the stream before any layer, so a row's number is the number of "
         "layers that have run."),
        (lambda tops: len(tops) - _first_row(tops),
         "you counted how many rows agree at the end. The question is at which row they begin."),
    ],
    properties=[
        (of_each(lambda found, tops: bool(((found >= 0) & (found < len(tops))).all())),
         "a result is not between 0 and L. Row 0 comes before any layer, and the last row, L, "
         "always agrees with itself."),
        (of_each(_agree_from_there_on),
         "a position is called settled too early: after your number of layers its top token still "
         "changes. From that row on, every row has to agree with the last."),
        (of_each(_not_before),
         "a position is called settled too late: the row before yours, and all rows after it, "
         "already have the final token on top."),
    ],
    hints=(
        "Go through the rows in order. If a position disagrees with the last row, nothing up to "
        "and with this row is settled.",
        "Row 0 has seen no layer. What is the answer where row 0 and all others agree, and where "
        "only the last one does?",
    ),
)  # fmt: skip


# --- Who wrote a logit ----------------------------------------------------------------------------


def _parts_cases():
    cases = {}
    for seed, (config, M) in enumerate(((TINY, 3), (SMALL, 7), (SMALL, 12)), start=1):
        shapes = {"norm.weight": (config.dim,), "output.weight": (config.vocab_size, config.dim)}
        weights = _weights(shapes, seed)
        (parts,) = drawn(seed + 20, (M, config.dim))
        parts = 0.2 * parts * torch.arange(1, M + 1)[:, None]  # later parts are larger
        cases[f"{M} parts of size {config.dim}"] = parts, weights, 2 * seed, seed - 1, config
    return cases


def _direction(w, token, other):
    return w["output.weight"][token] - w["output.weight"][other]


def _size(row, c):
    return (row.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt()


def _shares(parts, w, token, other, c):
    return parts / _size(parts.sum(0), c) @ (w["norm.weight"] * _direction(w, token, other))


def _lens(stages, w, token, other, c):
    """What the logit lens reads at each stage."""
    return core.rms_norm(stages, w["norm.weight"], c.norm_eps) @ _direction(w, token, other)


def _adds_up(found, parts, w, token, other, c):
    return agree(found.sum(), _shares(parts, w, token, other, c).sum())


def _parts_are_apart(answer, parts, w, token, other, c):
    """Whether half of one part, added to another, leaves all other shares as they are."""
    moved = parts.clone()
    moved[0], moved[1] = parts[0] / 2, parts[1] + parts[0] / 2  # the sum is the same
    before, after = (answer(rows, w, token, other, c) for rows in (parts, moved))
    return agree(after[2:], before[2:]) and agree(after[0], before[0] / 2)


attribute = Exercise(
    "parts [M, D], all weights, two token ids, Config -> [M]: what each part adds to the logit of "
    "`token` minus that of `other`, equation 7.6.",
    right=_shares,
    cases=_parts_cases,
    run=_list_as_tensor,
    mistakes=[
        (_lens,
         "each part is normalised by its own size, so the shares do not add up. There is one norm, "
         "of the whole stream: divide every part by the size of the sum."),
        (lambda parts, *case: _lens(parts.cumsum(0), *case),
         "this is the lens on the stream after each part. The question is what each part adds by "
         "itself."),
        (lambda parts, *case: _lens(parts.cumsum(0), *case).diff(prepend=torch.zeros(1)),
         "these are the steps of the lens from one stream to the next. They add up, but each sum "
         "is divided by a size of its own; here all parts are divided by the last one's."),
        (lambda *case: _shares(*case).cumsum(0),
         "these are running sums. Each part is asked for by itself."),
        (lambda parts, w, t, o, c: parts / _size(parts.sum(0), c) @ (
            w["norm.weight"] * w["output.weight"][t]),
         "this is the logit of `token` alone. The question is for the difference: the same number "
         "added to all logits would change no probability."),
        (lambda parts, w, t, o, c: _shares(parts, w, o, t, c),
         "all signs are exchanged: it is the logit of `token` minus that of `other`."),
        (lambda parts, w, t, o, c: parts / _size(parts.sum(0), c) @ _direction(w, t, o),
         "the last norm's weight is missing: each column is multiplied by its own factor."),
        (lambda parts, w, t, o, c: parts @ (w["norm.weight"] * _direction(w, t, o)),
         "the last norm's division is missing: divide by the size of the whole stream."),
        (lambda *case: _shares(*case[:-1], replace(case[-1], norm_eps=1e-5)),
         "eps is typed in, or missing: use `config.norm_eps`, under the root."),
        (lambda *case: _shares(*case).softmax(-1),
         "no softmax: shares may be negative, and they add up to the difference, not to 1."),
        (lambda *case: _shares(*case) / _shares(*case).sum(),
         "these add up to 1. Leave them in the logits' own unit, so that they add up to the "
         "difference."),
    ],
    properties=[
        (of_each(_adds_up),
         "the shares do not add up to the difference of the two logits. The sum of all parts, "
         "normalised, times the output matrix, is what they should add up to."),
        (answer_property(_parts_are_apart),
         "a part's share depends on how the others are cut. Only their sum may matter, through its "
         "size."),
    ],
    hints=(
        "A product with a sum is a sum of products. Where does the sum of all parts appear in "
        "equation 7.6, and where a single part?",
        "First the one number that all parts are divided by, from `parts.sum(0)`. Then one vector "
        "[D], made of `norm.weight` and two rows of `output.weight`.",
    ),
)  # fmt: skip


# --- Equal logits ---------------------------------------------------------------------------------


def _logit_pairs():
    """{what they are: (ours, theirs, tolerance)}"""
    exact = torch.tensor([[1.0, -4.0, 2.0], [0.5, 3.0, -1.0]])
    at_the_limit = torch.tensor([[1.0, 0.0, -1.0], [0.5, -0.5, 0.5]])
    (theirs,) = drawn(7, (6, 13))
    theirs = 3 * theirs
    theirs[2, 5] = 1e-4  # one logit near 0
    scale, largest = theirs.abs().max(), divmod(int(theirs.abs().argmax()), theirs.shape[1])

    def lowest(row):  # moved up a little, it changes no argmax
        return row, int(theirs[row].argmin())

    def moved(by, *places):
        """theirs, off by a share of its largest logit: up at the first place, down at the next."""
        ours = theirs.clone()
        for sign, place in zip((1, -1), places, strict=False):
            ours[place] += sign * by * scale
        return ours

    outward = torch.sign(theirs[largest])  # makes the largest logit larger
    pairs = {
        "equal logits": (theirs, theirs),
        "rounding": (0.1 * moved(2e-6, (2, 5), (4, 1)), 0.1 * theirs),
        "rounding of one large logit": (100 * moved(7e-6, largest), 100 * theirs),
        "rounding of large logits": (100 * moved(7e-6, largest, (2, 5)), 100 * theirs),
        "equal logits, all negative": (theirs - 20, theirs - 20),
        "one logit too large": (moved(0.01, lowest(3)), theirs),
        "one logit too small": (moved(-0.01, lowest(1)), theirs),
        "one wrong logit at the last position": (moved(0.01, lowest(5)), theirs),
        "one logit too large, one too small": (moved(0.01, (2, 1), (4, 7)), theirs),
        "one logit somewhat wrong": (moved(2e-4, (2, 8)), theirs),
        "one logit wrong, all of them small": (0.01 * moved(5e-5, (2, 5)), 0.01 * theirs),
        "one logit a little wrong": (moved(1.5e-5, (0, 6)), theirs),
        "another token on top at position 2": (moved(1.5, (2, 3)), theirs),
        "another token on top at the end": (moved(1.5, (5, 3)), theirs),
        "one logit is NaN": (theirs.where(theirs != theirs[1, 4], math.nan), theirs),
        "the same logit is NaN in both": (theirs.where(theirs != theirs[1, 4], math.nan),) * 2,
        "one logit is infinite": (theirs.where(theirs != theirs[3, 2], math.inf), theirs),
    }
    wider = {
        "a difference that is exactly the limit": (exact + at_the_limit, exact, 0.25),
        "rounding in a row of small logits": (exact + 0.9 * torch.eye(2, 3).flip(0), exact, 0.25),
        "rounding of bfloat16, tolerance 0.01": (moved(0.006, (0, 6), (3, 2)), theirs, 0.01),
        "the largest logit too large, tolerance 0.5": (
            moved(0.6 * outward, largest), theirs, 0.5),
    }  # fmt: skip
    return wider | {name: (*pair, 1e-5) for name, pair in pairs.items()}


def _all_within(changes, limit):
    return bool((changes.abs() <= limit).all())


def _near(ours, theirs, tolerance):
    return _all_within(ours - theirs, tolerance * theirs.abs().max())


def _numbers_only(holds):
    """A property asked where theirs has no NaN."""
    return answer_property(lambda answer, a, b, tol: b.isnan().any() or holds(answer, a, b, tol))


def _one_wrong_is_noticed(answer, ours, theirs, tolerance):
    """Each logit in turn, by one and a half limits too large, then too small."""
    step = 1.5 * tolerance * theirs.abs().max()
    wrong = torch.eye(theirs.numel(), device=theirs.device).view(-1, *theirs.shape) * step
    return not any(answer(theirs + each, theirs, tolerance) for each in (*wrong, *-wrong))


def _tolerance_is_used(answer, ours, theirs, tolerance):
    shifted = theirs + 0.1 * theirs.abs().max()
    return answer(shifted, theirs, 0.15) and not answer(shifted, theirs, 0.06)


def _size_does_not_matter(answer, ours, theirs, tolerance):
    shifted = theirs + 0.5 * tolerance * theirs.abs().max()
    return all(answer(by * shifted, by * theirs, tolerance) for by in (1e-3, 1, 1e3, -1))


same_logits = Exercise(
    "ours, theirs [T, V], tolerance -> True if every logit differs by at most tolerance times the "
    "largest |logit| of theirs, else False.",
    right=_near,
    cases=_logit_pairs,
    mistakes=[
        (lambda a, b, tol: _near(a[-1], b[-1], tol),
         "you look at the last position alone. All others may be wrong, and they are where a "
         "missing mask shows."),
        (lambda a, b, tol: bool(a[-1].argmax() == b[-1].argmax()),
         "you compare the token on top at the last position. One right argmax proves nothing."),
        (lambda a, b, tol: torch.equal(a.argmax(-1), b.argmax(-1)),
         "you compare which token is on top. That says nothing about the values of the logits."),
        (lambda a, b, tol: not bool(((a - b).abs() > tol * b.abs().max()).any()),
         "NaN passes: a comparison with NaN is false, so `not (difference > limit)` is true. Ask "
         "for `<=` instead."),
        (lambda a, b, tol: bool(((a - b).abs() < tol * b.abs().max()).all()),
         "a difference that is exactly the limit is allowed, \"at most\": `<=`, not `<`."),
        (lambda a, b, tol: bool(torch.isclose(
            a, b, rtol=0, atol=float(tol * b.nan_to_num().abs().max()), equal_nan=True).all()),
         "NaN in both passes. A NaN is no number that could be the same: neither model is right."),
        (lambda a, b, tol: bool(((a - b).abs() <= tol * b.abs().amax(-1, keepdim=True)).all()),
         "you measure each row against its own largest logit. The limit is one for all rows: a "
         "share of the largest |logit| of theirs."),
        (lambda a, b, tol: bool((a - b).abs().max() <= tol * max(a.max(), b.abs().max())),
         "an infinite logit of ours passes: it makes your limit infinite. Take the limit from "
         "theirs alone."),
        (lambda a, b, tol: bool((a - b).max() <= tol * b.abs().max()),
         "logits of ours that are far too small are not noticed: take the absolute value of the "
         "difference."),
        (lambda a, b, tol: bool((a - b).abs().mean() <= tol * b.abs().max()),
         "you take the mean of the differences. One wrong logit among thousands is lost in it: "
         "every one has to be within the tolerance."),
        (lambda a, b, tol: _all_within(a - b, tol),
         "the tolerance is a share of the largest logit, and you use it as a difference. Logits a "
         "hundred times larger have rounding errors a hundred times larger."),
        (lambda a, b, tol: torch.allclose(a, b, rtol=tol, atol=tol),
         "`torch.allclose` takes a share of each logit, `rtol`, and a difference, `atol`. Here the "
         "limit is the same for all: a share of the largest logit."),
        (lambda a, b, tol: _all_within(a - b, tol * b.abs()),
         "you measure each difference against its own logit. A logit near 0 may be off by more "
         "than its own size from rounding alone: measure against the largest."),
        (lambda a, b, tol: _all_within(a - b, tol * b.max()),
         "you measure against the largest logit, but all of them may be negative. Take the largest "
         "|logit|."),
        (lambda a, b, tol: _all_within(a - b, tol * a.abs().max()),
         "you measure against the largest |logit| of ours. If ours is wrong, so is the limit: take "
         "theirs."),
        (lambda a, b, tol: torch.equal(a, b),
         "you ask for equal bits. That is the best result, but two right implementations may round "
         "differently: allow the tolerance."),
        (lambda a, b, tol: _near(a, b, 1e-5),
         "the tolerance is typed in, 1e-5. Use the argument."),
    ],
    properties=[
        (_numbers_only(lambda answer, ours, theirs, tolerance: answer(
            theirs, theirs.clone(), tolerance)),
         "there are equal logits that are not accepted. What is your limit where all logits are "
         "negative?"),
        (_numbers_only(_one_wrong_is_noticed),
         "there is a logit that may be off by one and a half times the limit, too large or too "
         "small. Every single one has to be within it."),
        (_numbers_only(_tolerance_is_used),
         "the tolerance does not have the right effect: with all logits off by a tenth of the "
         "largest |logit|, the answer should be True for 0.15 and False for 0.06."),
        (_numbers_only(_size_does_not_matter),
         "your limit is not a share of the largest |logit|: with all logits off by half the limit, "
         "the answer changes when ours and theirs are multiplied by the same number."),
    ],
    hints=(
        "Three steps: all differences, the one limit, the question whether every difference is "
        "within it.",
        "A comparison with NaN is false, whichever way round: `nan > 1` and `nan <= 1` both. Ask "
        "the question so that false means \"not the same\".",
    ),
)  # fmt: skip


# --- All eight together ---------------------------------------------------------------------------


def model(**own):
    """Put the reader's functions together, run PROMPT and STORY on the tiny model, print a verdict.

    Their names are merge, rms_norm, rotate, attend, attention, feed_forward, block and forward, as
    in their exercises; the package lends those that are missing. Each function has to pass its
    exercise, then to give every logit alone among the package's, then together with the others.

    Raises: InputError, for another name.
    """
    for name in own:
        require(name in CORE, f"check.model has no {name!r}; its names are {', '.join(CORE)}.")
    said = _fault(own)
    if said is None:
        runs, decode = _expected().values(), load("tiny").tokenizer.decode
        first, second = (repr(decode([logits[-1].argmax()])) for _, logits in runs)
        said = f"Right: all {sum(logits.numel() for _, logits in runs):,} logits are the same.\n"
        said += f"After the prompt comes {first}, after the story {second}."
        lent = ", ".join(name for name in CORE if name not in own)
        said += f"\nYours: {', '.join(own)}." if own else ""
        said += f"\nLent by the package: {lent if own else 'all eight functions'}." if lent else ""
    for line in said.splitlines():
        print(textwrap.fill(line, 80))


def _fault(own):
    """{name: function} -> which of them is at fault and why, None if every logit is right."""
    for name, function in own.items():
        exercise = _exercise(name)
        verdict = exercise.verdict(function)
        if not verdict.startswith("Right"):
            said = verdict.removeprefix("Not yet: ")
            return f"Not yet: the fault is in `{name}`, exercise {exercise.number}:\n{said}"
    for name, function in own.items():
        if fault := _difference({name: function}):
            return f"Not yet: `{name}` passes its own exercise, but in the model {fault}"
    fault = _difference(own)
    return fault and f"Not yet: each of them runs in the model, but not all together: {fault}"


def _exercise(name):
    return vars(import_module(f"{__package__}.{CORE[name]}"))[name]


def _difference(own):
    """Where the model with these functions differs from the package's, None if it does not."""
    weights, config, tokenizer = load("tiny", dtype=torch.float32)
    f, expected = _put_together(own), _expected()
    try:
        with time_limit(4 * SECONDS):
            for name, text in TEXTS.items():
                pieces = (piece.encode() for piece in regex.findall(SPLIT_PATTERN, text))
                parts = [part for piece in pieces for part in f.merge(piece, tokenizer.ranks)]
                ids = [tokenizer.bos_id, *(tokenizer.ranks[part] for part in parts)]
                if fault := difference(ids, expected[name][0]):
                    return f"the {name}'s ids differ: {fault}"
                logits = f.forward(weights, torch.tensor(ids), config)
                if fault := difference(logits, expected[name][1]):
                    return f"the {name}'s logits differ: {fault}"
    except TimeoutError:
        return f"it was still running after {4 * SECONDS:g} seconds."
    except Exception as error:  # whatever the reader's code raises is to be told
        return f"it raised {type(error).__name__}: {first_line(error)}"
    return None


@functools.cache
def _expected():
    """{name of a text: (ids, logits [T, V])}, from the package's model."""
    weights, config, tokenizer = load("tiny", dtype=torch.float32)
    ids = {name: tokenizer.encode(text) for name, text in TEXTS.items()}
    return {name: (each, core.forward(weights, torch.tensor(each), config))
            for name, each in ids.items()}  # fmt: skip


def _put_together(own):
    """The eight functions by name: the reader's, and ours in place of those that are missing.

    Ours call the reader's. Of the reader's these are copies, which find the other seven under the
    names of the notebooks, `my_attend` and so on; whatever else they call stays as it is.
    """
    f, spaces = SimpleNamespace(), {}
    ours = {"attention": _attention(f), "block": _layer(f=f), "forward": _whole(f)}
    vars(f).update({name: _exercise(name).right for name in CORE} | ours | own)
    for name, function in own.items():
        if isinstance(function, FunctionType):  # not a class's object, for example
            spaces[name] = dict(function.__globals__)
            more = name, function.__defaults__, function.__closure__
            copied = FunctionType(function.__code__, spaces[name], *more)
            copied.__kwdefaults__ = function.__kwdefaults__
            setattr(f, name, copied)
    for name, space in spaces.items():
        space.update({f"my_{other}": each for other, each in vars(f).items() if other != name})
    return f


def _attention(f):
    """The attention of all heads, from `rotate` and the one-headed `attend` of f."""

    def answer(x, weights, rotations, mask, config):
        H, G = config.head_dim, config.n_heads // config.n_kv_heads
        query, key, value = (
            core.linear(x, weights[f"attention.w{name}.weight"]).unflatten(-1, (-1, H))
            for name in "qkv"
        )
        keys, values = (
            each.repeat_interleave(G, dim=-2) for each in (f.rotate(key, rotations), value)
        )
        heads = (each.transpose(-3, -2) for each in (f.rotate(query, rotations), keys, values))
        outputs = f.attend(*heads, mask).transpose(-3, -2).flatten(-2)
        return core.linear(outputs, weights["attention.wo.weight"])

    return answer


case, hint, lent, progress, status = desk(globals())
