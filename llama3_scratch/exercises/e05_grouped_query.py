"""The exercises of notebook 05: attention with shared heads, what heads write, cache, pooling."""

import math

import torch

from llama3_scratch import model
from llama3_scratch.config import PRESETS, Config
from llama3_scratch.exercises.frame import (
    Exercise,
    agree,
    answer_property,
    desk,
    drawn,
    of_each,
)
from llama3_scratch.model import causal_mask, linear, rms_norm, rotate, rotations_at

# --- Attention: all heads of a layer --------------------------------------------------------------


def _layer(seed, config):
    """Random weights of one layer's attention, by their names within the layer."""
    shapes = {"wq": config.n_heads, "wk": config.n_kv_heads, "wv": config.n_kv_heads}
    sizes = [(heads * config.head_dim, config.dim) for heads in shapes.values()]
    drawn_ones = drawn(seed, *sizes, (config.dim, config.dim), (config.dim,))
    names = [*(f"attention.{name}.weight" for name in (*shapes, "wo")), "attention_norm.weight"]
    return dict(zip(names, drawn_ones, strict=True))


def _attention_cases():
    def case(seed, D, N, K, start, *rows, window=None):
        config = Config(D, 1, N, K, 10, 4, 1e-5, 10000.0)
        positions = torch.arange(start, start + rows[-1])
        mask = causal_mask(positions - start, rows[-1])
        if window:
            mask = mask.masked_fill(positions < positions[:, None] - window, -math.inf)
        x = drawn(seed, (*rows, D))[0]
        return x, _layer(seed, config), rotations_at(positions, config), mask, config

    x, weights, *others = case(5, 12, 6, 3, 7, 1)
    whole = {name: weight.sign().bfloat16() for name, weight in weights.items()}  # exact sums
    return {
        "2 tokens (D 4, N 2, K 1, H 2)": case(0, 4, 2, 1, 0, 2),
        "5 tokens (D 24, N 6, K 2, H 4)": case(1, 24, 6, 2, 0, 5),
        "7 tokens from position 3000 on (D 16, N 8, K 4, H 2)": case(2, 16, 8, 4, 3000, 7),
        "a mask with a window (D 36, N 6, K 3, H 6)": case(3, 36, 6, 3, 0, 8, window=2),
        "a batch of 2 texts (D 32, N 4, K 2, H 8)": case(4, 32, 4, 2, 0, 2, 5),
        "K = N, nothing shared (D 12, N 3, K 3, H 4)": case(6, 12, 3, 3, 0, 4),
        "1 token in bfloat16, whole numbers (D 12, N 6, K 3, H 2)":
            (x.sign().bfloat16(), whole, *others),
    }  # fmt: skip


def _cut(x, H):
    return x.unflatten(-1, (-1, H))


def _cut_wrongly(x, H):
    """[..., T, N*H] -> [..., T, N, H] by way of [..., N, T, H], without a transpose."""
    return x.reshape(*x.shape[:-2], -1, x.shape[-2], H).transpose(-3, -2)


def _interleaved(x, H):
    return x.unflatten(-1, (H, -1)).transpose(-2, -1).contiguous()


def _tiled(x, G):
    return torch.cat([x] * G, dim=-2)


def _repeated(x, G):
    return x.repeat_interleave(G, dim=-2)


def _first_only(x, G):
    return x[..., :1, :].expand(*x.shape[:-2], G * x.shape[-2], x.shape[-1])


def _side_by_side(outputs):
    return outputs.transpose(-3, -2).flatten(-2)


