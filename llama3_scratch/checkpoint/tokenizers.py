"""A folder's tokenizer: Llama 3's, from tokenizer.model or tokenizer.json, or another model's."""

import contextlib
import operator
import os
import re
from pathlib import Path

from llama3_scratch.config import read_json
from llama3_scratch.errors import InputError, require, short, whole
from llama3_scratch.tokenizer import N_SPECIAL, SPLIT_PATTERN, Tokenizer, special_tokens

CUT = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN},
       "behavior": "Isolated", "invert": False}  # fmt: skip
NAMED = {  # Llama 3's special tokens on Hugging Face; Meta's other names are reserved tokens there
    release: {i: name for i, name in enumerate(special_tokens(release))
              if not re.match(r"<\|(reserved|step_id|image)", name)}
    for release in ("3", "3.1")
}  # fmt: skip


def read_tokenizer(folder, config):
    """A checkpoint's folder -> its tokenizer, which fits the vocabulary. Raises `InputError`.

    It is read from tokenizer.model; or from tokenizer.json, if there is no tokenizer.model or if
    that is SentencePiece's, an older format.
    """
    path, release = folder / "tokenizer.model", "3.1" if config.rope_scaling else "3"
    start, other = b"", os.path.exists(folder / "tokenizer.json")
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(1)
    source = path.name
    if other and (not os.path.exists(path) or start == b"\n"):
        source = "tokenizer.json"
        tokenizer = from_json(folder)
        fits = tokenizer.vocab_size <= config.vocab_size  # some tables have unused rows
    else:
        tokenizer = Tokenizer.from_file(path, release)
        fits = tokenizer.vocab_size == config.vocab_size
    require(
        fits,
        f"{folder}: {source} has, with the special tokens, {tokenizer.vocab_size} tokens, but "
        f"vocab_size in the settings is {config.vocab_size}: the two belong to different models.",
    )
    return tokenizer


def from_json(folder):
    """`tokenizer.json` -> `Tokenizer` if it is Llama 3's, else an `OtherTokenizer`."""
    path = Path(folder) / "tokenizer.json"
    content = read_json(path)
    try:
        vocabulary = content["model"]["vocab"].items()
        special = {entry["id"]: str(entry["content"]) for entry in content["added_tokens"]}
        llama_3s = CUT in content["pre_tokenizer"]["pretokenizers"]
    except (KeyError, TypeError, AttributeError):
        llama_3s = False
    if not llama_3s:
        return OtherTokenizer(folder)
    byte_of, ranks = _byte_alphabet(), {}
    try:
        for token, rank in sorted(vocabulary, key=operator.itemgetter(1)):
            right = type(rank) is int and rank == len(ranks)
            require(right, f"{path}: a token has the id {short(rank)}: expected {len(ranks)}.")
            ranks[bytes(byte_of[character] for character in token)] = rank
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: a token or its id is not Llama 3's ({error}).") from None
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    require(not missing, f"{path}: {missing} of the 256 single bytes are not tokens.")
    ids = {name: len(ranks) + i for names in NAMED.values() for i, name in names.items()}
    for token, name in special.items():
        right = ids.get(name, token)
        require(token == right, f"{path}: {name} has the id {short(token)}: expected {right}.")
    for release, names in NAMED.items():
        expected = {len(ranks) + i: names.get(i, "<|reserved") for i in range(N_SPECIAL)}
        if special.keys() == expected.keys() and all(
            special[token].startswith(name) for token, name in expected.items()
        ):
            return Tokenizer(ranks, release)
    return OtherTokenizer(folder)  # some fine-tuned models have stop tokens of their own


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
        try:
            import tokenizers
        except ImportError:
            raise InputError("pip install tokenizers: it runs this model's tokenizer.") from None
        self._path = path = Path(folder) / "tokenizer.json"
        self._inner = self._run(tokenizers.Tokenizer.from_file, str(path))
        self._inner.no_padding(), self._inner.no_truncation()
        self._inner.encode_special_tokens = True  # its name in a text is ordinary text
        ids = self._inner.get_vocab().values()
        self.vocab_size, self.special, stops = max(ids, default=-1) + 1, {}, []
        for settings in (path.with_name("config.json"), path.with_name("generation_config.json")):
            if settings.exists():
                stop = read_json(settings).get("eos_token_id")
                stops += stop if isinstance(stop, list) else [stop]
        self.stop_ids = frozenset(whole("eos_token_id", stop) for stop in stops if stop is not None)

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
        return self._run(self._inner.encode, text, add_special_tokens=bos).ids

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
