"""Training of byte pair encoding: from a text to the ranks that tiktoken reads.

The first 256 tokens are the bytes. Find the pair of adjacent tokens that occurs most often, make it
one new token, replace the pair by it everywhere, and repeat (Sennrich, Haddow and Birch 2015,
arXiv:1508.07909). A token's rank is its number in this order, and the encoder merges by rank.
Llama 3's split pattern first cuts the text into pieces. No merge crosses the border of a piece, so
each different piece is stored once, with the number of times that it occurs.
"""

from collections import Counter, defaultdict
from itertools import pairwise

import regex

from llama3_scratch.tokenizer import SPLIT_PATTERN


def merge(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Return `ids` with each `pair` replaced by `new`, from left to right.

    >>> merge([1, 1, 1, 2], (1, 1), 9)
    [9, 1, 2]
    """
    merged, i = [], 0
    while i < len(ids):
        both = tuple(ids[i : i + 2]) == pair
        merged.append(new if both else ids[i])
        i += 2 if both else 1
    return merged


def train(text: str, n_ranks: int) -> dict[bytes, int]:
    """Text, number of tokens -> {token: rank}: the 256 bytes, then the merges in their order.

    If several pairs are equally common, the one with the lower ranks is merged first. A merge
    changes the counts only in the pieces that contain the pair, so only these are counted again.
    Raises ValueError for fewer than 256 ranks, and for a text with too few pairs to merge.
    """
    if n_ranks < 256:
        raise ValueError(f"n_ranks is {n_ranks}, expected 256 or more: every byte is a token")
    pieces = Counter(regex.findall(SPLIT_PATTERN, text))
    ids = [list(piece.encode("utf-8")) for piece in pieces]
    times = list(pieces.values())

    counts = Counter()  # pair -> number of occurrences in the text
    where = defaultdict(set)  # pair -> the pieces that contain it now or did before
    for index, piece in enumerate(ids):
        for pair in pairwise(piece):
            counts[pair] += times[index]
            where[pair].add(index)

    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < n_ranks:
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None:
            raise ValueError(
                f"the text has {len(pieces)} different pieces and no pair to merge "
                f"after {len(tokens)} ranks, expected {n_ranks} ranks"
            )
        for index in where.pop(best):
            for pair in pairwise(ids[index]):
                counts[pair] -= times[index]
                if not counts[pair]:
                    del counts[pair]
            ids[index] = merge(ids[index], best, len(tokens))
            for pair in pairwise(ids[index]):
                counts[pair] += times[index]
                where[pair].add(index)
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return {token: rank for rank, token in enumerate(tokens)}
