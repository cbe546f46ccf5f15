"""The exercises of notebook 07: another layer, settled predictions, equal logits, L, FLOPs."""

import contextlib
import math
from dataclasses import replace

import torch

from llama3_scratch.config import Config, weight_shapes
from llama3_scratch.exercises.frame import (
    Exercise,
    agree,
    answer_property,
    desk,
    drawn,
    of_each,
)
from llama3_scratch.model import (
    attention,
    block,
    causal_mask,
    feed_forward,
    layer,
    rms_norm,
    rotations_at,
)

TINY = Config(4, 1, 2, 1, 5, 3, 0.05, 500000.0, 0.3)  # D, L, N, K, V; F = 3
SMALL = Config(24, 3, 6, 2, 101, 7, 0.02, 500000.0, 1.3)  # all sizes differ from one another


# --- The layer of 2017 ----------------------------------------------------------------------------


def _layer_cases():
    sizes = (("A", TINY, 2, 1), ("B", SMALL, 5, 2), ("C", SMALL, 8, 3))
    return {
        f"x [{T}, {config.dim}] and layer {name}": (
            *drawn(seed, (T, config.dim)),
            _weights_of_a_layer(config, seed),
            rotations_at(torch.arange(T), config),
            causal_mask(torch.arange(T), T),
            config,
        )
        for name, config, T, seed in sizes
    }


def _weights_of_a_layer(config, seed):
    shapes = layer(weight_shapes(config), 0)
    tensors = zip(shapes, drawn(seed + 10, *shapes.values()), strict=True)
    return {n: w / w.shape[1] ** 0.5 if w.dim() == 2 else 1 + 0.3 * w for n, w in tensors}


def _norm(x, weights, name, config):
    return rms_norm(x, weights[f"{name}_norm.weight"], config.norm_eps)


def _post_norm(x, w, r, m, c):
    middle = _norm(x + attention(x, w, r, m, c), w, "attention", c)
    return _norm(middle + feed_forward(middle, w), w, "ffn", c)


def _change_normed(x, w, r, m, c):
    middle = x + _norm(attention(x, w, r, m, c), w, "attention", c)
    return middle + _norm(feed_forward(middle, w), w, "ffn", c)


def _arrow_from_the_sum(x, w, r, m, c):
    total = x + attention(x, w, r, m, c)
    return _norm(total + feed_forward(_norm(total, w, "attention", c), w), w, "ffn", c)


def _one_norm(x, w, r, m, c):
    total = x + attention(x, w, r, m, c)
    return _norm(total + feed_forward(total, w), w, "ffn", c)


def _no_second_norm(x, w, r, m, c):
    middle = _norm(x + attention(x, w, r, m, c), w, "attention", c)
    return middle + feed_forward(middle, w)


def _same_weight(x, w, r, m, c):
    return _post_norm(x, w | {"ffn_norm.weight": w["attention_norm.weight"]}, r, m, c)


def _exchanged_weights(x, w, r, m, c):
    first, second = w["attention_norm.weight"], w["ffn_norm.weight"]
    swapped = {"attention_norm.weight": second, "ffn_norm.weight": first}
    return _post_norm(x, w | swapped, r, m, c)


def _arrow_from_x(x, w, r, m, c):
    middle = _norm(x + attention(x, w, r, m, c), w, "attention", c)
    return _norm(x + feed_forward(middle, w), w, "ffn", c)


def _blind_to_attention(x, w, r, m, c):
    middle = _norm(x + attention(x, w, r, m, c), w, "attention", c)
    return _norm(middle + feed_forward(x, w), w, "ffn", c)


def _no_weights(x, w, r, m, c):
    ones = {f"{name}_norm.weight": torch.ones_like(x[0]) for name in ("attention", "ffn")}
    return _post_norm(x, w | ones, r, m, c)


def _norms_everywhere(x, w, r, m, c):
    total = x + attention(_norm(x, w, "attention", c), w, r, m, c)
    middle = _norm(total, w, "attention", c)
    return _norm(middle + feed_forward(_norm(middle, w, "ffn", c), w), w, "ffn", c)


def _no_arrows(x, w, r, m, c):
    middle = _norm(attention(x, w, r, m, c), w, "attention", c)
    return _norm(feed_forward(middle, w), w, "ffn", c)


def _right_without(*names):
    """Whether an answer is right where these matrices are zero, so that a part adds nothing."""

    def holds(answer, x, w, r, m, c):
        silent = w | {name: torch.zeros_like(w[name]) for name in names}
        return agree(answer(x, silent, r, m, c), _post_norm(x, silent, r, m, c))

    return answer_property(holds)


