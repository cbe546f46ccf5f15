"""Notebook 01's exercises: right answers pass, and every mistake is told what it is."""

import regex

from llama3_scratch import check


def said(capsys, checker, answer):
    checker(answer)
    return capsys.readouterr().out.strip()


def tell(capsys, checker, right, wrong):
    """right: answers that pass; wrong: [(an answer, a part of the message meant for it)]."""
    for answer in right:
        assert said(capsys, checker, answer).startswith("Right: "), answer
    told = [said(capsys, checker, answer) for answer, _ in wrong]
    for (_, part), text in zip(wrong, told, strict=True):
        assert text.startswith("Not yet: ") and part in text, (part, text)
    assert len(set(told)) == len(wrong) >= 3
    assert "returned None" in said(capsys, checker, lambda *arguments: None)


def test_group_digits(capsys):
    def by_three(digits):
        return [digits[i : i + 3] for i in range(0, len(digits), 3)]

    def right(digits):
        first = len(digits) % 3
        return [digits[:first]] * bool(first) + by_three(digits[first:])

    def with_regex(digits):
        return regex.findall(r"\d{1,3}(?=(?:\d{3})*$)", digits)

    wrong = [
        (by_three, "counted from the left"),
        (lambda d: [g[::-1] for g in by_three(d[::-1])], "in the wrong order"),
        (lambda d: by_three(d[::-1]), "not back again"),
        (lambda d: by_three(d[::-1])[::-1], "inside the groups stand backwards"),
        (lambda d: [d[: len(d) % 3]] + by_three(d[len(d) % 3 :]), "an empty piece"),
        (lambda d: list(d), "every digit stands alone"),
        (lambda d: f"{int(d):,}", "commas"),
        (lambda d: f"{int(d):,}".split(","), "the zeros at the front are gone"),
        (lambda d: [int(piece) for piece in right(d)], "these are numbers"),
        (lambda d: ["".join(right(d))], "entries, expected"),
    ]
    tell(capsys, check.group_digits, [right, with_regex], wrong)


def prefixes(piece, ranks):
    return [piece[:n] for n in range(1, len(piece) + 1) if piece[:n] in ranks]


def eat(piece, ranks, choose):
    """Tokens from the left, each chosen from those that the rest begins with."""
    tokens = []
    while piece:
        tokens.append(choose(prefixes(piece, ranks)))
        piece = piece[len(tokens[-1]) :]
    return tokens


def merged(piece, ranks):
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        pairs = [parts[i] + parts[i + 1] for i in range(len(parts) - 1)]
        known = [pair for pair in pairs if pair in ranks]
        if not known:
            return parts
        i = pairs.index(min(known, key=ranks.get))
        parts = [*parts[:i], pairs[i], *parts[i + 2 :]]


def test_longest_match(capsys):
    def right(piece, ranks):
        return eat(piece, ranks, lambda fitting: max(fitting, key=len))

    def from_the_end(piece, ranks):
        turned = {token[::-1]: rank for token, rank in ranks.items()}
        return [token[::-1] for token in right(piece[::-1], turned)][::-1]

    def grown(piece, ranks):
        tokens = []
        while piece:
            n = 1
            while piece[: n + 1] in ranks and n < len(piece):
                n += 1
            tokens.append(piece[:n])
            piece = piece[n:]
        return tokens

    wrong = [
        (merged, "tokens that merging by rank makes"),
        (from_the_end, "from the end of the piece"),
        (grown, "you stop growing"),
        (lambda p, r: eat(p, r, lambda fitting: min(fitting, key=r.get)), "one of lowest rank"),
        (lambda p, r: eat(p, r, lambda fitting: max(fitting, key=r.get)), "one of highest rank"),
        (lambda p, r: [r[token] for token in right(p, r)], "these are the ids"),
        (lambda p, r: [token.decode() for token in right(p, r)], "these are texts"),
        (lambda p, r: [p], "entries, expected"),
    ]
    tell(capsys, check.longest_match, [right], wrong)


def test_stream(capsys):
    def right(tokens):
        shown, texts = "", []
        for n in range(1, len(tokens) + 1):
            text = b"".join(tokens[:n]).decode(errors="ignore")
            texts.append(text[len(shown) :])
            shown = text
        return texts

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

    wrong = [
        (lambda ts: [t.decode(errors="replace") for t in ts], "becomes two times U+FFFD"),
        (lambda ts: [t.decode(errors="ignore") for t in ts], "never appear"),
        (patient, "the next one has begun in the same token"),
        (lambda ts: ["".join(right(ts)[: n + 1]) for n in range(len(ts))], "from the start"),
        (lambda ts: [""] * len(ts[1:]) + ["".join(right(ts))], "everything with the last token"),
        (lambda ts: ["".join(map(chr, t)) for t in ts], "every byte became a character"),
        (lambda ts: "".join(right(ts)), "this is one text"),
        (lambda ts: [t.decode() for t in ts], "it raised UnicodeDecodeError"),
        (lambda ts: [*right(ts), ""], "one text too many"),
        (lambda ts: right(ts)[1:], "entries, expected"),
    ]
    tell(capsys, check.stream, [right], wrong)