def _attention(
    cut=_cut, turned="qk", repeat=(_repeated, _repeated), scale=lambda H, D: H**-0.5,
    masked=lambda mask, scores: mask, merge=_side_by_side,
    last=lambda x, merged, wo: linear(merged, wo), before=lambda x, weights, config: x,
):  # fmt: skip
    """`model.attention` longhand, with one step or another done wrongly."""

    def answer(x, weights, rotations, mask, config):
        H, G = config.head_dim, config.n_heads // config.n_kv_heads
        rows = before(x, weights, config)
        heads = {w: cut(linear(rows, weights[f"attention.w{w}.weight"]), H) for w in "qkv"}
        heads |= {w: rotate(heads[w], rotations) for w in turned}
        keys, values = (again(heads[w], G) for w, again in zip("kv", repeat, strict=True))
        query, keys, values = (x.transpose(-3, -2) for x in (heads["q"], keys, values))
        scores = query @ keys.transpose(-2, -1) * scale(H, config.dim)
        hidden = masked(mask, scores).type_as(scores)
        probabilities = (scores + hidden).float().softmax(-1).type_as(query)
        return last(x, merge(probabilities @ values), weights["attention.wo.weight"])

    return answer


def _one_large_head(x, weights, rotations, mask, config):
    """One pattern for all heads: queries and keys are not cut, so scores are sums over heads."""
    H, G = config.head_dim, config.n_heads // config.n_kv_heads
    query, key, value = (
        _cut(linear(x, weights[f"attention.w{w}.weight"]), H) for w in "qkv"
    )  # fmt: skip
    query, key = rotate(query, rotations).flatten(-2), _repeated(rotate(key, rotations), G)
    scores = query @ key.flatten(-2).transpose(-2, -1) / math.sqrt(config.dim) + mask
    merged = scores.float().softmax(-1).type_as(x) @ _repeated(value, G).flatten(-2)
    return linear(merged, weights["attention.wo.weight"])


def _own_mask(mask, scores):
    T, S = mask.shape
    return causal_mask(torch.arange(T) + S - T, S)


def _zero_wo(answer, x, weights, *others):
    name = "attention.wo.weight"
    return not answer(x, weights | {name: torch.zeros_like(weights[name])}, *others).any()