def _last_step_is_a_norm(answer, x, w, r, m, c):
    rows = answer(x, w, r, m, replace(c, norm_eps=1e-9)) / w["ffn_norm.weight"]
    return bool(((rows.pow(2).mean(-1) - 1).abs() < 1e-3).all())


post_norm_block = Exercise(
    "x [T, D], one layer's weights, rotations [T, P], mask [T, T], Config -> [T, D]: the layer of "
    "2017, whose norms come after the sums, equation 7.3.",
    right=_post_norm,
    cases=_layer_cases,
    mistakes=[
        (block,
         "this is Llama 3's own block: it normalises what each part reads. Here each part reads "
         "the stream as it is, and the sum is normalised."),
        (_change_normed,
         "you normalise the change and then add it. Add first: the norm comes after the sum, so "
         "the stream itself is normalised."),
        (_arrow_from_the_sum,
         "the second arrow starts from the sum before its norm. That is right in Llama 3. Here the "
         "stream itself goes through the norm, so the second change is added to the normalised "
         "rows."),
        (_one_norm,
         "there is a norm after the second sum only. The first sum has one as well."),
        (_no_second_norm,
         "there is a norm after the first sum only. The second sum has one as well."),
        (_same_weight,
         "both norms use `attention_norm.weight`. The second has its own, `ffn_norm.weight`."),
        (_exchanged_weights,
         "the norms' weights are exchanged: `attention_norm.weight` belongs to the first norm, "
         "after attention, `ffn_norm.weight` to the second."),
        (_arrow_from_x,
         "the second sum starts from x, so what attention added to the stream is lost. It starts "
         "from the result of the first line."),
        (_blind_to_attention,
         "the feed-forward part reads x, so it does not see what attention added."),
        (_no_weights,
         "the norms' weights are missing: after the division each column is multiplied by its own "
         "factor."),
        (lambda x, w, r, m, c: _post_norm(x, w, r, m, replace(c, norm_eps=1e-5)),
         "eps is typed in, or missing: use `config.norm_eps`."),
        (_norms_everywhere,
         "there are norms before the parts and after the sums. In this layer a part reads the "
         "stream as it is."),
        (_no_arrows,
         "nothing is added: the result of each part replaces the stream. `x + ...` is missing, in "
         "both lines."),
    ],
    properties=[
        (answer_property(_last_step_is_a_norm),
         "the last step is not the second norm: the rows of your result, divided by "
         "`ffn_norm.weight`, do not have mean square 1."),
        (_right_without("attention.wo.weight", "feed_forward.w2.weight"),
         "where both parts give zeros, x should go through the two norms, first "
         "`attention_norm`, then `ffn_norm`, and through nothing else. In your layer it does not."),
        (_right_without("feed_forward.w2.weight"),
         "the first half is not right: with a feed-forward part that gives zeros the result should "
         "be x + Attention(x), normalised twice."),
        (_right_without("attention.wo.weight"),
         "the second half is not right: what does the feed-forward part read, and what is its "
         "result added to?"),
    ],
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


def _list_as_tensor(answer, tops):
    found = answer(tops)
    return torch.tensor(found, device=tops.device) if isinstance(found, list) else found


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
)  # fmt: skip


# --- Equal logits ---------------------------------------------------------------------------------


def _logit_pairs():
    """{what they are: (ours, theirs, tolerance)}"""
    exact = torch.tensor([[1.0, -4.0, 2.0], [0.5, 3.0, -1.0]])
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
    }
    wider = {
        "a difference that is exactly the limit": (exact + torch.eye(2, 3), exact, 0.25),
        "rounding of bfloat16, tolerance 0.01": (moved(0.006, (0, 6), (3, 2)), theirs, 0.01),
        "the largest logit too large, tolerance 0.5": (
            moved(0.6 * outward, largest), theirs, 0.5),
    }  # fmt: skip
    return wider | {name: (*pair, 1e-5) for name, pair in pairs.items()}


def _all_within(changes, limit):
    return bool((changes.abs() <= limit).all())


