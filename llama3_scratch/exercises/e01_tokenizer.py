"""The exercises of notebook 01: groups of digits, the longest match, streaming, ways, chat."""

import codecs
import functools
from itertools import pairwise

import regex

from llama3_scratch.exercises.frame import (
    Exercise,
    answer_property,
    desk,
    of_each,
    uses,
)
from llama3_scratch.tokenizer import Tokenizer


def _all_are(kind):
    """A property: every entry of the result is of this type."""
    return of_each(lambda found, *case: all(isinstance(each, kind) for each in found))


# --- Digits grouped from the right ----------------------------------------------------------------


def _from_the_left(digits):
    return regex.findall(r"\d{1,3}", digits)


def _from_the_right(digits):
    return [piece[::-1] for piece in _from_the_left(digits[::-1])][::-1]


def _empty_first(digits):
    first = len(digits) % 3
    return [digits[:first], *_from_the_left(digits[first:])]


group_digits = Exercise(
    "A text of digits -> the list of its pieces, three digits at a time, counted from the right.",
    right=_from_the_right,
    cases=lambda: [("1234567",), ("7",), ("42",), ("505",), ("31415",), ("123456",), ("0071045",),
                   ("9081726354001122",)],
    mistakes=[
        (_from_the_left,
         "these groups are counted from the left, as Llama 3's pattern does it. Counted from the "
         "right, the short piece comes first."),
        (lambda digits: _from_the_right(digits)[::-1],
         "the groups are right, but in the wrong order: reverse the list as well."),
        (lambda digits: _from_the_left(digits[::-1]),
         "the digits are in reverse order: the text was reversed, but not reversed back."),
        (lambda digits: _from_the_left(digits[::-1])[::-1],
         "the digits inside each group are in reverse order: reverse every group as well."),
        (_empty_first,
         "there is an empty piece at the front when the length is a multiple of 3. No piece is "
         "empty."),
        (lambda digits: _empty_first(digits)[1:],
         "the first piece is missing when the length is not a multiple of 3."),
        (list,
         "every digit is a piece of its own. Take up to three together."),
        (lambda digits: f"{int(digits):,}",
         "this is one text with commas. Return the list of pieces; the commas are not in the "
         "text."),
        (lambda digits: _from_the_right(str(int(digits))),
         "the zeros at the front are lost: as a number, 007 is 7. Group the text itself."),
        (lambda digits: [int(piece) for piece in _from_the_right(digits)],
         "these are numbers. Return texts: as a number, 045 is 45."),
    ],
    properties=[
        (_all_are(str),
         "the pieces are not texts. Cut the text itself; do not turn it into numbers."),
        (of_each(lambda found, digits: "" not in found),
         "a piece is empty."),
        (of_each(lambda found, digits: "".join(found) == digits),
         "joined in order, the pieces do not give the digits back. Every digit is in one piece, "
         "and nothing else is."),
        (of_each(lambda found, digits: max(map(len, found)) <= 3),
         "a piece has more than three digits."),
        (of_each(lambda found, digits: min(map(len, found[1:]), default=3) >= 3),
         "a piece other than the first has fewer than three digits."),
    ],
)  # fmt: skip


# --- The longest match ----------------------------------------------------------------------------


def _ranks(piece, merged):
    """The bytes of a piece, then the merged tokens in this order -> {token: rank}."""
    single = [byte for byte in _single(sorted(set(piece))) if byte not in merged]
    return {token: rank for rank, token in enumerate([*single, *merged])}


def _single(piece):
    return [bytes([byte]) for byte in piece]


def _with_tokens(*pairs):
    """(a piece, its merged tokens as a text) for each case -> {name: (piece, ranks)}."""
    cases = {}
    for piece, merged in pairs:
        tokens = [token.replace("·", " ").encode() for token in merged.split()]
        named = ", ".join(["single bytes", *merged.split()])
        cases[f"{piece} (tokens: {named})"] = piece, _ranks(piece, tokens)
    return cases


def _by_rank(piece, ranks):
    parts = _single(piece)
    while True:
        pairs = enumerate(pairwise(parts))
        _, i = min(((ranks[a + b], i) for i, (a, b) in pairs if a + b in ranks), default=(0, None))
        if i is None:
            return parts
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def _lengths(piece, ranks):
    """The lengths of the tokens that a piece begins with."""
    return [n for n in range(1, len(piece) + 1) if piece[:n] in ranks]


