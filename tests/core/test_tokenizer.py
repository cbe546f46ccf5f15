"""Compare ids with those of Meta's `Tokenizer` and `ChatFormat`, on many kinds of text."""

import base64
import doctest
import time
from pathlib import Path

import pytest
from helpers import corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_scratch import PROMPT, InputError, Tokenizer, load
from llama3_scratch.tokenizer import MAX_CHARS, MAX_RUN, SPLIT_PATTERN, special_tokens

PROMPT_IDS = [  # the real Llama 3 tokenizer's ids of the book's prompt, from the issue
    128000, 1820, 4320, 311, 279, 17139, 3488, 315, 2324, 11, 279, 15861, 11, 323, 4395, 374, 220,
]  # fmt: skip
PIECES = [
    "<|begin_of_text|>", "the", " answer", " to", " the", " ultimate", " question", " of", " life",
    ",", " the", " universe", ",", " and", " everything", " is", " ",
]  # fmt: skip


@pytest.fixture(scope="module")
def metas():
    from llama_models.llama3.tokenizer import Tokenizer as MetasTokenizer

    return MetasTokenizer.get_instance()


@pytest.fixture(scope="module")
def llama3():
    import llama_models

    path = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    return Tokenizer.from_file(path, release="3.1")


def test_the_prompt_has_its_known_ids(llama3):
    ids = llama3.encode(PROMPT)
    assert ids == PROMPT_IDS
    assert [llama3.decode([token]) for token in ids] == PIECES
    assert llama3.decode([2983]) == "42"


def test_the_prompt_has_the_same_pieces_in_the_tiny_tokenizer():
    _, _, tiny = load("tiny")
    assert [tiny.decode([token]) for token in tiny.encode(PROMPT)] == PIECES
    (answer,) = tiny.encode("42", bos=False)
    assert tiny.encode(PROMPT + "42") == [*tiny.encode(PROMPT), answer]


def test_the_docstrings_example_is_right(llama3):
    names = {"tokenizer": llama3}
    example = doctest.DocTestParser().get_doctest(Tokenizer.__doc__, names, "", "", 0)
    assert len(example.examples) == 1
    assert doctest.DocTestRunner().run(example).failed == 0


