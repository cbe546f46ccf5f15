"""Answers to the exercises of notebook 01, apart from the checkers' own."""


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


def merged(piece, ranks):
    """One merge, then the same on what is left, as tuples of bytes."""
    parts = piece if isinstance(piece, tuple) else tuple(bytes([byte]) for byte in piece)
    joined = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
    best = min((both for both in joined if both in ranks), key=ranks.get, default=None)
    if best is None:
        return list(parts)
    i = joined.index(best)
    return merged((*parts[:i], best, *parts[i + 2 :]), ranks)


def one_pass(piece, ranks):
    """From left to right, once, each part merged with the next byte or part that follows it."""
    parts, i = [bytes([byte]) for byte in piece], 0
    while i < len(parts) - 1:
        if parts[i] + parts[i + 1] in ranks:
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        i += 1
    return parts


def sorted_first(piece, ranks):
    for token in sorted(ranks, key=len, reverse=True):
        if piece.startswith(token):
            return [token, *sorted_first(piece[len(token) :], ranks)]
    return []


def up_to(n, piece, ranks):
    return sorted_first(piece, [token for token in ranks if len(token) <= n])


def differences(tokens):
    """What each token adds to the text of all before it, incomplete characters left out."""
    texts = [b"".join(tokens[:n]).decode(errors="ignore") for n in range(len(tokens) + 1)]
    return [texts[n + 1][len(texts[n]) :] for n in range(len(tokens))]


def conversation(messages, tokenizer, bos=False, gap="\n\n", end="<|eot_id|>"):
    special, encode = tokenizer.special, tokenizer.encode

    def header(role):
        name, empty = encode(role, bos=False), encode(gap, bos=False)
        return [special["<|start_header_id|>"], *name, special["<|end_header_id|>"], *empty]

    ids = [tokenizer.bos_id]
    for message in messages:
        ids += header(message["role"]) + encode(message["content"], bos=bos) + [special[end]]
    return ids + header("assistant")


def changed(**how):
    return lambda messages, tokenizer: conversation(messages, tokenizer, **how)


RIGHT = {
    "e01_tokenizer.merge": [replayed, merged],
    "e01_tokenizer.longest_match": [sorted_first],
    "e01_tokenizer.stream": [differences],
    "e01_tokenizer.chat": [conversation],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e01_tokenizer.merge": [
        (one_pass, "two neighbours of the result are a token together"),
        #
        (lambda p, r: [p[:3], *one_pass(p[3:], r)], "is not a token: two neighbours"),
        (lambda p, r: [r.get(part) for part in one_pass(p, r)], "the entries are not bytes"),
    ],
    "e01_tokenizer.longest_match": [
        (lambda p, r: up_to(4, p, r), "a longer token begins at the same place"),
        #
        (lambda p, r: up_to(2, p, r)[:-1], "do not give the piece back"),
        (lambda p, r: up_to(2, p[::-1], r)[::-1], "a longer token begins"),
    ],
    "e01_tokenizer.stream": [
        (lambda ts: [text.strip() for text in differences(ts)], "do not give the whole text"),
        #
        (lambda ts: [ts.pop(0).decode(errors="replace") for _ in ts[:]], "changes its arguments"),
        (lambda ts: [b"".join(ts[: n + 1]).decode(errors="replace") for n in range(len(ts))],
         "there is U+FFFD in a text"),
    ],
    "e01_tokenizer.chat": [
        (lambda messages, tokenizer: tokenizer.encode_chat(messages), "it calls `encode_chat`"),
        (lambda ms, t: conversation(
            [m | {"content": m["content"].strip()} for m in ms], t), "first repository"),
        #
        (changed(bos=True, end="<|end_of_text|>"), "should be exactly one <|begin_of_text|>"),
        (changed(gap="\n", end="<|end_of_text|>"), "not followed by the token of an empty line"),
    ],
}  # fmt: skip