def _taken(choose):
    """The answer that chooses each next token's length from the possible ones."""

    def tokens(piece, ranks):
        found = []
        while piece:
            n = choose(_lengths(piece, ranks), piece, ranks)
            found.append(piece[:n])
            piece = piece[n:]
        return found

    return tokens


_longest = _taken(lambda lengths, piece, ranks: max(lengths))


def _from_the_end(piece, ranks):
    found = _longest(piece[::-1], {token[::-1]: rank for token, rank in ranks.items()})
    return [token[::-1] for token in found][::-1]


def _anywhere(piece, ranks):
    """The longest token of the whole piece first, then the same before it and after it."""
    if not piece:
        return []
    token = max((token for token in ranks if token in piece), key=len)
    before, _, after = piece.partition(token)
    return [*_anywhere(before, ranks), token, *_anywhere(after, ranks)]


def _grown(lengths, piece, ranks):
    return next(n for n in range(1, len(piece) + 1) if n + 1 not in lengths)


def _is_longest(found, piece, ranks):
    for token in found:
        if len(token) < max(_lengths(piece, ranks)):
            return False
        piece = piece[len(token) :]
    return True


longest_match = Exercise(
    "A piece's bytes, {token: rank} -> its tokens: always the longest that the rest begins with.",
    right=_longest,
    cases=lambda: _with_tokens(
        (b"abcd", "cd ab bc abc"),
        (b"k", ""),
        (b"xcdef", "cd de ef cde xcde x"),  # the byte x comes last
        (b"ghij", "gh ij ghij"),
        (b"jabcdeghij", "cd ab bc abc de gh ij ghij abcd"),
        (b"jefgh", "efg ef gh"),
        (b"aaaaaaaa", "aa aaa"),
        (b"abcde", "de bc ab bcde"),
        (b" everythings", "in ing th ·e very ·every thing everything ·everything"),
    ),
    mistakes=[
        (_by_rank,
         "these are the tokens that merging by rank makes. Here the ranks play no part: what "
         "matters is which bytes are a token, and how long it is."),
        (_from_the_end,
         "the tokens are taken from the end of the piece. Start at its beginning."),
        (_anywhere,
         "the longest token of the whole piece is taken first. Go from left to right: take the "
         "longest that the rest begins with."),
        (_taken(_grown),
         "a longer token was missed: the search stops at the first length that is no token, but a "
         "longer one may be a token again."),
        (_taken(lambda lengths, piece, ranks: min(lengths)),
         "the shortest token that fits is taken. Take the longest."),
        (_taken(lambda lengths, piece, ranks: min(lengths, key=lambda n: ranks[piece[:n]])),
         "of the tokens that fit, the one with the lowest rank is taken. Take the longest."),
        (_taken(lambda lengths, piece, ranks: max(lengths, key=lambda n: ranks[piece[:n]])),
         "of the tokens that fit, the one with the highest rank is taken. That is often the "
         "longest, but not always."),
        (lambda piece, ranks: [ranks[token] for token in _longest(piece, ranks)],
         "these are the ids. Return the tokens, as bytes."),
        (lambda piece, ranks: [token.decode() for token in _longest(piece, ranks)],
         "these are texts. Return the tokens as bytes: not all of them are valid UTF-8."),
    ],
    properties=[
        (_all_are(bytes),
         "the entries are not bytes. Return the tokens themselves, not ids or texts."),
        (of_each(lambda found, piece, ranks: b"".join(found) == piece),
         "joined in order, the tokens do not give the piece back."),
        (of_each(lambda found, piece, ranks: all(token in ranks for token in found)),
         "a part of the result is not a token: it is not in `ranks`."),
        (of_each(_is_longest),
         "a longer token begins at the same place as one of yours. Try the lengths from the whole "
         "rest down to one byte."),
    ],
)  # fmt: skip


# --- Streaming ------------------------------------------------------------------------------------


