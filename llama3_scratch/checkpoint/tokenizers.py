"""A folder's tokenizer: Llama 3's, from tokenizer.model or tokenizer.json, or another model's."""

import contextlib
import json
import os
import re
from pathlib import Path

import tokenizers

from llama3_scratch.config import read_json
from llama3_scratch.errors import InputError, require, require_file, whole
from llama3_scratch.tokenizer import N_SPECIAL, SPLIT_PATTERN, Tokenizer, special_tokens

CUT = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN},
       "behavior": "Isolated", "invert": False}  # fmt: skip
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
              "use_regex": False}  # fmt: skip
BOS_FIRST = [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
             {"Sequence": {"id": "A", "type_id": 0}}]  # fmt: skip
OTHER_MODELS = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                "fuse_unk", "byte_fallback")  # fmt: skip
SEARCHED = "lstrip", "rstrip", "single_word", "normalized"  # how a token is looked for in a text
NAMED = {  # Llama 3's special tokens on Hugging Face; Meta's other names are reserved tokens there
    release: {i: name for i, name in enumerate(special_tokens(release))
              if not re.match(r"<\|(reserved|step_id|image)", name)}
    for release in ("3", "3.1")
}  # fmt: skip


def read_tokenizer(folder, config, files=("tokenizer.model", "tokenizer.json")):
    """A checkpoint's folder -> its tokenizer, which fits the vocabulary. Raises `InputError`.

    It is read from the first of `files` that is there; a tokenizer.model of SentencePiece, an older
    format, counts only if there is no other. The stop tokens of generation_config.json and
    config.json are added to its own. A table may have rows after the last token of a
    tokenizer.model if these settings say where its ranks end, by their `bos_token_id`; without that
    a file that is cut short could not be told from a padded table.
    """
    folder, V = Path(folder), config.vocab_size
    there = [name for name in files if os.path.exists(folder / name)] or ["tokenizer.model"]
    if len(there) == 2 and there[0] == "tokenizer.model" and _is_sentence_piece(folder / there[0]):
        there.reverse()
    if there[0] == "tokenizer.json":
        tokenizer = from_json(folder)
        n_tokens = tokenizer.vocab_size - tokenizer.n_added  # such a token may have no row
        fits = n_tokens <= V
    else:
        release = "3.1" if config.rope_scaling else "3"
        tokenizer = Tokenizer.from_file(folder / there[0], release)
        n_tokens = tokenizer.vocab_size
        known = len(tokenizer.ranks) in _settings(folder, "bos_token_id")
        fits = n_tokens == V or n_tokens < V and known
    require(
        fits,
        f"{folder}: {there[0]} has, with the special tokens, {n_tokens} tokens, but vocab_size in "
        f"the settings is {V}: the two belong to different models.",
    )
    tokenizer.unused = max(0, V - tokenizer.vocab_size)
    stops = _settings(folder, "eos_token_id")
    tokenizer.stop_ids |= frozenset(whole("eos_token_id", stop) for stop in stops)
    return tokenizer


def _is_sentence_piece(path):
    with contextlib.suppress(OSError):
        require_file(path)
        with open(path, "rb") as file:
            return file.read(1) == b"\n"
    return False


def _settings(folder, key):
    """The values of a key in Hugging Face's settings, those of a list one by one, without null."""
    values = []
    for settings in (folder / "config.json", folder / "generation_config.json"):
        if settings.exists():
            value = read_json(settings).get(key)
            values += value if isinstance(value, list) else [value]
    return [value for value in values if value is not None]


def from_json(folder):
    """`tokenizer.json` -> `Tokenizer` if it is Llama 3's, else an `OtherTokenizer`."""
    path = Path(folder) / "tokenizer.json"
    return from_content(read_json(path, most=10**8), path)


def from_content(content, path):
    """The content of a tokenizer.json -> as `from_json`; path: the file to name in messages."""
    try:
        return _llama_3s(content)
    except (LookupError, TypeError, AttributeError, ValueError):
        return OtherTokenizer(content, path)


def _llama_3s(content):
    """The content of a tokenizer.json -> `Tokenizer`; raises an error if it is another model's.

    Llama 3's has the ids 0, 1, ... in the order of merging, every way to merge a token, its split
    pattern and nothing else that changes a text, <|begin_of_text|> before a text, and special
    tokens that are its own, but for padding after them.
    """
    model, vocab, byte_of = content["model"], content["model"]["vocab"], byte_alphabet()
    tokens = sorted(vocab, key=vocab.__getitem__)
    ranks = {bytes(byte_of[c] for c in token): rank for rank, token in enumerate(tokens)}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    pairs = (merge.split(" ") for merge in merges)
    merged = [vocab[left + right] for left, right in pairs if left in vocab and right in vocab]
    # Different merges of known tokens into known ones: as many as there are ways are all of them.
    n_ways = sum(t[:i] in vocab and t[i:] in vocab for t in tokens for i in range(1, len(t)))
    entries = sorted(content["added_tokens"], key=lambda entry: entry["id"])
    ids, names = ([entry[key] for entry in entries] for key in ("id", "content"))
    cut, letters = content["pre_tokenizer"]["pretokenizers"]
    after = content["post_processor"]
    (template,) = (part for part in after.get("processors", [after]) if part["type"] != "ByteLevel")
    right = (
        not content.get("normalizer") and content["pre_tokenizer"]["type"] == "Sequence"
        and cut == CUT and letters | {"trim_offsets": True} == BYTE_LEVEL
        and model.get("type") == "BPE" and not any(map(model.get, OTHER_MODELS))
        and model.get("ignore_merges") is True
        and len(set(merges)) == len(merges) == len(merged) == n_ways and merged == sorted(merged)
        and list(map(vocab.get, tokens)) == list(range(len(ranks))) and all(tokens)
        and all(bytes([byte]) in ranks for byte in range(256))
        and ids == list(range(len(ranks), len(ranks) + len(ids)))
        and len({*names, *tokens}) == len(names) + len(tokens)
        and all(e["special"] and not any(map(e.get, SEARCHED)) for e in entries)
        and template["type"] == "TemplateProcessing" and template["single"] == BOS_FIRST
        and template["special_tokens"][names[0]]["ids"] == [len(ranks)]
        and content["decoder"]["type"] == "ByteLevel"
    )  # fmt: skip
    further = names[N_SPECIAL:]
    right = right and all(re.search(r"pad|reserved|unk|mask", name, re.I) for name in further)
    for release, expected in NAMED.items() if right else ():
        if len(names) >= N_SPECIAL and all(
            name.startswith(expected.get(i, "<|reserved"))
            for i, name in enumerate(names[:N_SPECIAL])
        ):
            return Tokenizer(ranks, release, further)
    raise ValueError("not Llama 3's")


