"""The exercises of notebook 23: the limit, slots of a paged cache, a queue, accepting a draft."""

import heapq

import torch

from llama3_scratch.config import PRESETS
from llama3_scratch.exercises.frame import Exercise, desk, drawn, of_each

# --- The limit ------------------------------------------------------------------------------------

TINY = {"V": 2048, "L": 6, "D": 192, "F": 672, "N": 8, "K": 2, "G": 4, "H": 24, "P": 12}
ONE_B, BIG = PRESETS["Llama-3.2-1B"].sizes, PRESETS["Llama-3-8B"].sizes


def _matrices(sizes, tables=1):
    V, L, D, F, N, K, H = (sizes[letter] for letter in "VLDFNKH")
    return L * (2 * N * H * D + 2 * K * H * D + 3 * D * F) + tables * V * D


def _limit(
    sizes, S, B, bits, bandwidth, rate, *, tables=1, texts=True, read_by_each=False, heads="K",
    both=2, cache_bits=16, L=None, per_byte=8, two=2, scores=4, queries="N", scored=True, rows=True,
    together=max,
):  # fmt: skip
    """The right answer; every keyword is a mistake that can be made."""
    n = _matrices(sizes, tables)
    cached = both * (L or sizes["L"]) * sizes[heads] * sizes["H"] * S * (B if texts else 1)
    read = n * bits * (B if read_by_each else 1) + cached * (cache_bits or bits)
    scored_by = scores * sizes["L"] * S * sizes[queries] * sizes["H"] * (B if scored else 1)
    flops = two * n * B + scored_by if rows else two * n + scored_by / B
    return together(read / per_byte / bandwidth, flops / rate)


def _but(**slip):
    return lambda *case: _limit(*case, **slip)