def test_ids_and_text_equal_metas(llama3, metas):
    texts = list(corpus())
    assert len(texts) == 3000
    for text in texts:
        ids = llama3.encode(text)
        assert ids == metas.encode(text, bos=True, eos=False), repr(text)
        special = metas.encode(text, bos=False, eos=False, allowed_special="all")
        assert llama3.encode(text, bos=False, allowed_special="all") == special, repr(text)
        assert llama3.decode(ids) == metas.decode(ids) == "<|begin_of_text|>" + text
        cut = ids[: len(ids) // 2]
        assert llama3.decode(cut) == metas.decode(cut)


@pytest.mark.parametrize(
    "text",
    [
        "", " " * 300_000, "a" * 300_000, "a" * MAX_RUN, "a" * (MAX_RUN + 1), "a " * 30_000,
        "\n" * 120_000, "é" * 60_000, "ab" * MAX_RUN + " " * 60_000 + "x",
        "word " * (MAX_CHARS // 5) + "across", " " * (MAX_CHARS - 3) + "three" + "7" * 99_999,
    ],
    ids=lambda text: f"{text[:1]!r} and so on, {len(text)} characters",
)  # fmt: skip
def test_long_and_hostile_text_gives_metas_ids(llama3, metas, text):
    began = time.perf_counter()
    ids = llama3.encode(text, bos=False)
    assert time.perf_counter() - began < 20
    assert ids == metas.encode(text, bos=False, eos=False)
    assert llama3.decode(ids) == text


def test_a_special_tokens_name_is_text_unless_allowed(llama3):
    text = "a<|eot_id|>b"
    eot = llama3.special["<|eot_id|>"]
    assert eot not in llama3.encode(text)
    assert llama3.encode(text, bos=False, allowed_special="all")[1] == eot
    assert llama3.encode(text, allowed_special={"<|eot_id|>"})[2] == eot
    assert eot not in llama3.encode(text, allowed_special={"<|begin_of_text|>"})
    assert llama3.encode(text).count(llama3.bos_id) == 1
    assert llama3.bos_id not in llama3.encode(text, bos=False)


def test_special_tokens_have_metas_names(llama3, metas):
    assert llama3.special == metas.special_tokens and metas.pat_str == SPLIT_PATTERN
    assert sorted(llama3.stop_ids) == sorted(metas.stop_tokens)
    first = Tokenizer(llama3.ranks, release="3")  # the names of Llama 3 itself, April 2024
    assert list(first.special)[:11] == [
        "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>", "<|reserved_special_token_2|>",
        "<|reserved_special_token_3|>", "<|start_header_id|>", "<|end_header_id|>",
        "<|reserved_special_token_4|>", "<|eot_id|>", "<|reserved_special_token_5|>",
    ]  # fmt: skip
    assert list(first.special)[-1] == "<|reserved_special_token_250|>"
    assert first.stop_ids == {128001, 128009}
    for release in ("3", "3.1"):
        assert len(set(special_tokens(release))) == 256
    assert llama3.vocab_size == first.vocab_size == 128256


def test_conversations_give_metas_ids(llama3, metas):
    from llama_models.datatypes import RawMessage
    from llama_models.llama3.chat_format import ChatFormat

    chat, texts = ChatFormat(metas), list(corpus(400, seed=1))
    for i in range(0, 400, 4):
        pairs = zip(("system", "user", "assistant", "user"), texts[i : i + 4], strict=True)
        turns = [{"role": role, "content": text} for role, text in pairs]
        for part in (turns, turns[1:2]):
            theirs = chat.encode_dialog_prompt([RawMessage(**turn) for turn in part]).tokens
            assert llama3.encode_chat(part) == theirs


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_decoded_and_stream_as_the_same_text(data):
    _, _, tiny = load("tiny")
    ids = [tiny.ranks[bytes([byte])] for byte in data]  # any bytes, most of them not UTF-8
    text = data.decode("utf-8", errors="replace")
    assert tiny.decode(ids) == text
    assert "".join(tiny.stream(iter(ids))) == text


def test_streaming_waits_for_the_whole_character(llama3):
    ids = llama3.encode("a🦙b", bos=False)
    assert len(ids) > 3
    parts = list(llama3.stream(ids))
    assert "".join(parts) == "a🦙b" and "\ufffd" not in "".join(parts)
    assert "" in parts


def bad_files():
    """{what is wrong: (content, what the message says)}"""
    lines = [b"%s %d" % (base64.b64encode(bytes([byte])), byte) for byte in range(256)]
    good = b"\n".join(lines) + b"\n"
    return {
        "empty": (b"", "256 are missing"),
        "cut": (good[: len(good) // 2], "expected"),
        "cut at a line": (b"\n".join(lines[:100]) + b"\n", "156 are missing"),
        "SentencePiece": (b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02", "SentencePiece"),
        "not base64": (good.replace(lines[5], b"!!! 5"), "line 6"),
        "no rank": (good.replace(lines[5], b"BQ=="), "line 6"),
        "rank not a number": (good.replace(lines[5], b"BQ== five"), "line 6"),
        "rank out of order": (good.replace(lines[5], b"BQ== 99"), "its rank, 5"),
        "repeated token": (good + lines[7].split()[0] + b" 256\n", "no token twice"),
        "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "line 1"),
        "binary": (bytes(range(256)) * 9, "line"),
    }


def test_bad_files_are_input_errors(tmp_path):
    for fault, (content, says) in bad_files().items():
        path = tmp_path / "tokenizer.model"
        path.write_bytes(content)
        with pytest.raises(InputError) as error:
            Tokenizer.from_file(path)
        assert says in str(error.value) and str(path) in str(error.value), fault
        assert len(str(error.value)) < 600
    with pytest.raises(InputError, match="cannot be read"):
        Tokenizer.from_file(tmp_path / "nothing")


def test_bad_arguments_are_input_errors(llama3):
    with pytest.raises(InputError, match="is a int: expected a str"):
        llama3.encode(42)
    with pytest.raises(InputError, match="a token is 1.7: expected a whole number"):
        llama3.decode([1.7])
    with pytest.raises(InputError, match="release is 'foo'"):
        Tokenizer(llama3.ranks, release="foo")
    eot = llama3.special["<|eot_id|>"]
    assert llama3.encode("<|eot_id|>", bos=False, allowed_special="<|eot_id|>") == [eot]
    with pytest.raises(InputError, match="<.nonsense.>'. is not a special token"):
        llama3.encode("", allowed_special={"<|nonsense|>"})
    with pytest.raises(InputError, match="allowed_special is 5: expected names"):
        llama3.encode("", allowed_special=5)
    with pytest.raises(InputError, match=r"allowed_special: \[5\] is not a special token"):
        llama3.encode("", allowed_special=[5, "a"])
    for ids in (5, "ab", None):
        with pytest.raises(InputError, match=f"ids is {ids!r}: expected ids"):
            llama3.decode(ids)
    for messages in (5, "ab", None):
        with pytest.raises(InputError, match=f"the messages are {messages!r}"):
            llama3.encode_chat(messages)
    for token in (-1, 128256, 2**70):
        with pytest.raises(InputError, match=f"no token {token}: ids go from 0 to 128255"):
            llama3.decode([token])
    for message in ({"role": "robot", "content": ""}, {"role": "user"}, {"content": "hi"}, "hi"):
        with pytest.raises(InputError, match="system, user, assistant"):
            llama3.encode_chat([message])
