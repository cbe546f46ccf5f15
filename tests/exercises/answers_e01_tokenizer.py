"""Answers to the exercises of notebook 01, written without a look at the checkers' own."""

from math import inf


def replayed(piece, ranks):
    """Every merge of the list in its order, each over the whole piece, as training made them."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    for token in sorted(ranks, key=ranks.get):
        i = 0
        while i < len(parts) - 1:
            if parts[i] + parts[i + 1] == token:
                parts[i : i + 2] = [token]
            else:
                i += 1
    return parts


def merged(piece, ranks, lowest=min, rounds=inf, at=lambda places: places[0]):
    """One merge, then the same on what is left, as tuples of bytes."""
    parts = (
        piece if isinstance(piece, tuple) else tuple(piece[i : i + 1] for i in range(len(piece)))
    )
    joined = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
    best = lowest((ranks[both] for both in joined if both in ranks), default=None)
    if best is None or not rounds:
        return list(parts)
    i = at([k for k, both in enumerate(joined) if ranks.get(both) == best])
    shorter = (*parts[:i], joined[i], *parts[i + 2 :])
    return merged(shorter, ranks, lowest, rounds - 1, at)


def with_infinity(piece, ranks):
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 1:
        pair = min(zip(parts, parts[1:], strict=False), key=lambda p: ranks.get(p[0] + p[1], inf))
        if pair[0] + pair[1] not in ranks:
            break
        i = list(zip(parts, parts[1:], strict=False)).index(pair)
        parts = [*parts[:i], pair[0] + pair[1], *parts[i + 2 :]]
    return parts


def without_stop(piece, ranks):
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 1:
        pairs = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
        i = pairs.index(min(pairs, key=lambda both: ranks.get(both, inf)))
        parts[i : i + 2] = [pairs[i]]
    return parts


def by_first_part(piece, ranks):
    """The rank of the pair's first part, not of the joined bytes."""
    parts = [bytes([byte]) for byte in piece]
    while True:
        fit = [i for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in ranks]
        if not fit:
            return parts
        i = min(fit, key=lambda i: ranks[parts[i]])
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def grown(piece, ranks):
    parts = [piece[:1]]
    for i in range(1, len(piece)):
        both = parts[-1] + piece[i : i + 1]
        parts = [*parts[:-1], both] if both in ranks else [*parts, piece[i : i + 1]]
    return parts


def one_pass(piece, ranks):
    """From left to right, once, each part merged with the next byte or part that follows it."""
    parts, i = [bytes([byte]) for byte in piece], 0
    while i < len(parts) - 1:
        if parts[i] + parts[i + 1] in ranks:
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        i += 1
    return parts


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
    "e01_tokenizer.merge": [replayed, merged, with_infinity],
    "e01_tokenizer.longest_match": [eat, sorted_first],
    "e01_tokenizer.stream": [differences, cut_at_the_end],
    "e01_tokenizer.chat": [conversation],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e01_tokenizer.merge": [
        (grown, "each part grows from the left"),
        (eat, "this is the longest match"),
        (without_stop, "merged into one part"),
        (lambda p, r: merged(p, r, lowest=max), "with the highest rank is merged"),
        (lambda p, r: merged(p, r, rounds=1), "only one pair is merged"),
        (lambda p, r: merged(p, r, at=lambda places: places[-1]), "the last one is merged"),
        (lambda p, r: [p] if p in r else replayed(p, r), "returned whole"),
        (lambda p, r: [bytes(byte) for byte in p], "One byte as bytes is `bytes([byte])`"),
        (lambda p, r: [each for each in p], "a loop over bytes gives numbers"),
        (lambda p, r: [part.decode() for part in merged(p, r)], "it raised UnicodeDecodeError"),
        (lambda p, r: min(r[p[i : i + 2]] for i in range(len(p) - 1)), "it raised"),
        #
        (by_first_part, "expected"),
        (one_pass, "two neighbours of the result are a token together"),
        (lambda p, r: merged(p, r, rounds=2), "two neighbours of the result are a token together"),
        (lambda p, r: grown(p, r)[1:], "do not give the piece back"),
        (lambda p, r: [r.get(part) for part in grown(p, r)], "the entries are not bytes"),
        (lambda p, r: [p[:3], *merged(p[3:], r)], "is not a token: two neighbours"),
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
    "e01_tokenizer.chat": [
        (encode_chat, "Right, but it calls `encode_chat`"),
        (changed(bos=True), "a <|begin_of_text|> before every content"),
        (lambda ms, t: conversation(
            [m | {"content": m["content"].strip()} for m in ms], t), "first repository"),
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