def _stream_cases():
    i, go, llama, unknown, hindi = (text.encode("utf-8") for text in (*"ï語🦙\ufffd", "नमस्ते"))
    return [
        ([b"a", b"\xc3", b"\xa9!"],),
        ([b"na", i[:1], i[1:] + b"ve ", llama[:2], llama[2:3], llama[3:], b"!"],),
        ([go[:2], go[2:] + llama[:1], llama[1:3], llama[3:] + go[:1], go[1:] + i],),
        ([b"all", b" in", b" ASCII"],),
        ([hindi[:4], hindi[4:5], hindi[5:11], hindi[11:12], hindi[12:]],),
        ([b"?" + unknown, b"x" + unknown[:2], unknown[2:], i[:1], i[1:] + unknown],),
    ]


def _streamed(tokens):
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(token) for token in tokens]


def _held_until(is_complete):
    """The answer that shows all the bytes it holds once they are complete, in its own sense."""

    def texts(tokens):
        found, held = [], b""
        for token in tokens:
            held += token
            text = held.decode("utf-8", "replace")
            shows = is_complete(text, held)
            found.append(text if shows else "")
            held = b"" if shows else held
        return found

    return texts


def _is_valid(text, held):
    return text.encode("utf-8") == held


def _without_replacements(tokens):
    found, held = [], b""
    for token in tokens:
        held += token
        text = held.decode("utf-8", "replace").rstrip("\ufffd")
        found.append(text)
        held = held[len(text.encode("utf-8")) :]
    return found


def _so_far(tokens):
    texts = _streamed(tokens)
    return ["".join(texts[: i + 1]) for i in range(len(texts))]


def _by_itself(errors):
    return lambda tokens: [token.decode("utf-8", errors) for token in tokens]


def _none_is_broken(found, tokens):
    """Whether there is no U+FFFD in the texts, unless it is in the text itself."""
    return "\ufffd" not in "".join(found) or "\ufffd" in b"".join(tokens).decode("utf-8")


def _none_waits(found, tokens):
    shown = "", *_so_far(tokens)
    return all("".join(found[:i]) == shown[i] for i in range(len(tokens) + 1))


stream = Exercise(
    "The tokens' bytes, in order -> the texts that can be shown after each: complete characters.",
    right=_streamed,
    cases=_stream_cases,
    mistakes=[
        (_by_itself("replace"),
         "each token is decoded by itself, so the bytes of a character that takes several tokens "
         "become U+FFFD. Keep the bytes that are not yet a character."),
        (_by_itself("ignore"),
         "the characters that take more than one token never appear: each token is decoded by "
         "itself, and incomplete bytes are dropped. Keep them for the next token."),
        (_held_until(_is_valid),
         "a complete character waits because the next one has begun in the same token. Show what "
         "is complete and keep the rest."),
        (_held_until(lambda text, held: "\ufffd" not in text),
         "a complete character waits because the next one has begun in the same token. And a text "
         "may contain U+FFFD itself: finding one does not prove that bytes are missing."),
        (_without_replacements,
         "right, unless the text itself contains U+FFFD: finding one does not prove that bytes are "
         'missing. Decode with errors="ignore" and compare the numbers of bytes.'),
        (_so_far,
         "each text begins from the start. Return only what is new with each token."),
        (lambda tokens: [""] * (len(tokens) - 1) + [b"".join(tokens).decode("utf-8")],
         "the whole text appears with the last token. Show each character as soon as its last byte "
         "is there."),
        (lambda tokens: [token.decode("latin-1") for token in tokens],
         "every byte became a character of its own. A character takes up to four bytes."),
        (lambda tokens: b"".join(tokens).decode("utf-8"),
         "this is one text. Return a list with a text for each token."),
        (lambda tokens: [*_streamed(tokens), ""],
         "there is one text too many, at the end. `Tokenizer.stream` also yields what is left "
         "after the last token; here there is exactly one text for each token."),
        (lambda tokens: [text.encode("utf-8") for text in _streamed(tokens)],
         "these are bytes. Return texts."),
        (lambda tokens: [text for text in _streamed(tokens) if text],
         "the empty texts are missing. A token that completes no character gets an empty text."),
    ],
    properties=[
        (_all_are(str),
         "the entries are not texts. Decode the bytes."),
        (of_each(lambda found, tokens: len(found) == len(tokens)),
         "the number of texts is not the number of tokens. There is one text for each token; it "
         "may be empty."),
        (of_each(_none_is_broken),
         "there is U+FFFD in a text: bytes were decoded that are not yet a whole character."),
        (of_each(lambda found, tokens: "".join(found) == b"".join(tokens).decode("utf-8")),
         "joined in order, the texts do not give the whole text. Every character is shown once."),
        (of_each(_none_waits),
         "a character is not shown with the very token that brings its last byte."),
    ],
)  # fmt: skip


