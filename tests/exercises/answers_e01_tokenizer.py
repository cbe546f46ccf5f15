"""Answers to the exercises of notebook 01, written without a look at the checkers' own."""

import regex


def by_three(digits):
    return [digits[i : i + 3] for i in range(0, len(digits), 3)]


def groups(digits):
    first = len(digits) % 3
    return [digits[:first]] * bool(first) + by_three(digits[first:])


def popped(digits):
    found = []
    while digits:
        found, digits = [digits[-3:], *found], digits[:-3]
    return found


def prefixes(piece, ranks):
    return [piece[:n] for n in range(1, len(piece) + 1) if piece[:n] in ranks]


def eat(piece, ranks, choose=lambda fitting: max(fitting, key=len)):
    tokens = []
    while piece:
        tokens.append(choose(prefixes(piece, ranks)))
        piece = piece[len(tokens[-1]) :]
    return tokens


def sorted_first(piece, ranks):
    for token in sorted(ranks, key=len, reverse=True):
        if piece.startswith(token):
            return [token, *sorted_first(piece[len(token) :], ranks)]
    return []


def up_to(n, piece, ranks):
    return eat(piece, {token: rank for token, rank in ranks.items() if len(token) <= n})


def differences(tokens):
    """What each token adds to the text of all before it, incomplete characters left out."""
    texts = [b"".join(tokens[:n]).decode(errors="ignore") for n in range(len(tokens) + 1)]
    return [texts[n + 1][len(texts[n]) :] for n in range(len(tokens))]


def cut_at_the_end(tokens):
    """The held bytes without the last 0, 1, 2 or 3, whichever is valid first."""
    found, held = [], b""
    for token in tokens:
        held += token
        for n in range(len(held), -1, -1):
            try:
                found.append(held[:n].decode())
            except UnicodeDecodeError:
                continue
            held = held[n:]
            break
    return found


def patient(tokens):
    texts, buffer = [], b""
    for token in tokens:
        buffer += token
        try:
            text, buffer = buffer.decode(), b""
        except UnicodeDecodeError:
            text = ""
        texts.append(text)
    return texts


def ways(piece, ranks):
    return sum(ways(piece[len(t) :], ranks) for t in prefixes(piece, ranks)) if piece else 1


def ways_from_the_end(piece, ranks):
    from_here = [0] * len(piece) + [1]
    for start in reversed(range(len(piece))):
        from_here[start] = sum(from_here[start + len(t)] for t in prefixes(piece[start:], ranks))
    return from_here[0]


def ways_kept(piece, ranks, kept={}):  # noqa: B006
    if piece not in kept:
        rests = [piece[len(token) :] for token in prefixes(piece, ranks)]
        kept[piece] = sum(ways_kept(rest, ranks, kept) if rest else 1 for rest in rests)
    return kept[piece]


def conversation(messages, tokenizer, bos=False, gap="\n\n", end="<|eot_id|>", start=1, last=True):
    special, encode = tokenizer.special, tokenizer.encode

    def header(role):
        name, empty = encode(role, bos=False), encode(gap, bos=False)
        return [special["<|start_header_id|>"], *name, special["<|end_header_id|>"], *empty]

    ids = [tokenizer.bos_id] * start
    for message in messages:
        ids += header(message["role"]) + encode(message["content"], bos=bos) + [special[end]]
    return ids + (header("assistant") if last else [])


def changed(**how):
    return lambda messages, tokenizer: conversation(messages, tokenizer, **how)


def as_bytes(messages, tokenizer):
    """A part at a time; the names of the parts that are special tokens have an id."""
    parts = ["<|begin_of_text|>"]
    for message in [*messages, {"role": "assistant"}]:
        parts += ["<|start_header_id|>", message["role"], "<|end_header_id|>", "\n\n"]
        parts += [message["content"], "<|eot_id|>"] if "content" in message else []
    ids = [tokenizer.special.get(p, None) or list(p.encode()) for p in parts]
    return sum(([each] if isinstance(each, int) else each for each in ids), [])


def only_two_roles(messages, tokenizer):
    roles = ({"role": ("user", "assistant")[i % 2]} for i in range(len(messages)))
    return conversation([m | r for m, r in zip(messages, roles, strict=True)], tokenizer)


def the_last_only(messages, tokenizer):
    return conversation(messages[-1:], tokenizer)


def encode_chat(messages, tokenizer):
    return tokenizer.encode_chat(messages)


