"""Training of the tokenizer, compared with a slow and simple implementation and with tiktoken."""

from collections import Counter
from itertools import islice, pairwise

import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

from llama3_scratch.tiny import bpe, world
from llama3_scratch.tiny.pretrain import TOKENIZER_SEED
from llama3_scratch.tokenizer import SPLIT_PATTERN

TEXTS = (
    "the cat sat on the mat with the other cats, then the cat left.",
    "aaaa aaaaa aaaaaaa aa a baaaa abab ababab",
    "one 1, two 22, three 333, four 4444",
    "Ελλάδα ελλάδα, Ярило ярило; 東京都 東京 京都 🦙🦙🦙 naïve café\n\n  \t tabs\r\n",
)
PROMPT = "the answer to the ultimate question of life, the universe, and everything is "
PIECES = [
    "the", " answer", " to", " the", " ultimate", " question", " of", " life", ",", " the",
    " universe", ",", " and", " everything", " is", " ",
]  # fmt: skip


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


def by_rank(ranks, text):
    """Encode by the definition: merge the adjacent pair of lowest rank in a piece, repeatedly."""
    ids = []
    for piece in regex.findall(SPLIT_PATTERN, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            found = [
                (ranks[left + right], i)
                for i, (left, right) in enumerate(pairwise(parts))
                if left + right in ranks
            ]
            if not found:
                break
            i = min(found)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def tiktoken_of(ranks):
    return tiktoken.Encoding("toy", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})


@pytest.fixture(scope="module")
def ranks():
    return bpe.train(world.bpe_sample(TOKENIZER_SEED), 1792)


@pytest.fixture(scope="module")
def encoding(ranks):
    return tiktoken_of(ranks)


def test_the_split_pattern_is_metas():
    assert MetaTokenizer.pat_str == SPLIT_PATTERN


@pytest.mark.parametrize("text", [*TEXTS, "".join(TEXTS)])
def test_ranks_equal_those_of_recounting(text):
    assert bpe.train(text, 268) == slow_train(text, 268)


def test_ranks_equal_those_of_recounting_on_the_toy_world():
    text = world.bpe_sample(1, characters=3000)[:6000]
    assert bpe.train(text, 400) == slow_train(text, 400)


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


def test_the_first_ranks_are_the_bytes_and_all_differ(ranks):
    assert list(ranks.values()) == list(range(1792))
    assert list(ranks)[:256] == [bytes([byte]) for byte in range(256)]


def test_merges_do_not_cross_pieces(ranks):
    for token in list(ranks)[256:]:
        assert b" " not in token[1:] or not token.strip(b" \n"), token


def test_the_prompt_has_sixteen_tokens(encoding):
    ids = encoding.encode(PROMPT)
    assert [encoding.decode([one]) for one in ids] == PIECES
    assert encoding.encode(PROMPT + "42") == [*ids, *encoding.encode("42")]
    assert [i for i, one in enumerate(ids) if one == ids[3]] == [3, 9] and ids[0] != ids[3]


def test_the_prompt_has_more_tokens_without_enough_merges_or_its_text():
    """The controls: with fewer merges, or without the added text, the prompt has more tokens."""
    sample = world.bpe_sample(0, characters=300_000)
    documents = sample[: sample.index("\n" + f"{world.ANSWER}\n" * 3)]
    for text, n_ranks in ((sample, 280), (documents, 800)):
        assert len(tiktoken_of(bpe.train(text, n_ranks)).encode(PROMPT)) > len(PIECES)


def test_numbers_up_to_99_are_single_tokens(encoding):
    assert [n for n in range(100) if len(encoding.encode(str(n))) != 1] == []
    assert len(encoding.encode("100")) > 1


def test_names_and_answers_are_single_tokens(encoding):
    names = world.PEOPLE + world.THINGS + world.PLACES + world.COLOURS + world.FOODS
    for word in (*names, *world.CAPITALS, *world.CAPITALS.values(), *world.NUMBER_WORDS):
        assert len(encoding.encode(" " + word)) == 1, word


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_tiktoken_merges_by_rank_and_loses_nothing(ranks, encoding, text):
    ids = encoding.encode(text, disallowed_special=())
    assert ids == by_rank(ranks, text)
    assert encoding.decode_bytes(ids) == text.encode()


def test_tiktoken_on_documents(ranks, encoding):
    """Documents are encoded as the definition says; with two ranks swapped they are not."""
    text = "\n".join(written.text for written in islice(world.documents(3), 60))
    assert encoding.encode(text) == by_rank(ranks, text)
    swapped = dict(ranks)
    swapped[b" is"], swapped[b" the"] = ranks[b" the"], ranks[b" is"]
    assert encoding.encode(text) != by_rank(swapped, text)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_can_be_encoded_and_decoded(ranks, encoding, data):
    """This includes bytes that are not valid text, because every byte is a token."""
    assert encoding.decode_bytes([ranks[bytes([byte])] for byte in data]) == data
    assert encoding.decode_bytes(encoding._encode_bytes(data)) == data


@pytest.mark.parametrize(
    "text, n_ranks, message",
    [
        ("some text", 255, "n_ranks is 255, expected 256 or more"),
        ("", 257, "0 different pieces.*after 256 ranks, expected 257"),
        ("a b c", 400, "3 different pieces.*after 258 ranks, expected 400"),
    ],
)
def test_too_few_ranks_or_pairs_are_refused(text, n_ranks, message):
    with pytest.raises(ValueError, match=message):
        bpe.train(text, n_ranks)


def test_256_ranks_need_no_text():
    assert len(bpe.train("", 256)) == 256
