"""Answers to the exercises of notebook 09, apart from the checkers' own."""

import math

import torch

INF = math.inf


def append_by_index(buffer, length, new):
    for t in range(new.shape[-3]):
        buffer[..., length + t, :] = new[..., t, :, :]
    return buffer.transpose(-3, -2)[..., : length + new.shape[-3], :, :]


def append_narrow(buffer, length, new):
    T = new.size(-3)
    buffer.narrow(-2, length, T).copy_(new.swapaxes(-3, -2))
    return buffer.narrow(-2, 0, length + T).swapaxes(-2, -3)


def append_at(start, keep):
    """Wrong in where it begins to write, and in how much it returns."""

    def answer(buffer, length, new):
        T = new.shape[-3]
        stop = min(start(length) + T, buffer.shape[-2])
        buffer[..., stop - T : stop, :] = new.transpose(-3, -2)
        return buffer[..., : keep(length, T), :].transpose(-3, -2)

    return answer


def prefix_by_slices(cached, ids):
    return max(n for n in range(len(ids)) if cached[:n] == ids[:n] and n <= len(cached))


def prefix_with_zip(cached, ids):
    for i, (a, b) in enumerate(zip(cached, ids[:-1], strict=False)):
        if a != b:
            return i
    return min(len(cached), len(ids) - 1)


def draft_in_a_loop(logits, draft, length):
    new = []
    for row, token in zip(logits, [*draft, None], strict=True):
        new.append(int(row.argmax()))
        if new[-1] != token:
            break
    return new, length - len(draft) + len(new) - 1


def draft_by_product(logits, draft, length):
    best = logits.argmax(-1)
    agree = best[:-1] == torch.tensor(draft, dtype=torch.long)
    k = int(agree.long().cumprod(0).sum())
    return best[: k + 1], length + k - len(draft)


def rows(sees, hidden=-INF):
    """A mask from (query, key, window, sinks) -> whether it is seen."""
    return lambda start, stop, *sizes: torch.tensor(
        [[0.0 if sees(q, k, *sizes) else hidden for k in range(stop)] for q in range(start, stop)]
    )


def near_or_first(q, k, window, sinks):
    return k <= q and (q - k < window or k < sinks)


def padded(sees):
    """A mask from (query, key, padding in front) -> whether it is seen."""
    return lambda lengths, T: torch.tensor(
        [[[0.0 if sees(q, k, T - n) else -INF for k in range(T)] for q in range(T)]
         for n in lengths]
    )  # fmt: skip


RIGHT = {
    "e09_kv_cache.append": [append_by_index, append_narrow],
    "e09_kv_cache.common_prefix": [prefix_by_slices, prefix_with_zip],
    "e09_kv_cache.verify": [draft_in_a_loop, draft_by_product],
    "e09_kv_cache.window_mask": [
        rows(near_or_first),
        lambda start, stop, w, s: torch.maximum(
            torch.ones(stop - start, stop).tril(start).triu(start - w + 1),
            torch.ones(stop - start, stop).tril(start) * (torch.arange(stop) < s)).log(),
    ],
    "e09_kv_cache.padded_mask": [
        padded(lambda q, k, front: front <= k <= q or q == k),
        padded(lambda q, k, front: k == 0 if q < front else front <= k <= q),
    ],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e09_kv_cache.append": [
        (lambda buffer, length, new: new, "come back alone"),
        (lambda *case: append_narrow(*case).contiguous(), "does not share the buffer's memory"),
        (append_at(lambda n: n, lambda n, T: n + T + 1), "S = length + T positions"),
        #
        (append_at(lambda n: 0, lambda n, T: n), "S = length + T positions"),
        (append_at(lambda n: n + 1, lambda n, T: n + T), "from `length` on do not hold"),
    ],
    "e09_kv_cache.common_prefix": [
        (lambda cached, ids: prefix_by_slices(cached, [*ids, None]), "leaves nothing to compute"),
        (lambda cached, ids: len(ids) - 1, "not equal as far as that"),
        #
        (lambda cached, ids: len(set(cached) & set(ids)), "leave at least one token"),
    ],
    "e09_kv_cache.verify": [
        (lambda logits, draft, length: (draft_in_a_loop(logits, draft, length)[0], length - 1),
         "the cache's length is wrong"),
        #
        (lambda logits, draft, length: (draft, length), "at least one token"),
        (lambda logits, draft, length: (logits.argmax(-1), length), "wrong number of tokens"),
        (lambda logits, draft, length: (logits[-1:].argmax(-1), 0), "not the greedy text"),
    ],
    "e09_kv_cache.window_mask": [
        (rows(near_or_first, hidden=-1e4), "other numbers than 0"),
        (lambda start, *rest: rows(near_or_first)(0, *rest), "the shape is [4, 4]"),
        #
        (rows(lambda q, k, w, s: abs(q - k) <= w or k < s), "the future is open"),
        (rows(lambda q, k, w, s: k <= q and (q - k <= w or k <= s)), "too many or too few keys"),
    ],
    "e09_kv_cache.padded_mask": [
        (padded(lambda q, k, front: front <= k <= q), "minus infinity from end to end"),
        (padded(lambda q, k, front: k <= q), "the padding is seen"),
        #
        (padded(lambda q, k, front: k >= front - 1), "the future is open"),
        (padded(lambda q, k, front: k == q or front - 1 <= k <= q), "sees padding"),
        (padded(lambda q, k, front: k == q or front < k <= q), "not all of its own prompt"),
        (lambda lengths, T: RIGHT["e09_kv_cache.padded_mask"][0](lengths, T).clamp(min=-1e9),
         "other numbers than 0"),
    ],
}  # fmt: skip