def _first_row(answer, x, weights, rotations, mask, config):
    """Row 0 attends only to itself: its change is wo times its own values, whatever the scores."""
    value = _cut(linear(x, weights["attention.wv.weight"]), config.head_dim)
    merged = _repeated(value, config.n_heads // config.n_kv_heads).flatten(-2)
    change = linear(merged, weights["attention.wo.weight"])
    return agree(answer(x, weights, rotations, mask, config)[..., 0, :], change[..., 0, :])


def _no_leak(answer, x, *others):
    later = x.clone()
    later[..., -1, :] += 1
    a, b = answer(x, *others), answer(later, *others)
    return agree(a[..., :-1, :], b[..., :-1, :])


attention = Exercise(
    "Normalised rows x [..., T, D], one layer's weights, rotations [T, P], mask [T, S], config -> "
    "the change [..., T, D] that all heads of the layer make together.",
    right=model.attention,
    cases=_attention_cases,
    dtype=True,
    hints=(
        "In which order do the numbers of a token's row of queries stand? Cut the last dimension "
        "first: [..., T, N*H] -> [..., T, N, H], and K in place of N for keys and values. "
        "my_rotate takes them as they are now. my_attend attends along the last but one dimension, "
        "so for it the heads have to move in front of the tokens.",
        "my_attend wants as many heads of keys and of values as there are query heads. Which "
        "copies have to be neighbours? (torch has repeat_interleave, and it has repeat.) "
        "Afterwards undo the move: a row of the result belongs to one token, with its heads side "
        "by side, and only then comes the last matrix.",
    ),
    mistakes=[
        (_attention(cut=_cut_wrongly),
         "the heads are cut in the wrong order. A token's row holds its N heads one after "
         "another, so cut [..., T, N*H] into [..., T, N, H], and exchange T and N only then. Your "
         "view goes to [..., N, T, H] at once and mixes tokens with heads."),
        (_attention(cut=_interleaved),
         "each row is cut into H pieces of N numbers. A head's H numbers are neighbours: N pieces "
         "of H."),
        (_attention(merge=lambda o: o.reshape(*o.shape[:-3], o.shape[-2], -1)),
         "the outputs are put together in the wrong order. They are [..., N, T, H], and a reshape "
         "takes the numbers as they are in memory, so a row of your result holds several tokens "
         "of one head. First make it [..., T, N, H]."),
        (_attention(merge=lambda o: o.transpose(-3, -2).transpose(-2, -1).flatten(-2)),
         "a row holds its own token, but number 0 of every head, then number 1 of every head. wo "
         "expects all of head 0 first."),
        (_attention(repeat=(_tiled, _tiled)),
         "keys and values are tiled: 0 1 0 1. Then query head n reads key/value head n % K. Query "
         "heads that share are neighbours, n // G: repeat each head G times in a row, 0 0 1 1."),
        (_attention(repeat=(_tiled, _repeated)),
         "the values are repeated as they should be, but the keys are tiled: 0 1 0 1. Query head n "
         "reads both at n // G."),
        (_attention(repeat=(_repeated, _tiled)),
         "the keys are repeated as they should be, but the values are tiled: 0 1 0 1. Query head n "
         "reads both at n // G."),
        (_attention(repeat=(_first_only, _first_only)),
         "all query heads read key/value head 0. There are K, and query head n reads n // G."),
        (_one_large_head,
         "all heads have one pattern in common: the scores are sums over all N heads. Each head "
         "has scores and a softmax of its own, so cut queries and keys into heads first."),
        (_attention(scale=lambda H, D: D**-0.5),
         "the scores are divided by the square root of D. Each is a product of H numbers: divide "
         "by the square root of H."),
        (_attention(scale=lambda H, D: 1 / H),
         "the scores are divided by H. If you divide by the square root yourself, my_attend does "
         "it a second time."),
        (_attention(scale=lambda H, D: 1), "the scores are not divided by the square root of H."),
        (_attention(turned=""),
         "nothing is rotated, so no head knows where a token stands. Rotate queries and keys."),
        (_attention(turned="q"), "only the queries are rotated. Rotate the keys as well."),
        (_attention(turned="k"), "only the keys are rotated. Rotate the queries as well."),
        (_attention(turned="qkv"),
         "the values are rotated too. Positions belong in the scores: rotate queries and keys, and "
         "leave the values as they are."),
        (_attention(turned="qv"),
         "queries and values are rotated. It is queries and keys that are."),
        (_attention(masked=lambda mask, scores: torch.zeros_like(mask)),
         "the mask is not used: tokens attend to later ones."),
        (_attention(masked=_own_mask),
         "you made a causal mask of your own. Use the one that is given; it may hide more."),
        (_attention(last=lambda x, merged, wo: merged),
         "these are the outputs of the heads, side by side. wo is missing: it turns them into "
         "what is added to the stream."),
        (_attention(last=lambda x, merged, wo: merged @ wo),
         "wo is the wrong way round. It is square, so no error was raised; its rows are its "
         "outputs, as in every weight: multiply by its transpose."),
        (_attention(last=lambda x, merged, wo: x + linear(merged, wo)),
         "x is added to the result. Attention returns the change alone; what it is added to is the "
         "next question, and it is not x."),
        (_attention(
            before=lambda x, weights, config:
                rms_norm(x, weights["attention_norm.weight"], config.norm_eps)),
         "x is normalised again. It comes normalised."),
    ],
    properties=[
        (answer_property(_zero_wo),
         "with wo all zeros the result is not zero. The last step is the product with wo, and "
         "nothing is added after it."),
        (answer_property(_no_leak),
         "an earlier row changes when the last token does, so the future is visible. Is the mask "
         "used, or does a reshape mix tokens?"),
        (answer_property(_first_row),
         "row 0 can attend only to itself, so its result is wo times its own values, each head of "
         "values G times in a row. It is not: look at the values, the sharing and wo, and not at "
         "the scores."),
    ],
)  # fmt: skip


# --- What each head writes ------------------------------------------------------------------------


def _writes_cases():
    sizes = ((2, 2, 1), (3, 2, 3), (5, 4, 3), (4, 3, 5))  # T, N, H
    return [tuple(drawn(i, (T, N, H), (N * H, N * H))) for i, (T, N, H) in enumerate(sizes)]


def _writes(outputs, wo):
    return torch.einsum("tnh,dnh->tnd", outputs, wo.unflatten(1, outputs.shape[1:]))


head_writes = Exercise(
    "The heads' outputs [T, N, H], wo [D, N*H] -> [T, N, D]: what each head adds to each row.",
    right=_writes,
    cases=_writes_cases,
    hints=(
        "Think of wo with all columns but those of one head set to 0. Which columns are head n's?",
        "Cut the second dimension of wo into N pieces of H. Then every head has a matrix [D, H] of "
        "its own, to be multiplied with its own output.",
    ),
    mistakes=[
        (lambda o, wo: torch.einsum("tnh,nhd->tnd", o, wo.unflatten(0, o.shape[1:])),
         "you cut wo into blocks of rows. It is square, so no error was raised; a head's numbers "
         "are inputs of wo, and inputs are columns."),
        (lambda o, wo: torch.einsum("tnh,dhn->tnd", o, wo.unflatten(1, o.shape[:0:-1])),
         "the columns of wo are cut into H pieces of N. A head's H columns are neighbours: N "
         "pieces of H."),
        (lambda o, wo: _writes(o, wo).sum(1),
         "these are the heads together, the whole change. Leave their contributions apart: "
         "[T, N, D]."),
        (lambda o, wo: _writes(o, wo).transpose(0, 1),
         "the values are right, but the heads come first: [N, T, D]. The result is [T, N, D]."),
        (lambda o, wo: _writes(o, wo) / o.shape[1],
         "each is divided by N. The contributions are added, not averaged."),
    ],
    properties=[
        (of_each(lambda found, o, wo: agree(found.sum(1), linear(o.flatten(1), wo))),
         "your contributions do not add up to the change, wo times all heads side by side."),
        (answer_property(lambda answer, o, wo: agree(
            answer(torch.cat([o[:, :1], 0 * o[:, 1:]], 1), wo)[:, 1:], 0 * _writes(o, wo)[:, 1:])),
         "where all heads but head 0 are zero, another head writes something."),
    ],
)  # fmt: skip


# --- Tokens that fit into the memory --------------------------------------------------------------


def _memory_cases():
    small = Config(12, 2, 6, 3, 10, 4, 1e-5, 100.0)  # D, L, N, K, V; presets have K = 8
    exact = PRESETS["Llama-3-8B"].n_parameters * 4 + 1000 * _bytes(PRESETS["Llama-3-8B"], 4)
    return {
        "a small model (L 2, N 6, K 3, H 2) in 8000 bytes, 2 bytes each": (small, 8000, 2),
        "Llama-3-8B in 24 GiB, 2 bytes each": (PRESETS["Llama-3-8B"], 24 * 2**30, 2),
        "Llama-3-8B and exactly 1000 tokens, 4 bytes each": (PRESETS["Llama-3-8B"], exact, 4),
        "Llama-3.2-1B in 8 GiB, 2 bytes each": (PRESETS["Llama-3.2-1B"], 8 * 2**30, 2),
        "Llama-3-70B in 192 GiB, 2 bytes each": (PRESETS["Llama-3-70B"], 192 * 2**30, 2),
    }


def _bytes(config, size):
    """What one token takes in the cache."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * size


def _room(config, memory, size, heads=None, both=2, layers=None, weights=1, cached=None):
    heads = config.n_kv_heads if heads is None else heads
    layers = config.n_layers if layers is None else layers
    left = memory - weights * config.n_parameters * size
    return left // (both * layers * heads * config.head_dim * (cached or size))


def _one_token_is_right(answer, config, memory, size):
    more = memory + 1000 * _bytes(config, size)
    return answer(config, more, size) - answer(config, memory, size) == 1000


def _weights_are_right(answer, config, memory, size):
    return answer(config, config.n_parameters * size, size) == 0


cache_room = Exercise(
    "config, memory in bytes, bytes per number -> how many tokens fit into it beside the weights.",
    right=_room,
    cases=_memory_cases,
    hints=(
        "Two things share the memory. What does one of them take before the first token, and what "
        "does every token add to the other?",
        "Equation (5.7) has all that one token takes; its letters are n_layers, n_kv_heads and "
        "head_dim in the config. A token that fits only in part does not fit.",
    ),
    mistakes=[
        (lambda c, memory, size: _room(c, memory, size, heads=c.n_heads),
         "you count a key and a value for every query head. Only the K key/value heads are "
         "cached."),
        (lambda c, memory, size: _room(c, memory, size, both=1),
         "twice too many: the cache keeps a key and also a value of each token."),
        (lambda c, memory, size: _room(c, memory, size, layers=1),
         "this is the room of one layer's cache. Every layer has its own keys and values."),
        (lambda c, memory, size: _room(c, memory, size, weights=0),
         "the weights are in the same memory: subtract them first."),
        (lambda c, memory, size: _room(c, memory, size, weights=2),
         "the weights are subtracted twice. Gradients are as large as the weights, but they belong "
         "to training; a model that only generates has none."),
        (lambda c, memory, size: _room(c, memory, size, cached=1),
         "the cache is counted in numbers, not in bytes: a number takes `bytes_each`."),
        (lambda c, memory, size: _room(c, memory, size, weights=1 / size),
         "the weights are counted in numbers, not in bytes: a number takes `bytes_each`."),
        (lambda c, memory, size: _room(c, memory, size, heads=c.n_heads + 2 * c.n_kv_heads, both=1),
         "the queries are in your cache too. A query is used once, by its own token: only keys and "
         "values are cached."),
        (lambda c, memory, size: _room(c, memory, size, heads=c.n_kv_heads * c.n_heads),
         "`dim` is as wide as all N query heads. One key takes `head_dim` numbers."),
        (lambda c, memory, size: _room(c, memory, 2),
         "a number takes 2 bytes here, whatever `bytes_each` is."),
        (lambda c, memory, size: _room(c, memory, 1),
         "nothing is counted in bytes: a number takes `bytes_each`, in the weights and in the "
         "cache."),
        (lambda c, memory, size: memory - c.n_parameters * size,
         "these are the bytes left for the cache. How many tokens fit into them?"),
        (lambda c, memory, size: _room(c, memory, size, heads=1),
         "this is the room for one key/value head: there are K of them."),
        (lambda c, memory, size: (memory - c.n_parameters * size) / _bytes(c, size),
         "a part of a token does not fit: round down to a whole number."),
        (lambda c, memory, size: round((memory - c.n_parameters * size) / _bytes(c, size)),
         "this is rounded to the nearest number. A part of a token does not fit: round down."),
        (lambda c, memory, size: -((c.n_parameters * size - memory) // _bytes(c, size)),
         "this is rounded up. A part of a token does not fit: round down."),
    ],
    properties=[
        (of_each(lambda found, *case: found == int(found)),
         "a part of a token does not fit: round down to a whole number."),
        (answer_property(_one_token_is_right),
         "what one token takes is not right: with room for exactly 1000 more tokens, your result "
         "does not grow by 1000. What is cached, how often, and how many bytes is that?"),
        (answer_property(_weights_are_right),
         "what the weights take is not right, or something is added: in a memory that they fill, "
         "your result is not 0."),
    ],
)  # fmt: skip


# --- Fewer key/value heads ------------------------------------------------------------------------


def _pool_cases():
    sizes = ((6, 2, 2, 2), (6, 2, 5, 4), (8, 2, 3, 7), (6, 3, 7, 2), (3, 1, 2, 5), (4, 4, 3, 3))
    return [(*drawn(i, (K * H, D)), K, J) for i, (K, J, H, D) in enumerate(sizes)]


def _pooled(weight, K, J):
    return weight.unflatten(0, (J, K // J, -1)).mean(1).flatten(0, 1)


def _of_equal_heads(answer, weight, K, J):
    """Whether the mean of equal heads is the same head again."""
    head = weight[: len(weight) // K]
    return agree(answer(head.repeat(K, 1), K, J), head.repeat(J, 1))


def _of_equal_groups(answer, weight, K, J):
    """Whether groups whose heads are equal stay what they are."""
    new = weight[: len(weight) // K * J]
    heads = new.unflatten(0, (J, -1)).repeat_interleave(K // J, dim=0)
    return agree(answer(heads.flatten(0, 1), K, J), new)


pool_heads = Exercise(
    "wk or wv [K*H, D], K, J -> [J*H, D]: each new head is the mean of K/J neighbouring heads.",
    right=_pooled,
    cases=_pool_cases,
    hints=(
        "How are the rows of the matrix ordered? Which heads are the first to become one, and "
        "which row of the first meets which row of the second?",
        "Cut the rows into three dimensions: new heads, old heads in each of them, rows of a head. "
        "Over which of them is the mean? Two dimensions are left, and they become one again.",
    ),
    mistakes=[
        (lambda w, K, J: w.unflatten(0, (K // J, J, -1)).mean(0).flatten(0, 1),
         "you average every J-th head. The heads that become one are neighbours, so that query "
         "head n still finds its own at n // G."),
        (lambda w, K, J: w.unflatten(0, (-1, K // J)).mean(1),
         "you average neighbouring rows, which are numbers of one and the same head. Average row h "
         "of one head with row h of the next."),
        (lambda w, K, J: _pooled(w, K, J) * (K // J),
         "these are sums. Divide by the number of heads that become one."),
        (lambda w, K, J: w.unflatten(0, (J, K // J, -1))[:, 0].flatten(0, 1),
         "the first head of each group is kept and the others are dropped. Take their mean."),
        (lambda w, K, J: w.unflatten(0, (K, -1))[:J].flatten(0, 1),
         "the first heads are kept and the others are dropped. Take means of neighbours."),
        (lambda w, K, J: w.unflatten(0, (K // J, J, -1)).mean(1).flatten(0, 1),
         "this makes K/J heads, each from J old ones. It is the other way round: J new heads, each "
         "the mean of K/J old ones."),
        (lambda w, K, J: w.unflatten(0, (J, -1)).mean(1),
         "each new head is a single row: its rows are averaged with one another. Average row h of "
         "one head with row h of the next."),
        (lambda w, K, J: w.unflatten(0, (J, K // J, -1)).mean(1),
         "the rows are right, but the result is [J, H, D]. A weight matrix has its heads one below "
         "the other: flatten the first two dimensions."),
        (lambda w, K, J: (
            w.unflatten(0, (J, K // J, -1)).mean(1).repeat_interleave(K // J, 0).flatten(0, 1)),
         "there are still K heads: each mean is in it several times. Keep one of each; that is "
         "what saves memory."),
    ],
    properties=[
        (answer_property(_of_equal_heads),
         "where all K heads are equal, the new ones are not the same head again. Is it a sum, or "
         "are the rows of one head mixed with one another?"),
        (answer_property(_of_equal_groups),
         "where the K/J heads of each group are equal, the new ones are not those. Average "
         "neighbours: the first K/J heads become head 0."),
        (of_each(lambda found, w, K, J: agree(found.mean(0), w.mean(0))),
         "the mean over all rows of the matrix has changed. Does every old head count, and each as "
         "much as the others?"),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
