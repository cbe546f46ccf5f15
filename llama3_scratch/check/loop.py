"""Checkers of notebook 07: the layers, their loop, and what is enough to trust it."""

import copy
import math

import torch

from llama3_scratch.check.frame import examine
from llama3_scratch.config import Config, weight_shapes
from llama3_scratch.model import attention, block, feed_forward, rms_norm, rope_frequencies

SMALL = Config(60, 3, 6, 2, 101, 7, 1e-5, 500000.0, 1.3)  # all sizes differ from one another


def post_norm_block(answer):
    """The layer of 2017: the norm stands after each sum, not before each part.

    x [T, D], one layer's weights, rotations [T, P], mask [T, T], Config -> [T, D].
    """

    def right(x, w, r, m, c):
        middle = _norm(x + attention(x, w, r, m, c), w, "attention", c)
        return _norm(middle + feed_forward(middle, w), w, "ffn", c)

    def change_normed(x, w, r, m, c):
        middle = x + _norm(attention(x, w, r, m, c), w, "attention", c)
        return middle + _norm(feed_forward(middle, w), w, "ffn", c)

    def arrow_from_sum(x, w, r, m, c):
        total = x + attention(x, w, r, m, c)
        return _norm(total + feed_forward(_norm(total, w, "attention", c), w), w, "ffn", c)

    def one_norm(x, w, r, m, c):
        total = x + attention(x, w, r, m, c)
        return _norm(total + feed_forward(total, w), w, "ffn", c)

    def same_weight(x, w, r, m, c):
        middle = _norm(x + attention(x, w, r, m, c), w, "attention", c)
        return _norm(middle + feed_forward(middle, w), w, "attention", c)

    def swapped(x, w, r, m, c):
        middle = _norm(x + attention(x, w, r, m, c), w, "ffn", c)
        return _norm(middle + feed_forward(middle, w), w, "attention", c)

    def arrow_from_x(x, w, r, m, c):
        middle = _norm(x + attention(x, w, r, m, c), w, "attention", c)
        return _norm(x + feed_forward(middle, w), w, "ffn", c)

    def blind(x, w, r, m, c):
        middle = _norm(x + attention(x, w, r, m, c), w, "attention", c)
        return _norm(middle + feed_forward(x, w), w, "ffn", c)

    def no_weights(x, w, r, m, c):
        ones = {f"{name}_norm.weight": torch.ones_like(x[0]) for name in ("attention", "ffn")}
        return right(x, w | ones, r, m, c)

    def norms_everywhere(x, w, r, m, c):
        total = x + attention(_norm(x, w, "attention", c), w, r, m, c)
        middle = _norm(total, w, "attention", c)
        total = middle + feed_forward(_norm(middle, w, "ffn", c), w)
        return _norm(total, w, "ffn", c)

    def no_arrows(x, w, r, m, c):
        middle = _norm(attention(x, w, r, m, c), w, "attention", c)
        return _norm(feed_forward(middle, w), w, "ffn", c)

    mistakes = {
        "that is Llama 3's own block: it normalises what each part reads. Here each part reads "
        "the stream as it is, and the sum is normalised.": block,
        "you normalise the change and then add it. Add first: the norm stands after the sum, so "
        "the stream itself is normalised.": change_normed,
        "the second arrow starts from the sum before its norm. That is right in Llama 3; in this "
        "layer the stream goes through the norm, so what is added to is the normalised row.":
            arrow_from_sum,
        "there is a norm after the second sum only. The first sum has its own.": one_norm,
        "both norms use `attention_norm.weight`. The second has its own, `ffn_norm.weight`.":
            same_weight,
        "the two norms have changed places: `attention_norm.weight` belongs to the first, after "
        "attention, `ffn_norm.weight` to the second.": swapped,
        "the second sum starts from x, so what attention brought is lost from the stream. It "
        "starts from the result of the first line.": arrow_from_x,
        "the feed-forward part reads x, so it does not see what attention brought.": blind,
        "the norms' weights are missing: each column has its factor after the division.":
            no_weights,
        "there are norms before the parts and after the sums. In this layer a part reads the "
        "stream as it is.": norms_everywhere,
        "nothing is added: each part's result replaces the stream. x + ... is missing, twice.":
            no_arrows,
    }  # fmt: skip
    sizes = {"layer A": (5, 1), "layer B": (8, 2), "layer C": (3, 3)}  # T, seed
    layers = {name: _layer(*each) for name, each in sizes.items()}
    cases = [(_drawn(seed)(T, SMALL.dim), name) for name, (T, seed) in sizes.items()]

    def given(function):
        return lambda x, name: function(x, *copy.deepcopy(layers[name]), SMALL)

    mistakes = {message: given(mistake) for message, mistake in mistakes.items()}
    examine(given(answer), given(right), cases, mistakes)


