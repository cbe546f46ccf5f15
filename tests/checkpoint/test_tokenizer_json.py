"""Whatever a tokenizer.json says, the ids are those of the package `tokenizers`.

A file that is Llama 3's in every part is run by the core's `Tokenizer`, and any other by the
package; random variations of a small file of Llama 3's kind must not show which.
"""

import copy
import json
import random

import pytest
from helpers import corpus

from llama3_scratch import InputError, Tokenizer
from llama3_scratch.checkpoint import tokenizers
from llama3_scratch.checkpoint.tokenizers import BYTE_LEVEL, CUT, byte_alphabet, byte_level_json
from llama3_scratch.tokenizer import special_tokens

N_FILES = 400
BOS, END = "<|begin_of_text|>", "<|end_of_text|>"
CUTS = {"type": "Sequence", "pretokenizers": [CUT, BYTE_LEVEL]}
WORDS = [
    "abba",
    " abab baa",
    "aaaaab",
    "Ab BA",
    "ba12345 6",
    "a\n\n b",
    "é🦙",
    f"a{END}b",
    "b [PAD] ",
]


def small(chance):
    """A small vocabulary of Llama 3's kind: the bytes, and tokens that two others make."""
    tokens = sorted(byte_alphabet(), key=byte_alphabet().get)
    for _ in range(chance.randrange(1, 12)):
        pool = [token for token in tokens if set(token) <= set("abĠ")]
        new = chance.choice(pool) + chance.choice(pool)
        tokens += [new] if new not in tokens else []
    names = special_tokens("3")
    vocab, added = {token: i for i, token in enumerate(tokens)}, enumerate(names, start=len(tokens))
    merges = [f"{token[:i]} {token[i:]}" for token in tokens for i in range(1, len(token))
              if token[:i] in vocab and token[i:] in vocab]  # fmt: skip
    added = [(token, name, True) for token, name in added]
    return copy.deepcopy(byte_level_json(vocab, merges, added, CUTS, bos=BOS))


def within_a_token(content, chance):
    """The ways to merge one token, in another order: still Llama 3's."""
    merges = content["model"]["merges"]
    chance.shuffle(merges)
    merges.sort(key=lambda pair: content["model"]["vocab"][pair.replace(" ", "")])


def another_id(content, chance):
    """Two tokens have each other's id."""
    vocab = content["model"]["vocab"]
    a, b = chance.sample(sorted(vocab), 2)
    vocab[a], vocab[b] = vocab[b], vocab[a]


def without_a_byte(content, chance):
    """One byte is no token; the ids have no gap."""
    vocab = content["model"]["vocab"]
    gone = vocab.pop(chance.choice("0éÃ©Zx"), 256)
    for key, token in vocab.items():
        vocab[key] = token - (token > gone)
    for entry in content["added_tokens"]:
        entry["id"] -= 1
    template = content["post_processor"]["processors"][1]
    template["special_tokens"][BOS]["ids"][0] -= 1


def one_token_more(content, chance):
    last = content["added_tokens"][-1]
    name = chance.choice(["[PAD]", "<|im_end|>", "ab", "a", "<|reserved_special_token_7|>"])
    gap = chance.choice([1, 1, 2, 0])
    content["added_tokens"].append(last | {"content": name, "id": last["id"] + gap})


def of_model(**values):
    def change(content, chance):
        key = chance.choice(list(values))
        content["model"][key] = values[key]

    return change


def of_file(key, *values):
    return lambda content, chance: content.update({key: copy.deepcopy(chance.choice(values))})


def of_added(**values):
    def change(content, chance):
        key = chance.choice(list(values))
        entry = content["added_tokens"][chance.choice([0, 1, 9, 100])]
        entry[key] = values[key]

    return change


def of_cuts(content, chance):
    parts = content["pre_tokenizer"]["pretokenizers"]
    change = chance.choice([
        lambda: parts.reverse(), lambda: parts.pop(0), lambda: parts.pop(),
        lambda: parts[-1].update(add_prefix_space=True), lambda: parts[-1].update(use_regex=True),
        lambda: parts[-1].update(trim_offsets=False), lambda: parts[0].update(invert=True),
        lambda: parts[0].update(behavior="Removed"),
        lambda: parts[0].update(behavior="MergedWithNext"),
        lambda: parts[0].update(pattern={"Regex": r"\p{N}|\s+|\S+"}),
        lambda: parts.insert(1, {"type": "Digits", "individual_digits": True}),
        lambda: parts.append(parts[0]),
    ])  # fmt: skip
    change()


def of_template(content, chance):
    template = content["post_processor"]["processors"][1]
    single, last = template["single"], {"SpecialToken": {"id": END, "type_id": 0}}
    number = template["special_tokens"][BOS]["ids"][0] + 1
    template["special_tokens"][END] = {"id": END, "ids": [number], "tokens": [END]}
    change = chance.choice([
        lambda: single.append(last), lambda: single.insert(0, last), lambda: single.pop(0),
        lambda: single.append(single[1]), lambda: single.append(single.pop(0)),
        lambda: template["special_tokens"][BOS].update(ids=[number]),
        lambda: template["special_tokens"][BOS].update(ids=[number, 5], tokens=[END, "x"]),
        lambda: content["post_processor"]["processors"].reverse(), lambda: None,
    ])  # fmt: skip
    change()


def merges(change):
    return lambda content, chance: change(content["model"]["merges"], chance)


BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
              "use_regex": True}  # fmt: skip
