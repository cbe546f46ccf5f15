"""Answers to the exercises of notebook 23, apart from the checkers' own."""

import torch


def limit_in_steps(sizes, S, B, bits, bandwidth, rate):
    V, L, D, N, K, H, F = (sizes[letter] for letter in "VLDNKHF")
    n = V * D
    for _ in range(L):
        n += D * (N * H + 2 * K * H) + N * H * D + 3 * D * F
    reading = (n * bits // 8 + B * S * 4 * L * K * H) / bandwidth
    computing = (2 * n * B + 4 * B * L * S * N * H) / rate
    return reading if reading > computing else computing


def slots_in_pages(pages, start, T, size):
    everything = [page * size + i for page in pages for i in range(size)]
    return everything[start : start + T]


def queue_by_passes(arrivals, lengths, B):
    """A pass at a time, as the notebook's own loop goes."""
    waiting, running, ends, now = list(range(len(lengths))), {}, [None] * len(lengths), 0
    while waiting or running:
        while waiting and len(running) < B and arrivals[waiting[0]] <= now:
            i = waiting.pop(0)
            running[i] = lengths[i]
        for i in list(running):
            running[i] -= 1
            if running[i] == 0:
                ends[i] = now
                del running[i]
        now += 1
    return ends


def accept_elementwise(p, q, token):
    rest = torch.where(p > q, p - q, torch.zeros_like(p))
    total = float(rest.sum())
    return min(float(p[token]) / float(q[token]), 1.0), rest / total if total else p


RIGHT = {
    "e23_speed.limit": [limit_in_steps],
    "e23_speed.slots": [slots_in_pages],
    "e23_speed.queue": [queue_by_passes],
    "e23_speed.accept": [accept_elementwise],
}
OTHERS = {  # after a bare comment: two mistakes at once
    "e23_speed.limit": [
        (lambda *case: limit_in_steps(*case) * 10**6, "more than reading and arithmetic"),
        (lambda *case: limit_in_steps(*case) * 1000, "milliseconds"),
        #
        (
            lambda sizes, S, B, *rest: limit_in_steps({**sizes, "L": 1}, S, B, *rest),
            "less than the shorter",
        ),
    ],
    "e23_speed.slots": [
        (
            lambda pages, start, T, size: slots_in_pages(pages, start, T, size)[:1],
            "one slot for each of the T tokens",
        ),
        #
        (
            lambda pages, start, T, size: [max(pages) * size + size + i for i in range(T)],
            "not this text's",
        ),
        (lambda pages, start, T, size: [pages[0] * size] * T, "the same slot"),
    ],
    "e23_speed.queue": [
        (lambda arrivals, lengths, B: queue_by_passes(arrivals, lengths, B + 1), "more than B"),
        (lambda *case: sorted(queue_by_passes(*case)), "Entry i belongs to text i"),
        #
        (lambda arrivals, lengths, B: [0] * len(lengths), "before it can"),
    ],
    "e23_speed.accept": [
        (lambda p, q, token: (0.5, p), "not distributed as p"),
        (lambda p, q, token: (2.0, p), "from 0 to 1"),
        (
            lambda p, q, token: (
                torch.minimum(torch.ones_like(p), p / q),
                accept_elementwise(p, q, token)[1],
            ),
            "the chances of all tokens",
        ),
        (lambda p, q, token: (0.5, torch.tensor([token])), "one for each token"),
        #
        (lambda p, q, token: (1.0, p - q), "none below 0"),
    ],
}