def settled(answer):
    """How many layers must run until the top token is the final one and stays it.

    tops [L+1, T], the top token after 0, 1, ... L layers -> [T], whole numbers from 0 to L.
    """

    def right(tops):
        agrees = (tops == tops[-1]).flip(0).int()
        return len(tops) - agrees.cumprod(0).sum(0)

    def case(n_layers, T, seed):
        generator = torch.Generator("cpu").manual_seed(seed)
        tops = torch.randint(7, 10, (n_layers + 1, T), generator=generator, device="cpu")
        tops[:, 1] = 8  # settled before the first layer
        return (tops.to(torch.get_default_device()),)

    def given(tops):
        """The reader's result; a list, and whole numbers of any type, are as good."""
        result = answer(tops)
        if isinstance(result, list):
            result = torch.tensor(result, device=tops.device)
        is_whole = isinstance(result, torch.Tensor) and not result.dtype.is_floating_point
        return result.long() if is_whole else result

    examine(given, right, [case(9, 23, 1), case(4, 14, 2), case(12, 31, 3)], {
        "that is the first layer at which the final token is on top. It may leave the top again: "
        "asked is from where on it stays.": lambda tops: (tops == tops[-1]).int().argmax(0),
        "you counted all rows that disagree with the last one. A row that agrees before another "
        "one that does not is no end yet.": lambda tops: (tops != tops[-1]).sum(0),
        "right but where all rows agree: there `argmax` finds nothing and says 0, and you get "
        "L+1. The answer there is 0.":
            lambda tops: len(tops) - (tops != tops[-1]).flip(0).int().argmax(0),
        "one too few: that is the last row that still disagrees, and where all agree it is -1. "
        "The final token stands on top from the next row on.": lambda tops: right(tops) - 1,
        "one too few: that is the last row that still disagrees. The final token stands on top "
        "from the next row on.": lambda tops: (right(tops) - 1).clamp(0),
        "one too many: row 0 is the stream before any layer, so a row's number is the number of "
        "layers that have run.": lambda tops: right(tops) + 1,
        "you counted how many rows agree at the end. Asked is at which row this run of them "
        "begins.": lambda tops: len(tops) - right(tops),
    })  # fmt: skip