# --- In how many ways -----------------------------------------------------------------------------


def _ways(piece, ranks, whole=True):
    ways = [1] + [0] * len(piece)
    for stop in range(1, len(piece) + 1):
        for start in range(stop):
            token = piece[start:stop]
            ways[stop] += ways[start] * (token in ranks and (whole or token != piece))
    return ways[-1]


def _sequences(piece, ranks):
    """All the sequences of tokens that make up a piece."""
    if not piece:
        return [()]
    lengths = _lengths(piece, ranks)
    return [(piece[:n], *rest) for n in lengths for rest in _sequences(piece[n:], ranks)]


def _substrings(piece, ranks):
    return sum(len(_lengths(piece[start:], ranks)) for start in range(len(piece)))


def _at_most_two(piece, ranks):
    cuts = range(1, len(piece))
    two = sum(piece[:cut] in ranks and piece[cut:] in ranks for cut in cuts)
    return two + (piece in ranks)


def _early(piece, ranks):
    if piece in ranks:
        return 1
    return sum(_early(piece[n:], ranks) for n in _lengths(piece, ranks))


_THE = b"the", "th he the"  # the notebook's example


def _remembered(piece, ranks):
    """What a cache gives that outlives the call and does not know the ranks."""
    return _ways(piece, _ranks(_THE[0], [b"th", b"he", b"the"]) if piece == _THE[0] else ranks)


def _has_one_way_in_bytes(answer, piece, ranks):
    return answer(piece, _ranks(piece, [])) == 1


def _gains_one_by_the_whole(answer, piece, ranks):
    """The whole piece as one more token is one more way."""
    without = {token: rank for token, rank in ranks.items() if token != piece or len(piece) == 1}
    more = answer(piece, without | {piece: len(ranks)}) - answer(piece, without)
    return more == (len(piece) > 1)


def _ignores_ranks(answer, piece, ranks):
    """Neither the ranks nor a token that is not in the piece may change the number of ways."""
    others = {token: len(ranks) - rank for token, rank in ranks.items()} | {b"~~": len(ranks) + 1}
    return answer(piece, others) == answer(piece, ranks)


def _multiplies(answer, piece, ranks):
    """A piece, a byte that is part of no longer token, the piece again: ways times ways."""
    with_byte = ranks | {b"~": len(ranks)}
    return answer(piece + b"~" + piece, with_byte) == answer(piece, ranks) ** 2


count_ways = Exercise(
    "A piece's bytes, {token: rank} -> in how many ways tokens, one after another, make it up.",
    right=_ways,
    cases=lambda: _with_tokens(
        _THE,
        (b"the", ""),
        (b" the", "th he the ·t ·th ·the"),
        (b"think", "th in nk ink hi thi"),
        (b"theses", "th he the es hes esi"),
        (b"kit", "th in"),
        (b"k", "th in"),
        (b"aaaaaa", "aa aaa aaaaaa"),
    ),
    mistakes=[
        (lambda piece, ranks: 2 ** (len(piece) - 1),
         "this counts every way to cut the bytes. Only those count where every part is a token."),
        (lambda piece, ranks: _ways(piece, ranks, whole=False),
         "one is missing where the whole piece is a token: that is a way, too."),
        (_substrings,
         "this counts the tokens that occur in the piece. Count the sequences that make it up."),
        (_at_most_two,
         "this counts the ways with one token or two. There may be any number of them: after the "
         "first token, go on with the rest."),
        (lambda piece, ranks: len(_by_rank(piece, ranks)),
         "this is how many tokens merging by rank makes, not how many ways there are."),
        (lambda piece, ranks: len(_longest(piece, ranks)),
         "this is how many tokens the longest match makes, not how many ways there are."),
        (lambda piece, ranks: len({tuple(sorted(way)) for way in _sequences(piece, ranks)}),
         "the same tokens in another order are counted once. `a aa` and `aa a` are two ways."),
        (lambda piece, ranks: _sequences(piece, ranks),
         "these are the sequences themselves. Return how many there are."),
        (_early,
         "the counting stops as soon as the rest is one token. The rest may also be cut further: "
         "go on."),
        (_remembered,
         "the number for b'the' stays the same with other tokens. Is a dict or a default argument "
         "kept from one call to the next?"),
        (lambda piece, ranks: 0,
         "nothing is counted. There is one way to write no bytes at all: start from 1."),
    ],
    properties=[
        (answer_property(_has_one_way_in_bytes),
         "if only single bytes are tokens, there is exactly one way. Your result is another one."),
        (answer_property(_gains_one_by_the_whole),
         "if the whole piece becomes a token, there is exactly one way more. Your result does not "
         "grow by 1."),
        (answer_property(_ignores_ranks),
         "other ranks, or a token that is not in the piece, change the result. What matters is "
         "which parts of the piece are tokens."),
        (answer_property(_multiplies),
         "write a piece twice, with a byte between that is part of no longer token: each piece has "
         "n ways, so together there are n * n. Your result is another one: does it go on after the "
         "first tokens?"),
    ],
)  # fmt: skip


