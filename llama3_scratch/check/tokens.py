"""The exercises of notebook 01: text to tokens, and back."""

import codecs
from itertools import pairwise

import regex

from llama3_scratch.check.frame import examine
from llama3_scratch.tokenizer import Tokenizer


def group_digits(answer):
    """A number as text -> its pieces, three digits at a time, counted from the right.

    my_group_digits("1234567") -> ["1", "234", "567"]
    """

    def from_the_left(digits):
        return regex.findall(r"\d{1,3}", digits)

    def right(digits):
        return [piece[::-1] for piece in from_the_left(digits[::-1])][::-1]

    def empty_first(digits):
        first = len(digits) % 3
        return [digits[:first], *from_the_left(digits[first:])]

    mistakes = {
        "these groups are counted from the left, as Llama 3's pattern does it. Here the short "
        "piece stands first.": from_the_left,
        "the groups are right and stand in the wrong order: turn the list round as well.": (
            lambda digits: right(digits)[::-1]
        ),
        "the digits stand backwards: you turned the text round and not back again.": (
            lambda digits: from_the_left(digits[::-1])
        ),
        "the digits inside the groups stand backwards: turn every group round as well.": (
            lambda digits: from_the_left(digits[::-1])[::-1]
        ),
        "an empty piece stands first when the digits come out even. No piece is empty.": (
            empty_first
        ),
        "every digit stands alone. Take up to three together.": list,
        "commas belong to a number's look and are not in the text: return the pieces alone.": (
            lambda digits: f"{int(digits):,}"
        ),
        "the zeros at the front are gone: as a number, 007 is 7. Group the text itself.": (
            lambda digits: right(str(int(digits)))
        ),
        "these are numbers. Return texts: as a number, 045 is 45.": (
            lambda digits: [int(piece) for piece in right(digits)]
        ),
    }
    cases = [("1234567",), ("42",), ("123456",), ("0071045",)]
    examine(answer, right, cases, mistakes)


def _by_rank(piece, ranks):
    parts = [bytes([byte]) for byte in piece]
    while True:
        pairs = enumerate(pairwise(parts))
        _, i = min(((ranks[a + b], i) for i, (a, b) in pairs if a + b in ranks), default=(0, None))
        if i is None:
            return parts
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def longest_match(answer):
    """A piece's bytes, {token: rank} -> tokens: always the longest that the rest begins with.

    my_longest_match(b"abcd", ranks) -> [b"abc", b"d"]
    """

    def right(piece, ranks):
        tokens = []
        while piece:
            n = max(n for n in range(1, len(piece) + 1) if piece[:n] in ranks)
            tokens.append(piece[:n])
            piece = piece[n:]
        return tokens

    def from_the_end(piece, ranks):
        tokens = []
        while piece:
            n = max(n for n in range(1, len(piece) + 1) if piece[-n:] in ranks)
            tokens.insert(0, piece[-n:])
            piece = piece[:-n]
        return tokens

    def grown(piece, ranks):
        tokens = []
        while piece:
            n = 1
            while n < len(piece) and piece[: n + 1] in ranks:
                n += 1
            tokens.append(piece[:n])
            piece = piece[n:]
        return tokens

    def best_rank(piece, ranks, choose):
        tokens = []
        while piece:
            n = choose(
                (n for n in range(1, len(piece) + 1) if piece[:n] in ranks),
                key=lambda n: ranks[piece[:n]],
            )
            tokens.append(piece[:n])
            piece = piece[n:]
        return tokens

    mistakes = {
        "these are the tokens that merging by rank makes. Forget the ranks here: only whether "
        "bytes are a token counts, and how long it is.": _by_rank,
        "the tokens are taken from the end of the piece. Begin at its beginning.": from_the_end,
        "a longer token was missed: you stop growing at the first length that is no token, but a "
        "token may be there though the one that is a byte shorter is not.": grown,
        "of the tokens that fit you take the one of lowest rank. Take the longest.": (
            lambda piece, ranks: best_rank(piece, ranks, min)
        ),
        "of the tokens that fit you take the one of highest rank. That is often the longest, and "
        "not always.": lambda piece, ranks: best_rank(piece, ranks, max),
        "these are the ids. Return the tokens, as bytes.": (
            lambda piece, ranks: [ranks[token] for token in right(piece, ranks)]
        ),
        "these are texts. Return the tokens as bytes: not all of them are valid UTF-8.": (
            lambda piece, ranks: [token.decode() for token in right(piece, ranks)]
        ),
    }
    merged = b"cd ab bc abc efg ef de xcde gh ij ghij abcd".split()
    letters = [bytes([byte]) for byte in b"abcdefghijx"]
    ranks = {token: rank for rank, token in enumerate(letters + merged)}
    cases = [(piece, ranks) for piece in (b"abcde", b"xcdef", b"ghij", b"jabcdeghij", b"jefgh")]
    examine(answer, right, cases, mistakes)


