"""Training of the tokenizer, compared with a slow and simple implementation."""

from collections import Counter
from itertools import pairwise

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_scratch import PROMPT, load
from llama3_scratch.tiny import bpe, world
from llama3_scratch.tokenizer import SPLIT_PATTERN

TEXTS = (
    "the cat sat on the mat with the other cats, then the cat left.",
    "aaaa aaaaa aaaaaaa aa a baaaa abab ababab",
    "one 1, two 22, three 333, four 4444",
    "Ελλάδα ελλάδα, Ярило ярило; 東京都 東京 京都 🦙🦙🦙 naïve café\n\n  \t tabs\r\n",
)
WORLD = world.bpe_sample(1, characters=3000)


def slow_train(text, n_ranks, first=min):
    """Write the whole text as tokens; count all pairs and merge the most common, repeatedly."""
    pieces = [
        [bytes([byte]) for byte in piece.encode()] for piece in regex.findall(SPLIT_PATTERN, text)
    ]
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < n_ranks:
        counts = Counter(pair for piece in pieces for pair in pairwise(piece))
        most = max(counts.values())
        left, right = first(
            (pair for pair in counts if counts[pair] == most),
            key=lambda pair: (ranks[pair[0]], ranks[pair[1]]),
        )
        for piece in pieces:
            i = 0
            while i + 1 < len(piece):
                if (piece[i], piece[i + 1]) == (left, right):
                    piece[i : i + 2] = [left + right]
                i += 1
        ranks[left + right] = len(ranks)
    return ranks


@pytest.mark.parametrize("text", [*TEXTS, "".join(TEXTS), WORLD[:6000]], ids=len)
def test_ranks_equal_those_of_recounting(text):
    n_ranks = 400 if len(text) > 1000 else 268
    assert bpe.train(text, n_ranks) == slow_train(text, n_ranks)


@settings(max_examples=150, deadline=None)
@given(st.text("ab é1", min_size=12, max_size=60))
def test_ranks_equal_those_of_recounting_on_any_text(text):
    try:
        trained = bpe.train(text, 262)
    except ValueError:
        with pytest.raises(ValueError):  # here, too, no pair is left
            slow_train(text, 262)
    else:
        assert trained == slow_train(text, 262)


def test_another_rule_for_ties_gives_other_ranks():
    """The control: the comparison notices a wrong rule for equally common pairs."""
    assert bpe.train(TEXTS[0], 276) != slow_train(TEXTS[0], 276, first=max)


def test_the_worked_example_has_these_merges():
    """`a` `a` occurs four times; then `a` `b` and `aa` `a` twice each, and the ranks decide."""
    ranks = bpe.train("aaab aaab", 258)
    assert list(ranks.items())[256:] == [(b"aa", 256), (b"ab", 257)]
    assert len(bpe.train("", 256)) == 256  # no text is needed for the bytes


def test_the_prompt_has_more_tokens_without_enough_merges_or_its_text():
    """The controls: with fewer merges, or without the added text, the prompt has more tokens."""
    sample = world.bpe_sample(0, characters=300_000)
    documents = sample[: sample.index("\n" + f"{world.ANSWER}\n" * 3)]
    for text, n_ranks in ((sample, 280), (documents, 800)):
        ranks = bpe.train(text, n_ranks)
        trained = tiktoken.Encoding(
            "toy", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )
        assert len(trained.encode(PROMPT)) > 16  # as the shipped tokenizer has: core/test_tokenizer


def test_numbers_names_and_answers_are_single_tokens():
    _, _, tiny = load("tiny")
    names = world.PEOPLE + world.THINGS + world.PLACES + world.COLOURS + world.FOODS
    names = (*names, *world.CAPITALS, *world.CAPITALS.values(), *world.NUMBER_WORDS)
    for word in [*map(str, range(100)), *(f" {name}" for name in names)]:
        assert len(tiny.encode(word, bos=False)) == 1, word
    assert len(tiny.encode("100", bos=False)) > 1


@pytest.mark.parametrize("text, n_ranks, message", [
    ("some text", 255, "n_ranks is 255, expected 256 or more"),
    ("", 257, "0 different pieces.*after 256 ranks, expected 257"),
    ("a b c", 400, "3 different pieces.*after 258 ranks, expected 400"),
])  # fmt: skip
def test_too_few_ranks_or_pairs_are_refused(text, n_ranks, message):
    with pytest.raises(ValueError, match=message):
        bpe.train(text, n_ranks)