def _near(ours, theirs, tolerance):
    return _all_within(ours - theirs, tolerance * theirs.abs().max())


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
        (lambda a, b, tol: bool((a - b).max() <= tol * b.abs().max()),
         "logits of ours that are far too small are not noticed: take the absolute value of the "
         "difference."),
        (lambda a, b, tol: bool((a - b).abs().mean() <= tol * b.abs().max()),
         "you take the mean of the differences. One wrong logit among thousands is lost in it: "
         "every one has to be within the tolerance."),
        (lambda a, b, tol: bool((a - b).mean().abs() <= tol * b.abs().max()),
         "you take the mean of the differences, with their signs: one too large and one too small "
         "cancel."),
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
        (lambda a, b, tol: bool((a - b).norm() <= tol * b.norm()),
         "you compare the length of all differences with the length of all logits. One wrong logit "
         "among thousands is lost in it: every one has to be within the tolerance."),
        (lambda a, b, tol: torch.equal(a, b),
         "you ask for equal bits. That is the best result, but two right implementations may round "
         "differently: allow the tolerance."),
        (lambda a, b, tol: _near(a, b, 1e-5),
         "the tolerance is typed in, 1e-5. Use the argument."),
    ],
    properties=[
        (answer_property(lambda answer, ours, theirs, tolerance: answer(
            theirs, theirs.clone(), tolerance)),
         "there are equal logits that are not accepted. What is your limit where all logits are "
         "negative?"),
        (answer_property(_one_wrong_is_noticed),
         "there is a logit that may be off by one and a half times the limit, too large or too "
         "small. Every single one has to be within it."),
        (answer_property(_tolerance_is_used),
         "the tolerance does not have the right effect: with all logits off by a tenth of the "
         "largest |logit|, the answer should be True for 0.15 and False for 0.06."),
        (answer_property(_size_does_not_matter),
         "your limit is not a share of the largest |logit|: with all logits off by half the limit, "
         "the answer changes when ours and theirs are multiplied by the same number."),
    ],
)  # fmt: skip


# --- The number of layers -------------------------------------------------------------------------


def _names_cases():
    cases = {}
    for L, step in ((1, 5), (3, 7), (10, 7), (12, 11), (32, 13), (126, 11)):
        names = list(weight_shapes(replace(SMALL, n_layers=L)))
        mixed = [names[(i + 4) * step % len(names)] for i in range(len(names))]
        cases[f"the {len(names)} names of a model with L = {L}"] = (mixed,)
    return cases


def _numbers(names):
    return [name.split(".")[1] for name in names if name.startswith("layers.")]


def _layers(names):
    return 1 + max(map(int, _numbers(names)))


def _order_is_free(answer, names):
    with contextlib.suppress(Exception):  # an error in another order is a dependence too
        orders = sorted(names), sorted(names, reverse=True), names[::-1]
        return all(answer(order) == answer(names) for order in orders)
    return False


def _one_more_layer_counts(answer, names):
    first = [name for name in names if name.startswith("layers.0.")]
    more = [name.replace("layers.0.", f"layers.{_layers(names)}.") for name in first]
    return answer(names + more) == answer(names) + 1


n_layers = Exercise(
    "The names of a checkpoint's tensors, in any order -> L, the number of layers.",
    right=_layers,
    cases=_names_cases,
    mistakes=[
        (lambda names: _layers(names) - 1,
         "one too few: layers count from 0, so the last of 32 is layer 31."),
        (lambda names: 1 + int(max(_numbers(names))),
         "you get 10 for a model of 32 layers: as text, or by its first digit, 9 is the largest. "
         "Take the whole number between the dots, as an int."),
        (lambda names: 1 + max(int(number[0]) for number in _numbers(names)),
         "you get 10 for a model of 32 layers: by its first digit, 9 is the largest. Take the "
         "whole number between the dots."),
        (lambda names: len({name.split(".")[1] for name in names}),
         "one too many: you counted what comes after the first dot in all names, and in the three "
         "outside the layers that is `weight`."),
        (lambda names: len(_numbers(names)),
         "you counted the tensors of all layers. Each layer has nine."),
        (len,
         "you counted all tensors. Only those whose name begins with `layers.` belong to a layer, "
         "and each layer has nine."),
        (lambda names: sum("norm" in name for name in names),
         "you counted the norms: each layer has two, and `norm.weight` comes after the last."),
    ],
    properties=[
        (answer_property(_order_is_free),
         "your result depends on the order of the names. They may come in any order."),
        (answer_property(_one_more_layer_counts),
         "with the nine names of one more layer your result does not grow by 1. Which number is in "
         "the name, and is it taken as a number?"),
        (of_each(lambda found, names: found == int(found) and 0 < found <= len(names) / 9),
         "there are more layers in your result than the names can be of: each layer has nine."),
    ],
)  # fmt: skip


# --- Attention's FLOPs ----------------------------------------------------------------------------


def _configs_cases():
    configs = (
        TINY,  # here, as in Llama-3-8B, the two parts are equal at some T
        SMALL,
        Config(84, 5, 6, 3, 557, 19, 1e-5, 500000.0, 0.85),
        Config(48, 2, 4, 1, 1012, 11, 1e-5, 500000.0),  # here as well
        Config(48, 4, 4, 4, 299, 5, 1e-5, 500000.0),
    )
    return {", ".join(f"{letter} {c.sizes[letter]}" for letter in "VLDNKHF"): (c,) for c in configs}


def _weights_per_token(c, without=("tok_embeddings",)):
    shapes = weight_shapes(c).items()
    return sum(math.prod(s) for n, s in shapes if len(s) == 2 and not n.startswith(without))