def stream(answer):
    """The tokens' bytes, in order -> the texts that can be shown after each: complete characters.

    my_stream([b"a", b"\\xc3", b"\\xa9!"]) -> ["a", "", "é!"]
    """

    def right(tokens):
        decoder = codecs.getincrementaldecoder("utf-8")()
        return [decoder.decode(token) for token in tokens]

    def all_or_nothing(tokens):
        texts, held = [], b""
        for token in tokens:
            held += token
            try:
                texts.append(held.decode("utf-8"))
                held = b""
            except UnicodeDecodeError:
                texts.append("")
        return texts

    def so_far(tokens):
        texts = right(tokens)
        return ["".join(texts[: i + 1]) for i in range(len(texts))]

    def by_itself(errors):
        return lambda tokens: [token.decode("utf-8", errors) for token in tokens]

    mistakes = {
        "each token is decoded by itself, so a character that takes two tokens becomes two times "
        "U+FFFD. Keep the bytes that are not yet a character.": by_itself("replace"),
        "the characters that take more than one token never appear: each token is decoded by "
        "itself, and what is not complete is dropped. Keep it for the next token.": (
            by_itself("ignore")
        ),
        "a complete character waits because the next one has begun in the same token. Show what is "
        "complete and keep the rest.": all_or_nothing,
        "each text begins from the start. Return what is new with each token.": so_far,
        "this is right at the end, but it shows everything with the last token.": (
            lambda tokens: [""] * (len(tokens) - 1) + [b"".join(tokens).decode("utf-8")]
        ),
        "every byte became a character of its own. A character takes up to four bytes.": (
            lambda tokens: [token.decode("latin-1") for token in tokens]
        ),
        "this is one text. Return a list with a text for each token.": (
            lambda tokens: b"".join(tokens).decode("utf-8")
        ),
        "there is one text too many, at the end. `Tokenizer.stream` gives out what is left when no "
        "token comes any more; here there is a text for each token and no other.": (
            lambda tokens: [*right(tokens), ""]
        ),
    }
    i, go, llama = (character.encode("utf-8") for character in "ï語🦙")
    cases = [
        ([b"na", i[:1], i[1:] + b"ve ", llama[:2], llama[2:3], llama[3:], b"!"],),
        ([go[:2], go[2:] + llama[:1], llama[1:3], llama[3:] + go[:1], go[1:] + i],),
        ([b"all", b" in", b" ASCII"],),
    ]
    examine(answer, right, cases, mistakes)


def count_ways(answer):
    """A piece's bytes, {token: rank} -> in how many ways tokens, one after another, make it up.

    my_count_ways(b"the", ranks) -> 4, where `th`, `he`, `the` and the single bytes are tokens
    """

    def counted(piece, ranks, whole=True):
        ways = [1] + [0] * len(piece)
        for stop in range(1, len(piece) + 1):
            for start in range(stop):
                token = piece[start:stop]
                ways[stop] += ways[start] * (token in ranks and (whole or token != piece))
        return ways[-1]

    def substrings(piece, ranks):
        n = len(piece)
        return sum(piece[a:b] in ranks for a in range(n) for b in range(a + 1, n + 1))

    def at_most_two(piece, ranks):
        cuts = range(1, len(piece))
        two = sum(piece[:cut] in ranks and piece[cut:] in ranks for cut in cuts)
        return two + (piece in ranks)

    def early(piece, ranks):
        if piece in ranks:
            return 1
        firsts = (n for n in range(1, len(piece)) if piece[:n] in ranks)
        return sum(early(piece[n:], ranks) for n in firsts)

    mistakes = {
        "this counts every way to cut the bytes. Only those count where every part is a token.": (
            lambda piece, ranks: 2 ** (len(piece) - 1)
        ),
        "one is missing where the piece as a whole is a token: that is a way, too.": (
            lambda piece, ranks: counted(piece, ranks, whole=False)
        ),
        "this counts the tokens that occur in the piece. Count the sequences that make it up.": (
            substrings
        ),
        "this counts the ways with one token or two. There may be any number of them: go on with "
        "the rest after the first token.": at_most_two,
        "this is how many tokens merging by rank makes, not how many ways there are.": (
            lambda piece, ranks: len(_by_rank(piece, ranks))
        ),
        "you stop as soon as the rest is one token. It may be cut further, too: count on.": early,
        "nothing is counted. There is one way to write no bytes at all: start from 1.": (
            lambda piece, ranks: 0
        ),
    }
    letters = [bytes([byte]) for byte in b"thesi nk"]
    tokens = letters + b"th he the in nk ink es hes esi".split() + [b" t", b" th", b" the"]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    cases = [(piece, ranks) for piece in (b"the", b" the", b"think", b"theses", b"kit")]
    examine(answer, counted, cases, mistakes)


