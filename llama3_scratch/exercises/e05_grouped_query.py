"""The exercises of notebook 05: shared heads, merged heads, the stream, the cache, pooled heads."""

import torch

from llama3_scratch.config import PRESETS, Config
from llama3_scratch.exercises.frame import (
    Exercise,
    agree,
    answer_property,
    desk,
    drawn,
    of_each,
)
from llama3_scratch.model import rms_norm

# --- The query heads that share a key/value head --------------------------------------------------


def _group(k, N, K):
    return list(range(k * N // K, (k + 1) * N // K))


def _each_head_once(answer, k, N, K):
    heads = [int(n) for i in range(K) for n in answer(i, N, K)]
    return sorted(heads) == list(range(N))


readers = Exercise(
    "k, n_heads N, n_kv_heads K -> a list: the query heads that share key/value head k, in order.",
    right=_group,
    cases=lambda: [(1, 6, 2), (1, 12, 3), (0, 10, 2), (4, 15, 5), (3, 24, 8), (2, 5, 5), (0, 3, 1)],
    mistakes=[
        (lambda k, N, K: list(range(k, N, K)),
         "these are every K-th head, dealt out like cards. Query heads that share are neighbours: "
         "head n uses key/value head n // G, not n % K."),
        (lambda k, N, K: list(range(k * K, (k + 1) * K)),
         "your groups have K heads each. There are K groups, and each has G = N/K heads."),
        (lambda k, N, K: list(range(4 * k, 4 * k + 4)),
         "your groups have four heads each. That is Llama-3-8B; compute G = N/K."),
        (lambda k, N, K: [n + 1 for n in _group(k, N, K)],
         "each is one too high: heads count from 0, so the first group begins with head 0."),
        (lambda k, N, K: _group(k, N, K)[:-1],
         "the last head of the group is missing: `range` stops before its second argument."),
        (lambda k, N, K: [*_group(k, N, K), (k + 1) * N // K],
         "there is one too many: the last one is the first head of the next group."),
        (lambda k, N, K: [n - N // K for n in _group(k, N, K)],
         "this is the group before: key/value heads count from 0, and so do their groups."),
        (lambda k, N, K: [_group(k, N, K)[0], _group(k, N, K)[-1]],
         "these are the first and the last head of the group. List those between them too."),
        (lambda k, N, K: list(range(k, N, N // K)),
         "these are every G-th head. Query heads that share are neighbours: G of them in a row."),
        (lambda k, N, K: [n // (N // K) for n in range(N)],
         "this says for each query head which key/value head it uses. List the query heads for "
         "which that is k."),
        (lambda k, N, K: k // (N // K),
         "this is the key/value head that query head k uses. The question is the other way round: "
         "which query heads share key/value head k?"),
    ],
    properties=[
        (of_each(lambda found, k, N, K: len(found) == N // K),
         "the number of heads is not G = N/K, the size of a group."),
        (of_each(lambda found, k, N, K: all(0 <= n < N for n in found)),
         "the list has heads that do not exist. Query heads count from 0 to N - 1."),
        (of_each(lambda found, k, N, K: [*found] == [*range(found[0], found[0] + len(found))]),
         "the heads are not neighbours, in order. A group is G heads in a row."),
        (answer_property(_each_head_once),
         "over all k, some query head appears twice or not at all. Each belongs to exactly one "
         "group, and group k begins at k * G."),
    ],
)  # fmt: skip


# --- Heads side by side ---------------------------------------------------------------------------


def _outputs_cases():
    numbered = torch.arange(12.0).view(2, 3, 2)
    return [(numbered,), *((x,) for x in drawn(1, (4, 5, 3), (3, 7, 2), (3, 3, 3), (3, 1, 4)))]


def _merged(outputs):
    return outputs.transpose(0, 1).flatten(1)


def _own_numbers(found, outputs):
    """Whether row t has the numbers of token t, in any order."""
    return agree(found.sort(-1).values, _merged(outputs).sort(-1).values)


merge_heads = Exercise(
    "The heads' outputs [N, T, H] -> [T, N*H], each token's heads side by side.",
    right=_merged,
    cases=_outputs_cases,
    mistakes=[
        (lambda x: x.reshape(x.shape[1], -1),
         "the shape is right and the rows are not: `reshape` takes the numbers head by head, as "
         "they are in memory, so your row 0 holds many tokens of head 0. First make the token the "
         "leading dimension."),
        (lambda x: x.permute(1, 2, 0).flatten(1),
         "each row holds its own token, but the numbers are in the wrong order: number 0 of every "
         "head, then number 1 of every head. wo expects all of head 0 first."),
        (lambda x: x.transpose(0, 1),
         "the token comes first now, but it still has a matrix [N, H]: flatten that to one row."),
        (lambda x: x.flatten(0, 1),
         "heads and tokens share one dimension now, [N*T, H]. A token has one row, in which its "
         "heads stand side by side."),
        (lambda x: x.flatten(1),
         "each row is one head here, with the numbers of all its tokens. A row is one token, with "
         "the numbers of all its heads: first make the token the leading dimension."),
        (lambda x: x.mean(0),
         "this is the mean of the heads. They stay apart here, side by side; wo mixes them."),
        (lambda x: x.sum(0),
         "the heads are added up. They stay apart here, side by side; wo adds them, with weights."),
    ],
    properties=[
        (of_each(_own_numbers),
         "a row does not hold the numbers of its own token, all of them and no others, so tokens "
         "are mixed and the future is visible. Make the token the leading dimension first."),
        (of_each(lambda found, x: agree(found[:, : x.shape[2]], x[0])),
         "each row holds its own token, but not in the right order: the first H numbers are those "
         "of head 0, as they are; then comes head 1."),
    ],
)  # fmt: skip


# --- The change that a sub-layer makes ------------------------------------------------------------


def _previous(x):
    """[T, D] -> [T, D], in place of attention: each row from itself and the row before."""
    return torch.tanh(x + 2 * x.roll(1, 0))


def _mean_so_far(x):
    """[T, D] -> [T, D], in place of attention: each row from all rows so far."""
    return torch.sin(x.cumsum(0)) + x * x


def _stream_cases():
    large, small, long = drawn(0, (3, 5), (4, 6), (5, 2))
    for_large, for_small, for_long = drawn(1, (5,), (6,), (2,))
    with_zeros = torch.cat([torch.zeros(1, 2), 5 * long])
    return {
        "a stream [3, 5]": (3 * large, for_large, 1e-5, _previous),
        "a stream [4, 6] of small numbers": (small / 9, for_small, 1e-2, _mean_so_far),
        "a stream [6, 2] with a row of zeros": (with_zeros, for_long, 1e-5, _previous),
    }


def _changed(stream, weight, eps, sublayer):
    return stream + sublayer(rms_norm(stream, weight, eps))


def _all_on_the_copy(stream, weight, eps, sublayer):
    normed = rms_norm(stream, weight, eps)
    return normed + sublayer(normed)


def _input_is_right(answer, stream, weight, eps, sublayer):
    inputs = []
    answer(stream, weight, eps, lambda x: inputs.append(x) or sublayer(x))
    return bool(inputs) and agree(inputs[0], rms_norm(stream, weight, eps))


add_change = Exercise(
    "stream [T, D], weight [D], eps, a function [T, D] -> [T, D] -> the new stream [T, D].",
    right=_changed,
    cases=_stream_cases,
    mistakes=[
        (_all_on_the_copy,
         "the change is added to the normalised copy. The stream itself goes on as it is; only the "
         "sub-layer sees the copy."),
        (lambda x, weight, eps, sublayer: x + sublayer(x),
         "the sub-layer gets the stream as it is. It expects a normalised copy."),
        (lambda x, weight, eps, sublayer: rms_norm(x, weight, eps) + sublayer(x),
         "the two are exchanged: the sub-layer gets the normalised copy, and its result is added "
         "to the stream as it is."),
        (lambda x, weight, eps, sublayer: rms_norm(_changed(x, weight, eps, sublayer), weight, eps),
         "the sum is normalised as well. Only the input of the sub-layer is normalised; the next "
         "sub-layer makes a copy of its own."),
        (lambda x, weight, eps, sublayer: sublayer(rms_norm(x, weight, eps)),
         "this is the change alone. Add it to the stream."),
        (lambda x, weight, eps, sublayer: rms_norm(x + sublayer(x), weight, eps),
         "this normalises after the addition, as the first Transformer of 2017 did. Llama 3 "
         "normalises before the sub-layer, and leaves the sum as it is."),
        (lambda x, weight, eps, sublayer: x + rms_norm(sublayer(x), weight, eps),
         "this normalises the change, after the sub-layer. Llama 3 normalises its input."),
        (lambda x, weight, eps, sublayer: x + sublayer(rms_norm(x, torch.ones_like(weight), eps)),
         "the norm's weight is left out: each column of the normalised copy has its own factor."),
    ],
    properties=[
        (answer_property(lambda answer, x, weight, eps, sublayer: agree(
            answer(x, weight, eps, torch.zeros_like), x)),
         "a sub-layer that gives zeros should leave the stream as it is, and it does not. What is "
         "added to the change is the stream itself."),
        (answer_property(_input_is_right),
         "the input of the sub-layer is not rms_norm(stream, weight, eps). Are all three used?"),
        (answer_property(lambda answer, x, weight, eps, sublayer: agree(
            answer(x, weight, eps, torch.ones_like), x + 1)),
         "a sub-layer that gives ones should add 1 to the stream, and it does not. Its result is "
         "added as it is, once."),
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