limit = Exercise(
    "A model's {letter: size}; B texts, which attend to S positions each; bits of a weight; bytes "
    "a second from memory; FLOPs a second -> the least seconds of a pass that gives every text "
    "one token. The cache has 16 bits a number.",
    right=_limit,
    cases=lambda: {
        "the small case": (
            {"V": 10, "L": 2, "D": 4, "F": 6, "N": 2, "K": 1, "H": 2}, 3, 1, 16, 1000, 10**9),
        "a 1B, S = 32, B = 1, 16 bits": (ONE_B, 32, 1, 16, 30e9, 150e9),
        "a 1B, S = 4,096, B = 1, 4 bits": (ONE_B, 4096, 1, 4, 30e9, 150e9),
        "a 1B, S = 16,384, B = 8, 8 bits": (ONE_B, 16384, 8, 8, 30e9, 150e9),
        "a 1B, S = 32, B = 64, 16 bits": (ONE_B, 32, 64, 16, 30e9, 150e9),
        "an 8B, S = 1,024, B = 16, 16 bits": (BIG, 1024, 16, 16, 4.8e12, 9.9e14),
        "an 8B, S = 2,048, B = 300, 4 bits": (BIG, 2048, 300, 4, 4.8e12, 4e14),
        "tiny, S = 100, B = 512, 32 bits": (TINY, 100, 512, 32, 30e9, 100e9),
        "tiny, S = 50, B = 3, 4 bits": (TINY, 50, 3, 4, 30e9, 1e9),
    },
    mistakes=[
        (_but(tables=2),
         "the embedding table is counted as read, or multiplied by. A token reads one row of it, "
         "which hardly counts."),
        (_but(tables=0),
         "the output matrix is missing: every token is compared with all V rows of it."),
        (_but(texts=False),
         "the cache is counted once. Each of the B texts has keys and values of its own."),
        (_but(read_by_each=True),
         "the weights are read once for each text. One pass reads them once, for all B texts: "
         "that is what a batch is for."),
        (_but(heads="N"),
         "the cache has keys for all N heads. It keeps those of the K key/value heads, and the "
         "query heads share them."),
        (_but(both=1),
         "the cache is counted half: it holds keys and values, twice L K H numbers a position, and "
         "each number has two bytes."),
        (_but(cache_bits=32), "the cache is counted with 32 bits a number. It keeps 16."),
        (_but(cache_bits=128), "the cache's 16 bits a number are counted as 16 bytes."),
        (lambda sizes, S, *rest: _limit(sizes, S + 1, *rest),
         "each text attends to S positions, its new one included. You count one more."),
        (lambda sizes, S, B, bits, *rest: _limit(
            sizes, S, B, 8 * (bits // 8), *rest, cache_bits=16),
         "`bits // 8` is 0 for 4 bits. Divide by `/`."),
        (_but(cache_bits=None),
         "the cache is counted with the bits of the weights. It keeps 16 bits a number."),
        (_but(L=1), "the cache of one layer is counted. Every layer has its own."),
        (_but(per_byte=1), "bits are counted as bytes."),
        (_but(two=1),
         "each weight is counted as one operation for a row. A multiplication and an addition are "
         "two."),
        (_but(scores=2),
         "the FLOPs of attention are counted half. It has two products: of the queries with the "
         "keys, and of the probabilities with the values."),
        (_but(queries="K"),
         "the FLOPs of attention are counted for K heads. The N query heads share keys and values, "
         "but each of them multiplies."),
        (_but(scored=False),
         "the FLOPs of attention are counted for one text. Each of the B texts has its own."),
        (_but(scores=0),
         "the FLOPs of attention are missing: each of the N heads multiplies its query with S "
         "keys, and its probabilities with S values, in each layer."),
        (_but(rows=False),
         "the FLOPs of one text are counted. The weights are read once for all B texts, but each "
         "text needs its own arithmetic."),
        (_but(together=lambda read, computed: read + computed),
         "you add the two times. A machine reads and computes at the same time, so at best the "
         "longer one of them counts."),
        (_but(together=min),
         "this is the shorter of the two times. The pass cannot end before both are done."),
        (_but(together=lambda read, computed: read),
         "the time of reading is right; the arithmetic is missing. With many texts it is what "
         "takes longer."),
        (_but(together=lambda read, computed: computed),
         "the time of the arithmetic is right; the reading is missing. With one text it is what "
         "takes longer."),
        (lambda *case: 1000 * _limit(*case), "these are milliseconds. Return seconds."),
        (lambda sizes, S, B, *rest: B / _limit(sizes, S, B, *rest),
         "these are tokens a second. Return the seconds of one pass."),
        (lambda sizes, S, B, *rest: _limit(sizes, S, B, *rest) / B,
         "these are the seconds for one text's share. Return those of the whole pass."),
    ],
    properties=[
        (of_each(lambda found, *case: found > 0), "a time is more than 0."),
        (of_each(lambda found, *case: found <= 1.001 * _limit(*case, together=lambda a, b: a + b)),
         "it is too large: more than reading and arithmetic one after the other take. Something is "
         "counted twice, or in another unit."),
        (of_each(lambda found, *case: found >= 0.999 * _limit(*case, together=min)),
         "it is less than the shorter of the two times. Count the numbers of one layer first: "
         "2 NHD + 2 KHD + 3 DF."),
    ],
    hints=(
        "Count three things: the numbers in the matrices that a row is multiplied by (equation 9.2 "
        "has them), the bytes in them and in the cache, and the FLOPs of B rows.",
        "Each of the two limits gives a time: bytes divided by bytes a second, FLOPs divided by "
        "FLOPs a second. Both have to be over before the pass is.",
    ),
)  # fmt: skip


# --- Slots of a paged cache -----------------------------------------------------------------------


def _slots(pages, start, T, size):
    return [pages[t // size] * size + t % size for t in range(start, start + T)]


slots = Exercise(
    "The numbers of a text's pages, in the text's order; T tokens from position `start` on; the "
    "positions of a page -> a list of T slots, each a position in the store of all pages.",
    right=_slots,
    cases=lambda: [
        ([5, 2], 3, 3, 4),
        ([0, 1, 2], 0, 12, 4),
        ([7], 2, 1, 8),
        ([3, 9, 1, 4], 5, 9, 4),
        ([6, 0, 11], 31, 2, 16),
        ([2, 8, 5, 1, 9], 4, 1, 1),
        ([4, 7], 5, 0, 8),
    ],
    mistakes=[
        (lambda pages, start, T, size: list(range(start, start + T)),
         "these are the positions in the text. The text's pages may lie anywhere in the store."),
        (lambda pages, start, T, size: [pages[t // size] for t in range(start, start + T)],
         "these are the numbers of the pages. A page has `size` slots: which one of them?"),
        (lambda pages, start, T, size: [pages[t // size] + t % size
                                        for t in range(start, start + T)],
         "page p begins at slot p times `size`, not at slot p."),
        (lambda pages, start, T, size: [pages[t // size] * size for t in range(start, start + T)],
         "every token gets the first slot of its page."),
        (lambda pages, start, T, size: _slots(sorted(pages), start, T, size),
         "you sort the pages. Their order is that of the text's positions."),
        (lambda pages, start, T, size: _slots(pages, 0, T, size),
         "the tokens are stored from position 0 on. They begin at `start`."),
        (lambda pages, start, T, size: _slots(pages, 0, start + T, size),
         "these are the slots of the whole text. Return those of the T new tokens."),
        (lambda pages, start, T, size: [pages[start // size] * size + t % size
                                        for t in range(start, start + T)],
         "all tokens are put into the page of the first one. A page ends, and the next token "
         "belongs to the next page of the list."),
        (lambda pages, start, T, size: [pages[start // size] * size + start % size + i
                                        for i in range(T)],
         "you go on behind the end of a page. The slot after it belongs to another page, perhaps "
         "of another text."),
    ],
    properties=[
        (of_each(lambda found, pages, start, T, size: len(found) == T),
         "it should have one slot for each of the T tokens."),
        (of_each(lambda found, pages, start, T, size: all(s // size in pages for s in found)),
         "a slot belongs to a page that is not this text's."),
        (of_each(lambda found, pages, start, T, size: len(set(found)) == T),
         "two tokens get the same slot."),
    ],
    hints=(
        "With 4 positions a page, position 6 is in the text's page 1 (counting from 0), at place "
        "2. Two operations on 6 and 4 give these numbers.",
        "`pages[...]` translates the text's page into one of the store. The store is all pages, "
        "one behind the other: where does page p begin?",
    ),
)  # fmt: skip


# --- A queue --------------------------------------------------------------------------------------


def _queue(arrivals, lengths, B):
    free, ends = [0] * B, []  # when each place is free
    for arrival, length in zip(arrivals, lengths, strict=True):
        ends.append(max(arrival, heapq.heappop(free)) + length - 1)
        heapq.heappush(free, ends[-1] + 1)
    return ends


def _in_batches(arrivals, lengths, B):
    """Static batches: the next B texts begin when all of the last B have ended."""
    ends, free = [], 0
    for i in range(0, len(lengths), B):
        start = max(free, *arrivals[i : i + B], 0)
        ends += [start + n - 1 for n in lengths[i : i + B]]
        free = max(ends) + 1
    return ends


def _late(arrivals, lengths, B):
    """A place is empty for one pass before the next text takes it."""
    free, ends = [0] * B, []
    for arrival, length in zip(arrivals, lengths, strict=True):
        ends.append(max(arrival, heapq.heappop(free)) + length - 1)
        heapq.heappush(free, ends[-1] + 2)
    return ends


def _early(arrivals, lengths, B):
    free, ends = [0] * B, []
    for arrival, length in zip(arrivals, lengths, strict=True):
        ends.append(max(arrival, heapq.heappop(free)) + length - 1)
        heapq.heappush(free, ends[-1])
    return ends


def _added(arrivals, lengths, B):
    """A text waits for a place, and then for its arrival once more."""
    free, ends = [0] * B, []
    for arrival, length in zip(arrivals, lengths, strict=True):
        ends.append(arrival + heapq.heappop(free) + length - 1)
        heapq.heappush(free, ends[-1] + 1)
    return ends


def _shortest_first(arrivals, lengths, B):
    free, ends, left = [0] * B, [0] * len(lengths), set(range(len(lengths)))
    while left:
        now = heapq.heappop(free)
        now = max(now, min(arrivals[i] for i in left))
        i = min((i for i in left if arrivals[i] <= now), key=lambda i: (lengths[i], i))
        left.remove(i)
        ends[i] = now + lengths[i] - 1
        heapq.heappush(free, ends[i] + 1)
    return ends


def _round_robin(arrivals, lengths, B):
    """Text i always waits for the place i % B."""
    free, ends = [0] * B, []
    for i, (arrival, length) in enumerate(zip(arrivals, lengths, strict=True)):
        ends.append(max(arrival, free[i % B]) + length - 1)
        free[i % B] = ends[-1] + 1
    return ends


queue = Exercise(
    "Texts in the order of their arrival: the pass from which on each can take part, and how many "
    "passes it needs; B places in the batch -> a list: the pass in which each text ends. Passes "
    "count from 0. A place that gets free is taken in the next pass.",
    right=_queue,
    cases=lambda: [
        ([0, 0, 0], [2, 4, 3], 2),
        ([0, 0, 0, 0, 0], [3, 3, 3, 3, 3], 2),
        ([0, 1, 1, 2, 9, 9], [5, 2, 8, 1, 4, 2], 2),
        ([0, 0, 0, 0, 0, 0, 0], [7, 1, 1, 1, 6, 2, 1], 3),
        ([4, 4, 5], [1, 1, 1], 1),
        ([0, 0, 20, 21], [9, 3, 2, 2], 4),
        ([0, 0, 0, 0], [6, 4, 9, 1], 1),
        ([0, 0, 0, 0, 0, 0], [2, 9, 9, 1, 1, 3], 2),
    ],
    mistakes=[
        (_in_batches,
         "these are static batches: the next B texts wait until all of the last B have ended. "
         "Here a place that gets free is taken in the next pass, whatever the other places do."),
        (lambda arrivals, lengths, B: [end + 1 for end in _queue(arrivals, lengths, B)],
         "one too many: a text that begins in pass 3 and needs 2 passes ends in pass 4."),
        (_late,
         "a place stays empty for one pass. The next text begins in the pass after the one in "
         "which the last text ended."),
        (_early,
         "the next text begins in the very pass in which the last one ends. The place is still "
         "taken in that pass."),
        (_round_robin,
         "each text waits for a certain place. It takes whichever place is free first."),
        (_added,
         "you add the arrival and the pass in which a place is free. A text waits for both at the "
         "same time: the later one counts."),
        (lambda arrivals, lengths, B: sorted(_queue(arrivals, lengths, B)),
         "these are the passes in the order in which texts end. Entry i belongs to text i."),
        (_shortest_first,
         "the shortest text that waits goes first. Here the order is that of the arrival."),
        (lambda arrivals, lengths, B: _queue([0] * len(lengths), lengths, B),
         "the arrivals are not used: a text cannot take part before it is there."),
        (lambda arrivals, lengths, B: [a + n - 1 for a, n in zip(arrivals, lengths, strict=True)],
         "every text begins when it arrives. There are only B places."),
        (lambda arrivals, lengths, B: _queue(arrivals, lengths, 1),
         "only one text is in a pass. B of them share it."),
        (lambda arrivals, lengths, B: [end - n + 1 for end, n in zip(
            _queue(arrivals, lengths, B), lengths, strict=True)],
         "these are the passes in which the texts begin. Return those in which they end."),
    ],
    properties=[
        (of_each(lambda found, arrivals, lengths, B: all(
            end >= a + n - 1 for end, a, n in zip(found, arrivals, lengths, strict=True))),
         "a text ends before it can: it arrives, and needs so many passes."),
        (of_each(lambda found, arrivals, lengths, B: all(
            sum(end - n < t <= end for end, n in zip(found, lengths, strict=True)) <= B
            for t in range(max(found) + 1))),
         "in some pass there are more than B texts."),
    ],
    hints=(
        "Keep a list of B numbers: for each place the first pass in which it is free. At the "
        "beginning all are 0.",
        "Take the texts in order. Each goes to the place with the smallest number. When does it "
        "begin there, if it may not have arrived yet? Which number does the place get then?",
    ),
)  # fmt: skip


# --- Accepting a draft ----------------------------------------------------------------------------


def _normal(weights, p):
    return weights / weights.sum() if weights.sum() > 0 else p


def _chance(p, q, token):
    return min(1.0, float(p[token] / q[token]))


def _accept(p, q, token):
    return _chance(p, q, token), _normal((p - q).clamp(min=0), p)


def _with_chance(chance):
    return lambda p, q, token: (float(chance(p, q, token)), _accept(p, q, token)[1])


def _with_rest(rest):
    return lambda p, q, token: (_chance(p, q, token), rest(p, q, token))


def _accept_cases():
    p, q = (x.softmax(-1) for x in drawn(23, (12,), (12,)))
    sharp = torch.tensor([0.0, 0.9, 0.1, 0.0])
    guess = torch.tensor([0.0, 0.0, 1.0, 0.0])
    return {
        "p = [0.5, 0.3, 0.2], q = [0.25, 0.6, 0.15], token 1": (
            torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.6, 0.15]), 1),
        "the same p and q, token 0": (
            torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.6, 0.15]), 0),
        "12 tokens, one that p likes less than q": (p, q, int((p - q).argmin())),
        "12 tokens, one that p likes more than q": (p, q, int((p - q).argmax())),
        "a draft that is certain of its token": (sharp, guess, 2),
        "a token that p excludes": (sharp, torch.tensor([0.5, 0.5, 0.0, 0.0]), 0),
        "p and q equal": (p, p.clone(), 3),
    }  # fmt: skip


accept = Exercise(
    "The target's and the draft's probabilities of the next token, [V] both, and the token that "
    "was drawn from q -> two things: the probability of accepting it, a number, and [V]: the "
    "probabilities from which the token is drawn if it is rejected. Where p and q are equal "
    "nothing is rejected; return p then.",
    right=_accept,
    cases=_accept_cases,
    mistakes=[
        (_with_chance(lambda p, q, t: min(1.0, float(q[t] / p[t])) if p[t] else 1.0),
         "the ratio is upside down. A token that the draft proposes more often than the target "
         "would, q > p, has to be refused sometimes."),
        (_with_chance(lambda p, q, t: p[t] / q[t]),
         "the probability of accepting is more than 1 where the target likes the token more than "
         "the draft does. Then it is always accepted: at most 1."),
        (_with_chance(lambda p, q, t: p[t]),
         "the token is accepted with probability p. It was proposed with probability q already, "
         "so it would be written with probability p q: divide by q."),
        (lambda p, q, t: ((p / q).clamp(max=1), _accept(p, q, t)[1]),
         "the first result has the chances of all tokens. Return one number: that of `token`."),
        (_with_chance(lambda p, q, t: torch.minimum(p, q).sum()),
         "this is the share of all drafts that will be accepted. It should depend on the token."),
        (_with_chance(lambda p, q, t: p.argmax() == t),
         "the token is accepted if it is the likeliest one. That is the greedy rule, right at "
         "temperature 0 only."),
        (_with_rest(lambda p, q, t: p),
         "after a rejection you draw from p. Then the tokens that the draft proposes are written "
         "too often: they get a second chance. Draw from what the accepted tokens leave of p."),
        (_with_rest(lambda p, q, t: _normal(p.index_fill(0, torch.tensor(t), 0), p)),
         "after a rejection you exclude the token itself and nothing else. Which share of every "
         "token has been written by accepting it? That has to be taken from p."),
        (_with_rest(lambda p, q, t: _normal((q - p).clamp(min=0), p)),
         "after a rejection you draw from what q has more than p. Those are the tokens that were "
         "proposed too often; draw those that p has more than q."),
        (_with_rest(lambda p, q, t: _normal((p - q).abs(), p)),
         "where q is larger than p nothing is left to draw: 0, not the magnitude of the "
         "difference."),
        (_with_rest(lambda p, q, t: (p - q).clamp(min=0) if (p - q).abs().max() > 0 else p),
         "the second result does not add up to 1. Divide by its sum."),
        (_with_rest(lambda p, q, t: _normal(
            (p - q).clamp(min=0).softmax(-1), p) if (p - q).abs().max() > 0 else p),
         "the second result is a softmax. These are probabilities already: divide by their sum."),
        (lambda p, q, t: tuple(reversed(_accept(p, q, t))),
         "the order is: the probability of accepting, then the probabilities to draw from."),
    ],
    properties=[
        (of_each(lambda found, p, q, token: torch.as_tensor(found[1]).numel() == p.numel()),
         "the second result is [V] probabilities, one for each token."),
        (of_each(lambda found, p, q, token: 0 <= float(found[0]) <= 1),
         "the first result is a probability: from 0 to 1."),
        (of_each(lambda found, p, q, token: abs(float(found[1].sum()) - 1) < 1e-4
                 and bool((found[1] >= 0).all())),
         "the second result is [V] probabilities: none below 0, and they add up to 1."),
        (of_each(lambda found, p, q, token: bool(
            (torch.minimum(p, q) + (1 - torch.minimum(p, q).sum()) * found[1] - p).abs().max()
            < 1e-4)),
         "accepted and redrawn tokens together are not distributed as p. Token x is written by "
         "accepting it with probability min(p, q); the rest has to come from the second draw."),
    ],
    hints=(
        "Draft and acceptance together should write token x with probability at most p(x). It is "
        "proposed with probability q(x). With which probability may it be accepted, if q(x) is "
        "twice p(x), and if q(x) is less than p(x)?",
        "Accepted drafts write token x with probability min(p(x), q(x)). What is missing to p(x), "
        "for each x, is what a rejection has to make up for.",
    ),
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