def chat(answer):
    """Messages, a tokenizer -> the ids after which an Instruct model writes its answer.

    messages: [{"role": "user", "content": "Hello"}, ...]. The ids are those of `encode_chat`.
    """
    tokens = [*(bytes([byte]) for byte in range(256)), b"\n\n", b"\n\n\n"]
    tokenizer = Tokenizer({token: rank for rank, token in enumerate(tokens)})
    special, encode = tokenizer.special, tokenizer.encode

    def build(
        messages, first=True, bos=(), gap=("\n\n",), end="<|eot_id|>", last=True, strip=False
    ):
        """bos: the parts before which `encode` has put a second <|begin_of_text|>."""

        def header(role):
            ids = [special["<|start_header_id|>"], *encode(role, bos="role" in bos)]
            empty_line = [i for part in gap for i in encode(part, bos="gap" in bos)]
            return [*ids, special["<|end_header_id|>"], *empty_line]

        ids = [tokenizer.bos_id] * first
        for message in messages:
            content = message["content"].strip() if strip else message["content"]
            ids += header(message["role"]) + encode(content, bos="content" in bos)
            ids += [special[end]] if end else []
        return ids + header("assistant") * last

    def rendered(messages):
        text = tokenizer.decode(build(messages))
        return encode(text, bos=False, allowed_special="all")

    def glued(messages):
        with_gap = [message | {"content": "\n\n" + message["content"]} for message in messages]
        return [*build(with_gap, gap=[], last=False), *build([], first=False)]

    def bos_each_turn(messages):
        turns = [build([message], last=False) for message in messages]
        return [*sum(turns, []), *build([], first=False)]

    mistakes = {
        "there are many <|begin_of_text|>: `encode` puts one in front of all that it encodes, "
        "unless you say `bos=False`. It belongs at the very beginning and nowhere else.": (
            lambda messages: build(messages, bos=("role", "gap", "content"))
        ),
        "a <|begin_of_text|> stands in front of every content: `encode` puts it there unless you "
        "say `bos=False`.": lambda messages: build(messages, bos=("content",)),
        "every turn begins with a <|begin_of_text|>. Only the conversation does.": bos_each_turn,
        "two <|begin_of_text|> stand at the beginning.": (
            lambda messages: [tokenizer.bos_id, *build(messages)]
        ),
        "the <|begin_of_text|> at the beginning is missing.": (
            lambda messages: build(messages, first=False)
        ),
        "the empty line after each header is missing: two line ends, encoded by themselves.": (
            lambda messages: build(messages, gap=[])
        ),
        "one line end follows each header. There are two: an empty line.": (
            lambda messages: build(messages, gap=["\n"])
        ),
        "the two line ends of an empty line are encoded one by one. Together they are one token.": (
            lambda messages: build(messages, gap=["\n", "\n"])
        ),
        "a content that begins with a line end was merged with the empty line before it. Encode "
        "the empty line by itself, as part of the header, and the content by itself.": glued,
        "the header of the assistant's turn is missing at the end: the model would have to write "
        "it before its answer.": lambda messages: build(messages, last=False),
        "the last turn is closed: after the assistant's header the model is to write, so no "
        "<|eot_id|> stands there.": lambda messages: [*build(messages), special["<|eot_id|>"]],
        "the turns end with <|end_of_text|>. A turn ends with <|eot_id|>.": (
            lambda messages: build(messages, end="<|end_of_text|>")
        ),
        "no <|eot_id|> ends the turns.": lambda messages: build(messages, end=None),
        "a user who types <|eot_id|> ends the turn: you encode the whole text with special tokens "
        "allowed. Encode each content as text, and put the special ids around it.": rendered,
        "the white space around the contents is gone. Encode them as they are.": (
            lambda messages: build(messages, strip=True)
        ),
    }
    hello = {"role": "user", "content": "Hello"}
    cases = [
        ([hello],),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Why?\n"}],),
        (
            [
                hello,
                {"role": "assistant", "content": "Hi"},
                {"role": "user", "content": "\na<|eot_id|>b"},
            ],
        ),
    ]
    examine(lambda messages: answer(messages, tokenizer), tokenizer.encode_chat, cases, mistakes)