# --- The chat format ------------------------------------------------------------------------------


@functools.cache
def _tokenizer():
    """The 256 bytes, runs of two and of three line ends, and the special tokens."""
    tokens = [*_single(range(256)), b"\n\n", b"\n\n\n"]
    return Tokenizer({token: rank for rank, token in enumerate(tokens)})


def _chat_cases():
    hello, hi = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
    brief = {"role": "system", "content": "Be brief."}
    return [
        ([hello],),
        ([brief, {"role": "user", "content": " Why?\n"}],),
        ([hello, hi, {"role": "user", "content": "\na<|eot_id|>b"}],),
        ([brief, hello, hello, {"role": "assistant", "content": "Llamas\n\nare né\n\n\n"}],),
        ([{"role": "assistant", "content": ""}, {"role": "user", "content": "<|begin_of_text|>"}],),
    ]


def _built(first=1, bos=(), gap=("\n\n",), end="<|eot_id|>", last=True, changed=None):
    """A chat with parts changed. bos: the parts before which `encode` puts <|begin_of_text|>."""

    def chat(messages, tokenizer):
        special, encode = tokenizer.special, tokenizer.encode

        def header(role):
            ids = [special["<|start_header_id|>"], *encode(role, bos="role" in bos)]
            empty_line = [i for part in gap for i in encode(part, bos="gap" in bos)]
            return [*ids, special["<|end_header_id|>"], *empty_line]

        ids = [tokenizer.bos_id] * first
        for message in messages:
            content = message["content"]
            content = changed(content) if changed else content
            ids += header(message["role"]) + encode(content, bos="content" in bos)
            ids += [special[end]] if end else []
        return ids + header("assistant") * last

    return chat


_chat, _turns = _built(), _built(last=False)


def _rendered(messages, tokenizer):
    text = tokenizer.decode(_chat(messages, tokenizer))
    return tokenizer.encode(text, bos=False, allowed_special="all")


def _glued(messages, tokenizer):
    turns = _built(gap=(), last=False, changed=lambda content: "\n\n" + content)
    return turns(messages, tokenizer) + _built(first=0)([], tokenizer)


def _bos_each_turn(messages, tokenizer):
    turns = [_turns([message], tokenizer) for message in messages]
    return [*sum(turns, []), *_built(first=0)([], tokenizer)]


def _assistant_next(messages, tokenizer):
    is_open = messages[-1]["role"] != "assistant"
    return _built(last=is_open)(messages, tokenizer)


def _has_one_bos(found, messages):
    bos = _tokenizer().bos_id
    return found[0] == bos and found.count(bos) == 1


def _has_headers(found, messages):
    special = _tokenizer().special
    names = "<|start_header_id|>", "<|end_header_id|>"
    return all(found.count(special[name]) == len(messages) + 1 for name in names)


def _has_empty_lines(found, messages):
    end, empty = _tokenizer().special["<|end_header_id|>"], _tokenizer().ranks[b"\n\n"]
    return all(found[i + 1 : i + 2] == [empty] for i, each in enumerate(found) if each == end)


