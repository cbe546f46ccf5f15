"""A folder's tokenizer: Llama 3's, from tokenizer.model or tokenizer.json, or another model's."""

import contextlib
import os
import re
from pathlib import Path

import tokenizers

from llama3_scratch.config import read_json
from llama3_scratch.errors import InputError, require, whole
from llama3_scratch.tokenizer import N_SPECIAL, SPLIT_PATTERN, Tokenizer, special_tokens

CUT = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN},
       "behavior": "Isolated", "invert": False}  # fmt: skip
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
    with contextlib.suppress(OSError), open(path, "rb") as file:
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
    content = read_json(path)
    try:
        return _llama_3s(content)
    except (LookupError, TypeError, AttributeError, ValueError):
        return OtherTokenizer(folder)


def _llama_3s(content):
    """The content of a tokenizer.json -> `Tokenizer`; raises an error if it is another model's.

    Llama 3's has the ids 0, 1, ... in the order of merging, every way to merge a token, the split
    pattern and nothing before it, and special tokens that are its own, but for padding after them.
    """
    model, added = content["model"], {entry["id"]: entry for entry in content["added_tokens"]}
    vocab, byte_of = model["vocab"], _byte_alphabet()
    tokens = sorted(vocab, key=vocab.__getitem__)
    ranks = {bytes(byte_of[c] for c in token): rank for rank, token in enumerate(tokens)}
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    merged = [vocab[left + right] for left, right in pairs]
    ways = sum(t[:i] in vocab and t[i:] in vocab for t in tokens for i in range(1, len(t)))
    entries = [added[token] for token in sorted(added)]
    right = (
        CUT in content["pre_tokenizer"]["pretokenizers"] and not content.get("normalizer")
        and model.get("ignore_merges") is True and len(merged) == ways
        and merged == sorted(merged) and list(map(vocab.get, tokens)) == list(range(len(ranks)))
        and sorted(added) == [len(ranks) + i for i in range(len(added))]
        and all(e["special"] and not e["lstrip"] and not e["rstrip"] for e in entries)
    )  # fmt: skip
    names = [entry["content"] for entry in entries]
    further = names[N_SPECIAL:]
    right = right and all(re.search(r"pad|reserved|unk|mask", name, re.I) for name in further)
    for release, expected in NAMED.items() if right else ():
        if len(names) >= N_SPECIAL and all(
            name.startswith(expected.get(i, "<|reserved"))
            for i, name in enumerate(names[:N_SPECIAL])
        ):
            return Tokenizer(ranks, release, further)
    raise ValueError("not Llama 3's")


def _byte_alphabet():
    """Return {character: byte}: byte-level BPE's form of bytes as text (GPT-2's bytes_to_unicode).

    Printable characters stand for themselves, the 68 other bytes for the characters from 256 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = (byte for byte in range(256) if byte not in shown)
    return {chr(b): b for b in shown} | {chr(256 + i): byte for i, byte in enumerate(rest)}


class OtherTokenizer:
    """Another model's tokenizer, run by the package `tokenizers`, with `Tokenizer`'s methods.

    Its own file says what `bos` puts before a text; the chat format is not known.
    """

    def __init__(self, folder):
        self._path = path = Path(folder) / "tokenizer.json"
        self._inner = self._run(tokenizers.Tokenizer.from_file, str(path))
        self._inner.no_padding(), self._inner.no_truncation()
        self._inner.encode_special_tokens = True  # its name in a text is ordinary text
        ids, own = (self._inner.get_vocab(with_added_tokens=w).values() for w in (True, False))
        self.vocab_size, self.special, self.unused = max(ids, default=-1) + 1, {}, 0
        self.n_added = self.vocab_size - max(own, default=-1) - 1
        self.stop_ids = frozenset()

    def _run(self, function, *arguments, **settings):
        try:
            return function(*arguments, **settings)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # its panics are not Exceptions
            text = f"{self._path} is not a working tokenizer: {str(error)[:200]}"
            raise InputError(text) from None

    def encode(self, text, bos=True):
        """Text -> ids, with the special tokens that its file adds, unless `bos` is false."""
        require(isinstance(text, str), f"the text is a {type(text).__name__}: expected a str.")
        wide = text.encode("utf-16", "surrogatepass")  # half a surrogate pair: as in tiktoken
        text = wide.decode("utf-16", "replace")
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
        """Raise `InputError`: the chat format is not known."""
        raise InputError("this model's tokenizer is not Llama 3's: its chat format is not known.")