VARIATIONS = {
    "none": lambda content, chance: None,
    "the ways to merge a token": within_a_token,
    "the order of merges": merges(lambda m, chance: chance.shuffle(m)),
    "a merge less": merges(lambda m, chance: m and m.pop(chance.randrange(len(m)))),
    "a merge twice": merges(lambda m, chance: m and m.append(chance.choice(m))),
    "a merge for another": merges(lambda m, chance: m and m.__setitem__(-1, m[0])),
    "two ids": another_id,
    "a byte less": without_a_byte,
    "merges before ready tokens": of_model(ignore_merges=False),
    "the model": of_model(
        dropout=1.0, unk_token="a", fuse_unk=True, byte_fallback=True, end_of_word_suffix="b",
        type="WordPiece"),
    "the normalizer": of_file(
        "normalizer", {"type": "Lowercase"}, {"type": "NFD"},
        {"type": "Prepend", "prepend": "a"}, {"type": "Sequence", "normalizers": []},
        {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}),
    "the cuts": of_cuts,
    "no cuts": of_file("pre_tokenizer", None, BYTE_LEVEL, BYTES_ONLY),
    "what is added to a text": of_template,
    "nothing is added to a text": of_file("post_processor", None, BYTE_LEVEL, BYTES_ONLY),
    "how added tokens are found": of_added(
        lstrip=True, rstrip=True, single_word=True, normalized=True, special=False,
        content="<|reserved_special_token_249|>"),
    "an added token more": one_token_more,
    "the decoder": of_file(
        "decoder", None, {"type": "Fuse"}, {"type": "Sequence", "decoders": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
             "use_regex": True}, {"type": "Strip", "content": "a", "start": 1, "stop": 0}]}),
    "a length": of_file("truncation", {
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}),
}  # fmt: skip


def differences(n_files, seed=0):
    """Read random variations -> [(what varied, text, our ids, theirs)], {class: how many files}."""
    from tokenizers import Tokenizer as Theirs

    chance, found, kinds = random.Random(seed), [], {}
    for i in range(n_files):
        content = small(chance)
        what = [list(VARIATIONS)[i % len(VARIATIONS)]]
        what += [chance.choice(list(VARIATIONS))] if chance.random() < 0.3 else []
        for name in what:
            try:
                VARIATIONS[name](content, chance)
            except (LookupError, TypeError, AttributeError):  # the first one took it away
                continue
        try:
            theirs = Theirs.from_str(json.dumps(content))
        except BaseException:
            theirs = None
        try:
            ours = tokenizers.from_content(content, "tokenizer.json")
        except InputError:
            assert theirs is None, what
            continue
        kinds[type(ours)] = kinds.get(type(ours), 0) + 1
        if theirs is None:
            found.append((what, "it is refused", type(ours), None))
            continue
        theirs.no_truncation()
        theirs.encode_special_tokens = True
        texts = WORDS + ["".join(chance.choices("ab B", k=9)) for _ in range(9)]
        for text in texts + list(corpus(3, seed=i)):
            for bos in (True, False):
                try:
                    right = theirs.encode(text, add_special_tokens=bos).ids
                except BaseException:
                    with pytest.raises(InputError):
                        ours.encode(text, bos=bos)
                    continue
                ids = ours.encode(text, bos=bos)
                if ids != right:
                    found.append((what, text, ids, right))
                elif ours.decode(ids) != theirs.decode(ids, skip_special_tokens=False):
                    found.append((what, text, ours.decode(ids), "decoded"))
    return found, kinds


def test_the_ids_are_those_of_tokenizers_whatever_varies():
    found, kinds = differences(N_FILES)
    assert not found, found[:3]
    assert min(kinds.values()) > N_FILES / 12 and len(kinds) == 2, kinds


def test_a_reader_that_looks_at_the_ids_alone_is_found(monkeypatch):
    """The control: the ids in order, and so Llama 3's."""

    def lax(content):
        vocab, byte_of = content["model"]["vocab"], byte_alphabet()
        ranks = {bytes(map(byte_of.get, token)): rank for token, rank in vocab.items()}
        whole = all(bytes([byte]) in ranks for byte in range(256))
        if sorted(ranks.values()) != list(range(len(ranks))) or not whole:
            raise ValueError
        return Tokenizer(ranks)

    monkeypatch.setattr(tokenizers, "_llama_3s", lax)
    found, _ = differences(N_FILES)
    noticed = {what[0] for what, *_ in found if len(what) == 1}
    assert len(noticed) > 9, noticed
    assert not noticed & {"none", "the ways to merge a token", "a length"}, noticed


def test_a_prefix_that_aborts_the_process_is_refused():
    """With it `tokenizers` 0.23 panics while it panics, if the file has such merges."""
    content = small(random.Random(3))
    tokenizers.from_content(content, "tokenizer.json")  # the control
    content["model"]["continuing_subword_prefix"] = "b"
    with pytest.raises(InputError, match="not a working tokenizer: its continuing_subword_prefix"):
        tokenizers.from_content(content, "tokenizer.json")


def test_what_transformers_saves_is_still_llama_3s(tmp_path):
    """Read and saved again by AutoTokenizer, with a padding token: the chat format stays known."""
    from transformers import AutoTokenizer

    content = small(random.Random(3))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": END}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    theirs.add_special_tokens({"pad_token": "<pad>"})
    theirs.save_pretrained(tmp_path / "again")
    ours = tokenizers.from_json(tmp_path / "again")
    assert isinstance(ours, Tokenizer) and ours.n_added == 1
    assert ours.encode("abba") == theirs.encode("abba")