def same_logits(answer):
    """Whether two implementations agree: at every position, for every token, up to rounding.

    ours, theirs [T, V], tolerance (a share of the largest |theirs|) -> True or False.
    """

    def right(ours, theirs, tolerance):
        return bool(((ours - theirs).abs() <= tolerance * theirs.abs().max()).all())

    def share(x, theirs):
        return x / theirs.abs().max()

    generator = torch.Generator("cpu").manual_seed(7)
    theirs = 3 * torch.randn(6, 13, generator=generator, device="cpu")
    theirs[2, 5] = 1e-4  # one logit near 0
    theirs = theirs.to(torch.get_default_device())
    scale, largest = theirs.abs().max(), divmod(int(theirs.abs().argmax()), theirs.shape[1])

    def lowest(row):  # moved up a little, it changes no argmax
        return row, int(theirs[row].argmin())

    def moved(by, *places):
        """theirs, off by a share of its largest logit: up at the first place, down at the next."""
        ours = theirs.clone()
        for sign, place in zip((1, -1), places, strict=False):
            ours[place] += sign * by * scale
        return ours

    broken = theirs.clone()
    broken[1, 4] = float("nan")
    pairs = {
        "equal logits": (theirs, theirs),
        "rounding": (0.1 * moved(4e-6, (2, 5), (4, 1)), 0.1 * theirs),
        "rounding of one large logit": (100 * moved(7e-6, largest), 100 * theirs),
        "rounding of large logits": (100 * moved(7e-6, largest, (2, 5)), 100 * theirs),
        "equal logits, all negative": (theirs - 20, theirs - 20),
        "one logit too large": (moved(0.01, lowest(3)), theirs),
        "one logit too small": (moved(-0.01, lowest(1)), theirs),
        "one wrong logit at the last position": (moved(0.01, lowest(5)), theirs),
        "one logit too large, one too small": (moved(0.01, (2, 1), (4, 7)), theirs),
        "one logit somewhat wrong": (moved(2e-4, (2, 8)), theirs),
        "one logit a little wrong": (moved(2e-5, (0, 6)), theirs),
        "another token on top at position 2": (moved(1.5, (2, 3)), theirs),
        "another token on top at the end": (moved(1.5, (5, 3)), theirs),
        "one logit is NaN": (broken, theirs),
    }

    def given(function):
        def on_pair(name):
            result = function(pairs[name][0].clone(), pairs[name][1].clone(), 1e-5)
            if isinstance(result, torch.Tensor):  # of one entry: as good as a bool
                one = result.dim() == 0
                return result.item() if one else f"a tensor {list(result.shape)}"
            return result

        return on_pair

    mistakes = {
        "you look at the last position alone. All others may be wrong, and are where a missing "
        "mask shows.": lambda a, b, tol: right(a[-1], b[-1], tol),
        "you compare the token on top at the last position. One right argmax validates nothing.":
            lambda a, b, tol: bool(a[-1].argmax() == b[-1].argmax()),
        "you compare which token is on top. The order of the first says nothing about the values "
        "of all.": lambda a, b, tol: torch.equal(a.argmax(-1), b.argmax(-1)),
        "NaN goes through: a comparison with NaN is false, so `not (difference > limit)` is true. "
        "Ask for `<=` instead.":
            lambda a, b, tol: not bool(((a - b).abs() > tol * b.abs().max()).any()),
        "where ours is far below theirs you see nothing: take the absolute value of the "
        "difference.": lambda a, b, tol: bool(share(a - b, b).max() <= tol),
        "you take the mean of the differences. One wrong logit among thousands is lost in it: "
        "every one has to be within the tolerance.":
            lambda a, b, tol: bool(share((a - b).abs().mean(), b) <= tol),
        "you take the mean of the differences, and with their signs: one up and one down are "
        "equal then.": lambda a, b, tol: bool(share((a - b).mean().abs(), b) <= tol),
        "the tolerance is a share of the largest logit; you use it as a difference. Logits a "
        "hundred times larger round to a hundred times larger errors.":
            lambda a, b, tol: bool(((a - b).abs() <= tol).all()),
        "`torch.allclose` takes a share of each logit, `rtol`, and a difference, `atol`. The limit "
        "here is one difference for all: a share of the largest logit.":
            lambda a, b, tol: torch.allclose(a, b, rtol=tol, atol=tol),
        "you measure each difference against its own logit. One that is nearly 0 may be off by "
        "more than its own size from rounding alone: measure against the largest.":
            lambda a, b, tol: bool(((a - b).abs() <= tol * b.abs()).all()),
        "you measure against the largest logit. All of them may be negative: the largest |logit| "
        "is meant.": lambda a, b, tol: bool(((a - b).abs() <= tol * b.max()).all()),
        "you compare the length of all differences with the length of all logits. One wrong logit "
        "among thousands is lost in it: every one has to be within the tolerance.":
            lambda a, b, tol: bool((a - b).norm() <= tol * b.norm()),
        "you ask for equal bits. That is the best result, but two right implementations may round "
        "differently: allow the tolerance.": lambda a, b, tol: torch.equal(a, b),
    }  # fmt: skip
    mistakes = {message: given(mistake) for message, mistake in mistakes.items()}
    examine(given(answer), given(right), [(name,) for name in pairs], mistakes)


def n_layers(answer):
    """Tensor names of a checkpoint, in any order -> L, the number of layers."""

    def right(names):
        return 1 + max(int(name.split(".")[1]) for name in names if name.startswith("layers."))

    def case(L, step):
        config = Config(60, L, 6, 2, 101, 7, 1e-5, 500000.0, 1.3)
        names = list(weight_shapes(config))
        return ([names[i * step % len(names)] for i in range(len(names))],)  # another order

    def as_text(names):
        return 1 + int(max(name.split(".")[1] for name in names if name.startswith("layers.")))

    examine(answer, right, [case(3, 7), case(12, 11), case(32, 13)], {
        "one too few: layers count from 0, so the last of 32 is layer 31.":
            lambda names: right(names) - 1,
        "10 for a model of 32 layers: as text, or by its first digit, 9 is the largest. Take the "
        "whole number between the dots, as an int.": as_text,
        "one too many: you counted what stands after the first dot in all names, and the three "
        "outside the layers have `weight` there.":
            lambda names: len({name.split(".")[1] for name in names}),
        "you counted the tensors of all layers. Each layer has nine.":
            lambda names: sum(name.startswith("layers.") for name in names),
        "you counted all tensors. Only those whose name begins with `layers.` are of a layer, and "
        "each layer has nine.": len,
        "you counted the norms: two to a layer, and `norm.weight` after the last.":
            lambda names: sum("norm" in name for name in names),
    })  # fmt: skip