def test_count_ways(capsys):
    def right(piece, ranks):
        if not piece:
            return 1
        return sum(right(piece[len(token) :], ranks) for token in prefixes(piece, ranks))

    def early(piece, ranks):
        if piece in ranks:
            return 1
        return sum(early(piece[len(token) :], ranks) for token in prefixes(piece, ranks))

    def substrings(piece, ranks):
        return sum(len(prefixes(piece[start:], ranks)) for start in range(len(piece)))

    def two(piece, ranks):
        return (piece in ranks) + sum(piece[len(t) :] in ranks for t in prefixes(piece, ranks))

    wrong = [
        (lambda p, r: 2 ** (len(p) - 1), "every way to cut the bytes"),
        (lambda p, r: right(p, r) - (p in r), "one is missing where the piece as a whole"),
        (substrings, "the tokens that occur in the piece"),
        (two, "with one token or two"),
        (lambda p, r: len(merged(p, r)), "how many tokens merging by rank makes"),
        (early, "as soon as the rest is one token"),
        (lambda p, r: 0, "start from 1"),
        (lambda p, r: 1, "the result is 1, expected"),
    ]
    tell(capsys, check.count_ways, [right], wrong)
    assert "expected 4" in said(capsys, check.count_ways, lambda p, r: 99), (
        "the docstring's example"
    )


def conversation(messages, tokenizer, bos=(), gap="\n\n", end="<|eot_id|>", start=1, last=True):
    special, encode = tokenizer.special, tokenizer.encode

    def header(role):
        name, empty = encode(role, bos="role" in bos), encode(gap, bos="gap" in bos)
        return [special["<|start_header_id|>"], *name, special["<|end_header_id|>"], *empty]

    ids = [tokenizer.bos_id] * start
    for message in messages:
        ids += header(message["role"]) + encode(message["content"], bos="content" in bos)
        ids += [special[end]] if end else []
    return ids + (header("assistant") if last else [])


def test_chat(capsys):
    def one_text(messages, tokenizer):
        text = "<|begin_of_text|>"
        for message in [*messages, {"role": "assistant", "content": None}]:
            text += f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n"
            if message["content"] is not None:
                text += message["content"] + "<|eot_id|>"
        return tokenizer.encode(text, bos=False, allowed_special="all")

    def each_turn(messages, tokenizer):
        turns = [conversation([m], tokenizer, last=False) for m in messages]
        return sum(turns, []) + conversation([], tokenizer, start=0)

    def stripped(messages, tokenizer):
        bare = [m | {"content": m["content"].strip()} for m in messages]
        return conversation(bare, tokenizer)

    def closed(messages, tokenizer):
        return [*conversation(messages, tokenizer), tokenizer.special["<|eot_id|>"]]

    def glued(messages, tokenizer):
        ids = [tokenizer.bos_id]
        for message in messages:
            ids += conversation([], tokenizer, start=0)[:1]
            ids += tokenizer.encode(message["role"], bos=False)
            ids.append(tokenizer.special["<|end_header_id|>"])
            ids += tokenizer.encode("\n\n" + message["content"], bos=False)
            ids.append(tokenizer.special["<|eot_id|>"])
        return ids + conversation([], tokenizer, start=0)

    def each_line_end(messages, tokenizer):
        empty = tokenizer.encode("\n\n", bos=False)
        end, one = tokenizer.special["<|end_header_id|>"], tokenizer.encode("\n", bos=False)
        ids, out = conversation(messages, tokenizer), []
        for i in ids:
            out += one + one if [i] == empty and out[-1] == end else [i]
        return out

    def changed(**how):
        return lambda messages, tokenizer: conversation(messages, tokenizer, **how)

    wrong = [
        (changed(bos=("role", "gap", "content")), "many <|begin_of_text|>"),
        (changed(bos=("content",)), "in front of every content"),
        (each_turn, "every turn begins with"),
        (changed(start=2), "two <|begin_of_text|>"),
        (changed(start=0), "<|begin_of_text|> at the beginning is missing"),
        (changed(gap=""), "the empty line after each header is missing"),
        (changed(gap="\n"), "one line end follows"),
        (each_line_end, "encoded one by one"),
        (glued, "merged with the empty line"),
        (changed(last=False), "header of the assistant's turn is missing"),
        (closed, "the last turn is closed"),
        (changed(end="<|end_of_text|>"), "the turns end with <|end_of_text|>"),
        (changed(end=None), "no <|eot_id|> ends the turns"),
        (one_text, "a user who types <|eot_id|>"),
        (stripped, "the white space around"),
    ]
    tell(capsys, check.chat, [conversation], wrong)
