"""Text <-> tokens: Llama 3's tokenizer and its chat format, over tiktoken."""

import base64
import codecs
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import tiktoken

from llama3_scratch.errors import read_file, require, short, whole, wholes

# Text is split into these pieces before merging; no token crosses a boundary (Meta's tokenizer.py).
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
N_SPECIAL = 256  # special tokens, after the mergeable ranks

# tiktoken overflows its stack on very long pieces (github.com/openai/tiktoken/issues/195). Meta's
# wrapper therefore cuts long text at these two lengths, in characters; the ids depend on them.
MAX_CHARS = 400_000
MAX_RUN = 25_000  # of white space, or of anything else

ROLES = ("system", "user", "assistant")


def special_tokens(release: str = "3") -> list[str]:
    """Return the names of the 256 special tokens, in the order of their ids.

    Llama 3 names five; the others are reserved. From "3.1" on, five of the reserved ones have names
    too, and the remaining ones are renumbered in order, so most names belong to another id.
    """
    named = {0: "begin_of_text", 1: "end_of_text"}
    named |= {6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
    if release != "3":
        named |= {4: "finetune_right_pad_id", 5: "step_id", 8: "eom_id"}
        named |= {10: "python_tag", 11: "image"}
    reserved = (f"reserved_special_token_{i}" for i in range(N_SPECIAL))
    return [f"<|{named.get(i) or next(reserved)}|>" for i in range(N_SPECIAL)]


class Tokenizer:
    """Llama 3's tokenizer: byte-level BPE ranks plus 256 special tokens.

    >>> tokenizer.decode(tokenizer.encode("hello world!"))
    '<|begin_of_text|>hello world!'
    """

    def __init__(self, ranks: dict[bytes, int], release: str = "3", added: Sequence[str] = ()):
        """ranks: {token as bytes: rank}, from 0 without gaps; all 256 bytes must be tokens.

        added: names of further special tokens, after the 256.
        """
        require(release in ("3", "3.1"), f"release is {release!r}: expected '3' or '3.1'.")
        names = [*special_tokens(release), *added]
        self.n_added = len(added)
        self.unused = 0  # ids after the last token: rows of the model that decode to nothing
        self.ranks, self.release = ranks, release
        self.special = {name: len(ranks) + i for i, name in enumerate(names)}
        self.bos_id = self.special["<|begin_of_text|>"]
        stops = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
        self.stop_ids = frozenset(self.special[name] for name in stops if name in self.special)
        self.vocab_size = len(ranks) + len(names)
        self._tiktoken = tiktoken.Encoding(
            "llama3", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens=self.special
        )

    @classmethod
    def from_file(cls, path: str | Path, release: str = "3") -> "Tokenizer":
        """Read a `tokenizer.model` in tiktoken's format: a token in base64, a space, its rank.

        Raises `InputError`, which names the line, if the file has another format.
        """
        ranks = {}
        for number, line in enumerate(read_file(path).split(b"\n"), start=1):
            if not line.strip():
                continue
            expected = len(ranks)
            try:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
                right = int(rank) == expected == len(ranks) - 1
            except ValueError:
                right = False
            require(
                right,
                f"{path}, line {number}: found {line[:40]!r}, expected a token in base64, a space "
                f"and its rank, {expected}, with no token twice. This is not Llama 3's "
                "tokenizer.model (a text file, not a SentencePiece model); download it again.",
            )
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        require(
            not missing,
            f"{path} has {len(ranks)} tokens; expected all 256 single bytes among them, but "
            f"{len(missing)} are missing. The file is cut short; download it again.",
        )
        return cls(ranks, release)

    def encode(
        self, text: str, bos: bool = True, allowed_special: str | Collection[str] = ()
    ) -> list[int]:
        """Text -> ids, with `<|begin_of_text|>` first unless `bos` is false.

        A special token's name in the text is encoded as ordinary text, unless `allowed_special`
        names it ("all" allows every one). The ids are those of Meta's `Tokenizer.encode`.
        """
        require(isinstance(text, str), f"the text is a {type(text).__name__}: expected a str.")
        several = isinstance(allowed_special, Collection)
        require(several, f"allowed_special is {short(allowed_special)}: expected names, or 'all'.")
        if isinstance(allowed_special, str) and allowed_special != "all":
            allowed_special = [allowed_special]
        if allowed_special != "all":
            unknown = [name for name in allowed_special if name not in self.special]
            require(
                not unknown, f"allowed_special: {short(unknown[:1])} is not a special token here."
            )
            allowed_special = set(allowed_special)
        ids = [self.bos_id] if bos else []
        for part in _short_parts(text):
            ids += self._tiktoken.encode(
                part, allowed_special=allowed_special, disallowed_special=()
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text. Bytes that are not UTF-8 become U+FFFD, so all ids can be decoded."""
        return b"".join(map(self.token_bytes, wholes("ids", ids))).decode("utf-8", errors="replace")

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Ids, one at a time -> text, as soon as its characters are complete.

        A character outside ASCII may take several tokens; until it is complete, they yield "".
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in ids:
            yield decoder.decode(self.token_bytes(token))
        yield decoder.decode(b"", final=True)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token; those of a special token are its name's."""
        token, last = whole("a token", token), self.vocab_size + self.unused - 1
        require(0 <= token <= last, f"there is no token {token}: ids go from 0 to {last}.")
        if token >= self.vocab_size:
            return b""
        return self._tiktoken.decode_single_token_bytes(token)

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Turns of a conversation -> the ids after which an Instruct model writes its answer.

        Each message is `{"role": "system" | "user" | "assistant", "content": text}`. The ids are
        those of Meta's `ChatFormat.encode_dialog_prompt`:
        `<|begin_of_text|>`, then for each turn `<|start_header_id|>` role `<|end_header_id|>`,
        an empty line, the content, `<|eot_id|>`; finally the header of the assistant's turn.
        """
        several = isinstance(messages, Iterable) and not isinstance(messages, str)
        require(several, f"the messages are {short(messages)}: expected a list of them.")
        ids = [self.bos_id]
        for message in messages:
            require(
                isinstance(message, dict)
                and message.keys() == {"role", "content"}
                and message["role"] in ROLES,
                f"found the message {short(message)}: expected the keys role and content, where "
                f"the role is one of {', '.join(ROLES)}.",
            )
            ids += self._header(message["role"]) + self.encode(message["content"], bos=False)
            ids.append(self.special["<|eot_id|>"])
        return ids + self._header("assistant")

    def _header(self, role: str) -> list[int]:
        start, end = self.special["<|start_header_id|>"], self.special["<|end_header_id|>"]
        return [start, *self.encode(role, bos=False), end, *self.encode("\n\n", bos=False)]


def _short_parts(text: str) -> Iterator[str]:
    """Cut text after every MAX_CHARS characters, and runs after every MAX_RUN, as Meta does."""
    for start in range(0, len(text), MAX_CHARS):
        part = text[start : start + MAX_CHARS]
        runs = re.finditer(r"\s+|\S+", part)
        cuts = [run.start() + n for run in runs for n in range(MAX_RUN, len(run[0]), MAX_RUN)]
        yield from (part[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True))
