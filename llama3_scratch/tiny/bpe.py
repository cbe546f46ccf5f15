"""Byte pair encoding, trained: from a text to the ranks that tiktoken reads.

Start with the 256 bytes as tokens. Count which two tokens stand side by side most often, make
them one new token, write it everywhere in place of the two, and go on (Sennrich, Haddow and
Birch, 2015, arXiv:1508.07909). A token's rank is the order in which it was made, and the encoder
merges by rank. Merges never cross the pieces that Llama 3's split pattern cuts the text into, so
every different piece is kept once, with the number of times it occurs.
"""

from collections import Counter, defaultdict
from itertools import pairwise

import regex

from llama3_scratch.tokenizer import SPLIT_PATTERN


def merge(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """`ids` with each `pair`, found from left to right, replaced by `new`.

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
    """The `n_ranks` tokens learned from `text`, as bytes -> rank: 256 bytes, then the merges.

    Among pairs that are equally common the one of lower ranks is merged first. A merge changes
    the counts only of the pieces that hold the pair, so only those are counted anew. Raises
    ValueError for fewer than 256 ranks, and for a text with too few pairs to merge.
    """
    if n_ranks < 256:
        raise ValueError(f"n_ranks is {n_ranks}, expected 256 or more: every byte is a token")
    pieces = Counter(regex.findall(SPLIT_PATTERN, text))
    ids = [list(piece.encode("utf-8")) for piece in pieces]
    times = list(pieces.values())

    counts = Counter()  # pair -> how often it stands in the text
    where = defaultdict(set)  # pair -> the pieces that hold it, or held it once
    for index, piece in enumerate(ids):
        for pair in pairwise(piece):
            counts[pair] += times[index]
            where[pair].add(index)

    tokens = [bytes([byte]) for byte in range(256)]
    while len(tokens) < n_ranks:
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None:
            raise ValueError(
                f"the text holds {len(pieces)} different pieces and no pair to merge "
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