def _products(c, heads=None, layers=None):
    return 2 * (layers or c.n_layers) * (heads or c.n_heads) * c.head_dim


def _above(weights, products):
    """The smallest T with T * weights < T^2 * products."""
    return weights // products + 1


def _crossing(c):
    return _above(_weights_per_token(c), _products(c))


def _norm_weights(c):
    return (2 * c.n_layers + 1) * c.dim


def _one_layer(c):
    return _weights_per_token(replace(c, n_layers=1))


def _two_matrices(c):
    return _weights_per_token(c) - c.n_layers * c.dim * c.ffn_dim


def _ungrouped(c):
    return _weights_per_token(replace(c, n_kv_heads=c.n_heads))


def _grows_by(change, by):
    """With another config T is larger by a whole number, whatever remains of the division."""
    return answer_property(lambda answer, c: answer(change(c)) == answer(c) + by(c))


crossing = Exercise(
    "Config -> the smallest T for which attention's two products (queries with keys, probabilities "
    "with values) take more FLOPs in one pass over T tokens than all products with weights.",
    right=_crossing,
    cases=_configs_cases,
    mistakes=[
        (lambda c: _above(_weights_per_token(c, ()), _products(c)),
         "you count the embedding table. A row of it is looked up: no multiplication."),
        (lambda c: _above(c.n_parameters, _products(c)),
         "you count all parameters. A row of the embedding table is looked up, which is no "
         "multiplication, and equation 7.8 leaves the norms out."),
        (lambda c: _above(_weights_per_token(c) + _norm_weights(c), _products(c)),
         "you count the norms. Equation 7.8 leaves them out: they are no matrices."),
        (lambda c: _above(_one_layer(c), _products(c)),
         "the layers' matrices are counted once. There are L layers."),
        (lambda c: _above(_two_matrices(c), _products(c)),
         "the feed-forward part has three matrices of D times F, not two."),
        (lambda c: _above(_weights_per_token(c), _products(c, heads=1)),
         "attention's products are counted for one head. There are N."),
        (lambda c: _above(_weights_per_token(c, ("tok_embeddings", "output")), _products(c)),
         "the output matrix is missing: it is multiplied with every row, like the others."),
        (lambda c: _above(_weights_per_token(c), _products(c) // 2),
         "twice too many: attention has two products, queries with keys and probabilities with "
         "values; and what the mask hides is computed all the same."),
        (lambda c: _above(_weights_per_token(c), 2 * _products(c)),
         "twice too few: a product with weights takes two operations for each of them, a "
         "multiplication and an addition, as attention's products do."),
        (lambda c: _above(_weights_per_token(c), _products(c, layers=1)),
         "attention happens in every layer: the factor L is missing there."),
        (lambda c: _above(_weights_per_token(c), _products(c, heads=c.n_kv_heads)),
         "you count K heads in attention. Key/value heads are shared, but each of the N query "
         "heads has its own scores."),
        (lambda c: _above(_ungrouped(c), _products(c)),
         "wk and wv are counted as large as wq. They have K heads, not N."),
        (lambda c: _crossing(c) - 1,
         "one too few: at this T attention does not yet take more."),
        (lambda c: -(-_weights_per_token(c) // _products(c)),
         "right unless the division comes out even, as it does for Llama-3-8B: then the two are "
         "equal at this T, and attention does not yet take more."),
        (lambda c: _weights_per_token(c) / _products(c),
         "this is where the two are equal. The question is for the next whole number above it."),
    ],
    properties=[
        (of_each(lambda found, c: found == int(found)),
         "T is a whole number of tokens."),
        (_grows_by(lambda c: replace(c, vocab_size=c.vocab_size + 200 * c.n_layers),
                   lambda c: 100),
         "the tables are not counted right, or not compared with the right thing: with 200 L more "
         "tokens in the vocabulary T should grow by 100. Only the output matrix, [V, D], is "
         "multiplied."),
        (_grows_by(lambda c: replace(c, multiple_of=3 * c.ffn_dim), lambda c: 3 * c.ffn_dim),
         "the feed-forward part is not counted right: with three times the F, T should grow by "
         "3 F. There are three matrices of D times F in every layer."),
        (_grows_by(lambda c: replace(c, n_kv_heads=c.n_heads),
                   lambda c: (c.n_heads - c.n_kv_heads) * c.head_dim),
         "wk and wv are not counted right: both are [K*H, D], so with K = N, T should grow by "
         "(N - K) H."),
        (_grows_by(lambda c: replace(c, n_layers=3 * c.n_layers, vocab_size=3 * c.vocab_size),
                   lambda c: 0),
         "L is not used right: with three times the layers and three times the vocabulary both "
         "parts are three times as large, and T should stay the same."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