RIGHT = {
    "e01_tokenizer.group_digits": [
        groups, popped, lambda d: regex.findall(r"\d{1,3}(?=(?:\d{3})*$)", d)],
    "e01_tokenizer.longest_match": [eat, sorted_first],
    "e01_tokenizer.stream": [differences, cut_at_the_end],
    "e01_tokenizer.count_ways": [ways, ways_from_the_end],
    "e01_tokenizer.chat": [conversation],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e01_tokenizer.group_digits": [
        (lambda d: f"{int(d):,}".split(","), "the zeros at the front are lost"),
        (lambda d: [d], "more than three digits"),
        (lambda d: [d[:-3], d[-3:]], "a piece is empty"),
        (lambda d: [d[: len(d) % 3 or 3], *by_three(d[3:])], "do not give the digits back"),
        #
        (lambda d: [int(each) for each in by_three(d)], "the pieces are not texts"),
        (lambda d: by_three(d)[::-1], "do not give the digits back"),
        (lambda d: groups(str(int(d)))[::-1], "do not give the digits back"),
        (lambda d: ["", *by_three(d)], "a piece is empty"),
    ],
    "e01_tokenizer.longest_match": [
        (lambda p, r: eat(p, r, lambda fitting: max(fitting, key=r.get)), "with the highest rank"),
        (lambda p, r: [p], "not a token"),
        (lambda p, r: up_to(4, p, r), "a longer token begins at the same place"),
        (lambda p, r: eat(p, r)[:-1], "do not give the piece back"),
        #
        (lambda p, r: [r[token] for token in eat(p, r, min)], "the entries are not bytes"),
        (lambda p, r: up_to(2, p[::-1], r)[::-1], "a longer token begins"),
        (lambda p, r: eat(p, r, lambda fit: fit[len(fit) // 2]), "a longer token begins"),
    ],
    "e01_tokenizer.stream": [
        (lambda ts: [t.decode() for t in ts], "it raised UnicodeDecodeError"),
        (patient, "the next one has begun in the same token"),
        (lambda ts: differences(ts)[1:], "not the number of tokens"),
        (lambda ts: [text.strip() for text in differences(ts)], "do not give the whole text"),
        (lambda ts: [ts.pop(0).decode(errors="replace") for _ in ts[:]], "changes its arguments"),
        #
        (lambda ts: patient(ts)[:-1], "not the number of tokens"),
        (lambda ts: [text.encode() for text in patient(ts)], "the entries are not texts"),
        (lambda ts: [b"".join(ts[: n + 1]).decode(errors="replace") for n in range(len(ts))],
         "there is U+FFFD in a text"),
        (lambda ts: ["", *differences(ts)[:-1]], "do not give the whole text"),
        (lambda ts: ["", *differences(ts)[:-2], "".join(differences(ts)[-2:])],
         "with the very token"),
    ],
    "e01_tokenizer.count_ways": [
        (ways_kept, "stays the same with other tokens"),
        (lambda p, r: 1, "does not grow by 1"),
        (lambda p, r: ways(p, r) + (b"aa" in r), "each piece has n ways"),
        #
        (lambda p, r: 2 ** len(p), "there is exactly one way"),
        (lambda p, r: ways(p, r) - (p in r) + 1, "there is exactly one way"),
        (lambda p, r: sum(p.count(token) for token in r), "there is exactly one way"),
        (lambda p, r: sum(token in p and len(token) > 1 for token in r) + 1, "go on after"),
    ],
    "e01_tokenizer.chat": [
        (encode_chat, "Right, but it calls `encode_chat`"),
        (changed(bos=True), "a <|begin_of_text|> before every content"),
        (only_two_roles, "a turn is wrong"),
        (the_last_only, "the number of headers is not right"),
        (changed(end="<|end_header_id|>"), "the number of headers is not right"),
        #
        (as_bytes, "should be exactly one <|begin_of_text|>"),
        (changed(bos=True, end="<|end_of_text|>"), "should be exactly one <|begin_of_text|>"),
        (changed(gap="\n", start=0), "should be exactly one <|begin_of_text|>"),
        (changed(last=False, gap=""), "the number of headers is not right"),
        (changed(gap="\n", end="<|end_of_text|>"), "not followed by the token of an empty line"),
        (lambda ms, t: changed(end="<|end_of_text|>")(
            [m | {"content": m["content"].strip()} for m in ms], t), "a turn is wrong"),
    ],
}  # fmt: skip