def crossing(answer):
    """The smallest T for which, in one pass over T tokens, the two products of attention (queries
    with keys, probabilities with values) take more FLOPs than all products with weights.

    Config -> T, a whole number.
    """

    def weights_per_token(c, without=("tok_embeddings",)):
        shapes = weight_shapes(c).items()
        kept = [s for name, s in shapes if len(s) == 2 and not name.startswith(without)]
        return sum(a * b for a, b in kept)

    def smallest(weights, products):  # T weights < T^2 products, both for one token
        return weights // products + 1

    def products(c, heads=None, layers=None):
        return 2 * (layers or c.n_layers) * (heads or c.n_heads) * c.head_dim

    def right(c):
        return smallest(weights_per_token(c), products(c))

    def ungrouped(c):
        missing = (c.n_heads - c.n_kv_heads) * c.head_dim * c.dim
        return weights_per_token(c) + 2 * missing * c.n_layers

    def one_layer(c):
        layers = sum(math.prod(size) for size in _matrices(c).values()) * c.n_layers
        return weights_per_token(c) - layers + layers // c.n_layers

    def two_matrices(c):
        return weights_per_token(c) - c.n_layers * c.dim * c.ffn_dim

    cases = [
        (SMALL,),
        (Config(84, 5, 6, 3, 557, 19, 1e-5, 500000.0, 0.85),),
        (Config(48, 2, 4, 1, 1012, 11, 1e-5, 500000.0),),  # here, as at 8B, the two can be equal
    ]
    examine(answer, right, cases, {
        "you count the embedding table. A row of it is looked up: no multiplication.":
            lambda c: smallest(weights_per_token(c, ()), products(c)),
        "you count all parameters. A row of the embedding table is looked up, which is no "
        "multiplication, and equation 7.8 leaves the norms out.":
            lambda c: smallest(c.n_parameters, products(c)),
        "the layers' matrices are counted once. There are L layers.":
            lambda c: smallest(one_layer(c), products(c)),
        "the feed-forward part has three matrices of D times F, not two.":
            lambda c: smallest(two_matrices(c), products(c)),
        "attention's products are counted for one head. There are N.":
            lambda c: smallest(weights_per_token(c), products(c, heads=1)),
        "the output matrix is missing: it is multiplied with every row, like the others.":
            lambda c: smallest(weights_per_token(c, ("tok_embeddings", "output")), products(c)),
        "twice too many: attention has two products, queries with keys and probabilities with "
        "values; and what the mask hides is computed all the same.":
            lambda c: smallest(weights_per_token(c), products(c) // 2),
        "twice too few: a product with weights takes two operations for each of them, a "
        "multiplication and an addition, as attention's products do.":
            lambda c: smallest(weights_per_token(c), 2 * products(c)),
        "attention happens in every layer: the factor L is missing there.":
            lambda c: smallest(weights_per_token(c), products(c, layers=1)),
        "you count K heads in attention. Keys and values are shared, but each of the N query "
        "heads has its own scores.":
            lambda c: smallest(weights_per_token(c), products(c, heads=c.n_kv_heads)),
        "wk and wv are counted as large as wq. They have K heads, not N.":
            lambda c: smallest(ungrouped(c), products(c)),
        "one too few: at this T attention does not yet take more.": lambda c: right(c) - 1,
        "right unless the division comes out even, as it does for Llama-3-8B: then the two are "
        "equal at this T, and attention does not yet take more.":
            lambda c: -(-weights_per_token(c) // products(c)),
        "that is where the two are equal. Asked is the next whole number above it.":
            lambda c: weights_per_token(c) / products(c),
    })  # fmt: skip


def _matrices(config):
    """{name: size} of one layer's matrices."""
    shapes = weight_shapes(config).items()
    return {n: size for n, size in shapes if n.startswith("layers.0.") and len(size) == 2}


def _norm(x, weights, name, config):
    return rms_norm(x, weights[f"{name}_norm.weight"], config.norm_eps)


def _drawn(seed):
    """A function size -> random tensor, the same on every device."""
    generator, device = torch.Generator("cpu").manual_seed(seed), torch.get_default_device()
    return lambda *size: torch.randn(*size, generator=generator, device="cpu").to(device)


def _layer(T, seed):
    """One layer's weights, and the rotations and the mask of T tokens."""
    drawn, prefix = _drawn(seed), "layers.0."
    weights = {}
    for name, size in weight_shapes(SMALL).items():
        if name.startswith(prefix):
            matrix, short = len(size) == 2, name.removeprefix(prefix)
            weights[short] = drawn(*size) / size[-1] ** 0.5 if matrix else 1 + 0.3 * drawn(*size)
    positions = torch.arange(T)
    angles = torch.outer(positions.float(), rope_frequencies(SMALL))
    rotations = torch.polar(torch.ones_like(angles), angles)
    mask = torch.zeros(T, T).masked_fill(positions > positions[:, None], -torch.inf)
    return weights, rotations, mask