def _has_turns(found, messages):
    """Whether the turns are there, one after another, each with its header and closed."""
    at = 0
    for message in messages:
        turn = _built(first=0, last=False)([message], _tokenizer())
        at = next((i for i in range(at, len(found)) if found[i : i + len(turn)] == turn), None)
        if at is None:
            return False
        at += len(turn)
    return found.count(_tokenizer().special["<|eot_id|>"]) == len(messages)


def _is_open(found, messages):
    header = _built(first=0)([], _tokenizer())
    return found[-len(header) :] == header


chat = Exercise(
    "Messages, a tokenizer -> the ids after which an Instruct model writes its answer, as "
    "`encode_chat` makes them.",
    right=_chat,
    cases=_chat_cases,
    run=lambda answer, messages: answer(messages, _tokenizer()),
    mistakes=[
        (_built(bos=("role", "gap", "content")),
         "there are many <|begin_of_text|>: `encode` puts one before everything that it encodes, "
         "unless you pass `bos=False`. It belongs at the very beginning and nowhere else."),
        (_built(bos=("content",)),
         "there is a <|begin_of_text|> before every content: `encode` puts it there unless you "
         "pass `bos=False`."),
        (_bos_each_turn,
         "every turn begins with a <|begin_of_text|>. Only the conversation does."),
        (_built(first=2),
         "there are two <|begin_of_text|> at the beginning."),
        (_built(first=0),
         "the <|begin_of_text|> at the beginning is missing."),
        (_built(gap=()),
         "the empty line after each header is missing: two line ends, encoded by themselves."),
        (_built(gap=("\n",)),
         "one line end follows each header. There are two: an empty line."),
        (_built(gap=("\n", "\n")),
         "the two line ends of an empty line are encoded one by one. Together they are one token."),
        (_glued,
         "a content that begins with a line end was merged with the empty line before it. Encode "
         "the empty line by itself, as part of the header, and the content by itself."),
        (_turns,
         "the header of the assistant's turn is missing at the end: the model would have to write "
         "it before its answer."),
        (_assistant_next,
         "if the last message is the assistant's, the header at the end is missing. It comes after "
         "every conversation: the assistant's turn is next."),
        (lambda messages, tokenizer: [
            *_chat(messages, tokenizer), tokenizer.special["<|eot_id|>"]],
         "the last turn is closed: the model writes after the assistant's header, so no <|eot_id|> "
         "follows it."),
        (_built(end="<|end_of_text|>"),
         "the turns end with <|end_of_text|>. A turn ends with <|eot_id|>."),
        (_built(end=None),
         "no <|eot_id|> ends the turns."),
        (_rendered,
         "a user who types <|eot_id|> ends the turn: the whole text is encoded with special tokens "
         "allowed. Encode each content as text, and put the special ids around it."),
        (_built(changed=str.strip),
         "the white space around the contents is gone. Encode them as they are."),
        (lambda messages, tokenizer: _chat(
            [message for message in messages if message["content"]], tokenizer),
         "a message with an empty content is left out. It has a header and an <|eot_id|>, too."),
        (lambda messages, tokenizer: tokenizer.decode(_chat(messages, tokenizer)),
         "this is the text. Return the ids."),
    ],
    properties=[
        (of_each(_has_one_bos),
         "there should be exactly one <|begin_of_text|>, at the very beginning. `encode` adds "
         "another one unless you pass `bos=False`."),
        (of_each(_has_headers),
         "the number of headers is not right: a <|start_header_id|> and an <|end_header_id|> for "
         "each message, and one pair more for the answer."),
        (of_each(_has_empty_lines),
         "an <|end_header_id|> is not followed by the token of an empty line, which is "
         r'`tokenizer.encode("\n\n", bos=False)`.'),
        (of_each(_has_turns),
         "a turn is wrong. It is the header with the message's role, the empty line, the content, "
         "encoded by itself as text, and one <|eot_id|>."),
        (of_each(_is_open),
         "the ids do not end with the assistant's header and its empty line."),
    ],
    but=[
        (uses("encode_chat"),
         "it calls `encode_chat`, which is the function to write. Build the ids from `encode`, "
         "`special` and `bos_id`."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