def byte_level_json(vocab, merges, added, pre_tokenizer, bos=None):
    """Return the content of a tokenizer.json of byte-level BPE, as Llama 3's repositories have it.

    vocab: {token in the alphabet of `byte_alphabet`: id}. merges: ["left right", ...], in order.
    added: [(id, name, whether it is a special token)]. bos: the name of the token that is put
    before a text, if any.
    """
    entries = [
        {"id": token, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": special} for token, name, special in added
    ]  # fmt: skip
    text, ids = {"id": "A", "type_id": 0}, {name: token for token, name, _ in added}
    first = {"SpecialToken": {"id": bos, "type_id": 0}}
    template = {
        "type": "TemplateProcessing", "single": [first, {"Sequence": text}],
        "pair": [first, {"Sequence": text}, first, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {bos: {"id": bos, "ids": [ids.get(bos)], "tokens": [bos]}},
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": entries,
        "normalizer": None, "pre_tokenizer": pre_tokenizer,
        "post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL, template]} if bos
        else BYTE_LEVEL, "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": CUT in pre_tokenizer.get("pretokenizers", ()), "vocab": vocab,
            "merges": merges,
        },
    }  # fmt: skip


def byte_alphabet():
    """Return {character: byte}: byte-level BPE's form of bytes as text (GPT-2's bytes_to_unicode).

    Printable characters stand for themselves, the 68 other bytes for the characters from 256 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = (byte for byte in range(256) if byte not in shown)
    return {chr(b): b for b in shown} | {chr(256 + i): byte for i, byte in enumerate(rest)}


class OtherTokenizer:
    """Another model's tokenizer, run by the package `tokenizers`, with `Tokenizer`'s methods.

    Its own file says what `bos` puts before a text; `Template` knows its chat format.
    added: {the name of a token that was added to the model's own: whether it is special}.
    """

    def __init__(self, content, path):
        """content: of a tokenizer.json, as `json.loads` returns it. path: for messages."""
        self._path, model = path, content.get("model")
        of_bpe = isinstance(model, dict) and model.get("type", "BPE") == "BPE"
        require(
            not (of_bpe and model.get("continuing_subword_prefix")),
            f"{path} is not a working tokenizer: its continuing_subword_prefix, with which the "
            "package `tokenizers` may end the process, is no part of a Llama's.",
        )
        self._inner = self._run(tokenizers.Tokenizer.from_str, json.dumps(content))
        self._inner.no_padding(), self._inner.no_truncation()
        ids, own = (self._inner.get_vocab(with_added_tokens=w).values() for w in (True, False))
        self.vocab_size, self.special, self.unused = max(ids, default=-1) + 1, {}, 0
        self.n_added = self.vocab_size - max(own, default=-1) - 1
        self.stop_ids = frozenset()
        added = self._inner.get_added_tokens_decoder().values()
        self.added = {token.content: token.special for token in added}

    def _run(self, function, *arguments, **settings):
        try:
            return function(*arguments, **settings)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # its panics are not Exceptions
            text = f"{self._path} is not a working tokenizer: {str(error)[:200]}"
            raise InputError(text) from None

    def encode(self, text, bos=True, allowed_special=()):
        """Text -> ids, with the special tokens that its file adds, unless `bos` is false.

        A special token's name in the text is encoded as text, unless `allowed_special` is "all".
        """
        require(isinstance(text, str), f"the text is a {type(text).__name__}: expected a str.")
        wide = text.encode("utf-16", "surrogatepass")  # half a surrogate pair: as in tiktoken
        text = wide.decode("utf-16", "replace")
        self._inner.encode_special_tokens = allowed_special != "all"
        return self._run(self._inner.encode, text, add_special_tokens=bos).ids

    def to_json(self):
        """Return the content of its tokenizer.json."""
        return self._inner.to_str(pretty=True)

    def decode(self, ids):
        """Ids -> text."""
        return self._run(self._inner.decode, list(map(int, ids)), skip_special_tokens=False)

    def stream(self, ids):
        """Ids, one at a time -> the text that they add to a text, as soon as it is complete.

        Some tokenizers drop the space before the first word of a text, so a word is put before it.
        """
        seen = self.encode("a", bos=False)
        shown = len(self.decode(seen))
        for token in ids:
            seen.append(token)
            text = self.decode(seen)
            if text.endswith("\ufffd"):  # the first bytes of a character
                yield ""
            else:
                yield text[shown:]
                shown = len(text)
        yield self.decode(seen)[shown:]

    def encode_chat(self, messages):
        """Raise `InputError`: Meta's chat format is Llama 3's alone."""
        raise InputError("this model's tokenizer is not Llama 3's: Meta's chat format is not its.")
