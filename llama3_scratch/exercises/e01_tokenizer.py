"""The exercises of notebook 01: merging, the longest match, streaming, chat."""

import codecs
import functools
from itertools import pairwise

from llama3_scratch.exercises.frame import Exercise, desk, of_each, uses
from llama3_scratch.tokenizer import Tokenizer


def _all_are(kind):
    """A property: every entry of the result is of this type."""
    return of_each(lambda found, *case: all(isinstance(each, kind) for each in found))


# --- Merging by rank ------------------------------------------------------------------------------


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


def _merged_by(choose):
    """The answer that merges, again and again, the pair that this takes of [(rank, i), ...]."""

    def tokens(piece, ranks):
        parts = _single(piece)
        while True:
            pairs = [(ranks.get(a + b), i) for i, (a, b) in enumerate(pairwise(parts))]
            known = [(rank, i) for rank, i in pairs if rank is not None]
            if not known:
                return parts
            _, i = choose(known)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    return tokens


_by_rank = _merged_by(min)


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


def _grown(lengths, piece, ranks):
    return next(n for n in range(1, len(piece) + 1) if n + 1 not in lengths)


def _cut_at(n):
    """The answer that knows only tokens of at most n bytes."""
    return lambda piece, ranks: _by_rank(piece, {t: ranks[t] for t in ranks if len(t) <= n})


def _once(piece, ranks):
    parts = _single(piece)
    known = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
    for _, i in sorted(known)[:1]:
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def _nothing_is_left(found, piece, ranks):
    return not any(a + b in ranks for a, b in pairwise(found))


merge = Exercise(
    "A piece's bytes, {token: rank} -> its parts, as bytes, when no two neighbours can be merged: "
    "always the pair with the lowest rank first, the leftmost if there are several.",
    right=_by_rank,
    cases=lambda: _with_tokens(
        (b"abc", "bc ab"),
        (b"k", "ab"),
        (b"aaaaa", "aa aaaa"),
        (b"pqrst", "qr pq rs st"),
        (b"abcde", "bc de ab bcde abcde"),
        (b" universe", "er se ·u iv iver ·un ·univer ·universe"),
        (b" zdrav", "dr av ·z rav ·zd ·zdrav"),  # the whole piece is a token, out of reach
        ("naïve".encode(), "na ve"),
    ),
    hints=(
        "Keep a list of parts, at first one for each byte: `bytes([byte])`. In each round, ask the "
        "dictionary for the rank of every two neighbours, joined. `min` of tuples (rank, place) "
        "finds the lowest rank, and the leftmost of equals.",
        "A round puts one part in the place of two, so the list has other neighbours now: the next "
        "round looks all of them up again. And when does it stop? A piece of one byte has no "
        "neighbours at all.",
    ),
    mistakes=[
        (_taken(_grown),
         "each part grows from the left. Merge the lowest rank first, anywhere."),
        (_merged_by(lambda known: min(known, key=lambda pair: pair[1])),
         "the leftmost pair that is a token is merged. The pair with the lowest rank comes first, "
         "wherever in the piece it stands."),
        (_merged_by(max),
         "the pair with the highest rank is merged. The lowest comes first."),
        (_merged_by(lambda known: max(known, key=lambda pair: pair[0])),
         "the pair with the highest rank is merged. The lowest comes first."),
        (_merged_by(lambda known: min(known, key=lambda pair: (pair[0], -pair[1]))),
         "of several pairs with the lowest rank, the last one is merged. Take the leftmost."),
        (_longest,
         "this is the longest match: always the longest token that the rest begins with. Here the "
         "rank decides, not the length."),
        (lambda piece, ranks: _single(piece),
         "nothing is merged: these are the single bytes."),
        (_once,
         "only one pair is merged. Go on until no two neighbours are a token."),
        (_cut_at(2),
         "a part that was merged is not merged again: look the ranks up anew after each merge, "
         "since it makes new neighbours."),
        (lambda piece, ranks: [piece],
         "everything is merged into one part. Stop when no two neighbours are a token."),
        (lambda piece, ranks: [piece] if piece in ranks else _by_rank(piece, ranks),
         "a piece that is a token itself is returned whole. The encoder below does that before it "
         "merges; `merge` itself only merges pairs."),
        (lambda piece, ranks: [ranks[part] for part in _by_rank(piece, ranks)],
         "these are the ids. Return the parts, as bytes."),
        (lambda piece, ranks: list(piece),
         "these are numbers: a loop over bytes gives numbers. One byte as bytes is "
         "`bytes([byte])`."),
        (lambda piece, ranks: [part.decode("utf-8", "replace") for part in _by_rank(piece, ranks)],
         "these are texts. Return the parts as bytes: not all of them are valid UTF-8."),
    ],
    properties=[
        (_all_are(bytes),
         "the entries are not bytes. Return the parts themselves, not ids or texts."),
        (of_each(lambda found, piece, ranks: b"".join(found) == piece),
         "joined in order, the parts do not give the piece back. One byte as bytes is "
         "`bytes([byte])`; a merge puts one part in the place of two."),
        (of_each(lambda found, piece, ranks: all(part in ranks for part in found)),
         "a part of the result is not a token: two neighbours are merged only if their joined "
         "bytes are in `ranks`."),
        (of_each(_nothing_is_left),
         "two neighbours of the result are a token together. Go on until there are none."),
    ],
)  # fmt: skip


# --- The longest match ----------------------------------------------------------------------------


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
    hints=(
        "What does the rest begin with? Try the lengths from the whole rest down to one byte, and "
        "stop at the first that is a token. One byte always is.",
        "Going up from one byte and stopping at the first length that is no token is not the same: "
        "`some` and `somewhere` may be tokens where `somew` is none.",
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
    hints=(
        "Keep the bytes that have not been shown. One token may end a character and begin the "
        "next.",
        '`decode("utf-8", errors="ignore")` leaves out a character that is not complete. The text '
        "that comes out, encoded again, says how many of the bytes were used.",
    ),
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
    hints=(
        "Write a function for the header first: a special id, the role as text, a special id, an "
        'empty line as text ("\\n\\n"). It is needed for every message, and once more at the end.',
        "What does `encode` put in front if you do not pass `bos=False`? And where are the special "
        "ids to be found, so that no text has to contain their names?",
    ),
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
         "the white space around the contents is gone. That is what Meta's first repository, "
         "`llama3`, did; `encode_chat` follows `llama-models`, which encodes them as they are."),
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
