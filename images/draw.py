"""Draws every figure in this folder: `python images/draw.py`, or `make images`.

Sizes come from `PRESETS["Llama-3-8B"]`, data from the tiny model that comes with the package and
from Llama 3's own tokenizer (package llama-models). The same files give the same bytes on every
machine: the model is computed in float64, and what is written is rounded.

A figure stands on a light card of its own, as the pictures of `plots.py` do: pages switch their
theme themselves, and an image cannot see it. On the site's dark pages a style turns its lightness
round and keeps its hues, so no text in a figure may speak of dark or light. A thing has one colour
in all figures (`STREAM` to `NORM`). Text is text; letters stand for the sizes, with the numbers of
Llama 3 8B beside them.
"""

import importlib.util
import math
import sys
from functools import cache
from html import escape
from pathlib import Path
from unittest.mock import patch

import regex
import torch

from llama3_scratch import PRESETS, PROMPT, Tokenizer, forward, load, model, watch
from llama3_scratch.plots import VISIBLE
from llama3_scratch.tokenizer import SPLIT_PATTERN

WIDTH = 690  # pixels: a text column of the site
INK, MUTED, RULE, PANEL, CARD = "#1b1b2f", "#5b5b72", "#d3d3de", "#f6f6fa", "#ffffff"
STREAM, QUERY, KEY, VALUE = "#0b5c9e", "#b84a00", "#00795a", "#8e3f7d"
FFN, NORM = "#806200", "#5b5b72"
TITLE, NOTE, SMALL = 17, 15, 14  # sizes of text
SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
ADVANCE = 0.61  # the width of a character in the widest of these, in sizes

# What a reader who cannot see a figure needs to know of it; the notebooks may use the same words.
ALT = {
    "overview": "Two panels. Left: which tokens of the prompt attend to which others, in one "
    "attention head of the tiny model. Right: the five likeliest next tokens and their "
    "probabilities, 42 far ahead of the rest.",
    "tokenizer": "From text to ids. A pattern cuts the prompt into pieces; the bytes of one piece "
    "are merged pair by pair, the pair of the lowest rank first, until one token is left; every "
    "token has its id, and the special token begin_of_text stands before them.",
    "rms_norm": "One row of the stream as bars. Divided by its root mean square it has the same "
    "shape and size 1; then every column is multiplied by its own learned weight.",
    "residual_stream": "The residual stream as one straight line through 32 layers. In every layer "
    "attention and then the feed-forward network read a normalised copy of it and add their "
    "change; nothing else touches it between the embedding and the last norm.",
    "rope": "Three parts. A pair of a query's numbers is a point on a circle, rotated by one angle "
    "for every position. A query and a key that both stand three positions later keep the angle "
    "between them. Eight of Llama 3 8B's 64 pairs: the first makes a full rotation in 6 positions, "
    "the last in 2.6 million.",
    "attention_head": "One attention head. wq, wk and wv make queries, keys and values from the "
    "normalised stream; RoPE rotates queries and keys, not values. Queries times keys over the "
    "root of H are the scores; the mask adds minus infinity where the key lies ahead; softmax "
    "makes each row probabilities, and these mix the values into the head's output.",
    "grouped_query": "The 32 query heads of Llama 3 8B in eight groups of four; each group shares "
    "one key head and one value head. Below: a token's keys and values take 128 KiB of cache with "
    "8 such heads, 512 KiB with 32, 16 KiB with one.",
    "swiglu": "The feed-forward network. From the normalised stream of width D, w1 and SiLU make "
    "the gate and w3 makes up, both of the greater width F; they are multiplied element by "
    "element, and w2 brings the product back to width D.",
    "plain_and_gated": "Two networks, their matrices drawn to scale. Left, the plain one: one wide "
    "matrix reads, ReLU, one wide matrix writes. Right, SwiGLU: w1 and w3 read, two thirds as "
    "wide; SiLU of the first is multiplied with the second, and w2 writes. The areas of the "
    "matrices have the same sum.",
    "block": "One layer. The residual stream runs straight through. A branch leaves it, is "
    "normalised, becomes queries, keys and values, of which queries and keys are rotated, goes "
    "through attention and wo and is added to the un-normalised stream. A second branch is "
    "normalised, goes through w1, SiLU, w3 and w2 and is added likewise.",
    "architecture": "Llama 3 8B from the prompt to the next token: tokenizer, embedding, 32 "
    "layers, a last RMSNorm, the output matrix. In a layer a norm stands before attention and "
    "another before the feed-forward network; both add to the un-normalised residual stream.",
}


# Parts of a figure: functions that return SVG. Lengths are pixels, y grows downwards.


def num(x):
    """A coordinate, with at most two decimals."""
    return f"{round(float(x), 2) + 0:g}"


def tint(colour, share=0.1):
    """The colour in white: the ground of a box whose border has the full colour."""
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - share * (255 - part)):02x}" for part in parts)


def text(x, y, words, size=NOTE, fill=INK, anchor="middle", mono=False, turn=0):
    """One line of words, its middle at height y. Of a pair of words the second is muted."""
    first, *rest = (words,) if isinstance(words, str) else words
    inner = escape(first) + "".join(f'<tspan dx="8" fill="{MUTED}">{w}</tspan>' for w in rest)
    place = f'x="{num(x)}" y="{num(y + 0.355 * size)}" font-size="{size}"'
    style = f' font-family="{MONO}"' * mono + f' text-anchor="{anchor}"' * (anchor != "start")
    turned = f' transform="rotate({turn} {num(x)} {num(y)})"' * bool(turn)
    return f'<text {place} fill="{fill}"{style}{turned}>{inner}</text>'


def lines(x, y, *words, size=NOTE, **style):
    """Several lines of text, the middle of the first at height y."""
    return "".join(text(x, y + 1.4 * size * i, w, size, **style) for i, w in enumerate(words))


def title(x, y, *words):
    return text(x, y, words, TITLE)


def heading(y, *words, x=32):
    return text(x, y, words, TITLE, anchor="start")


def rect(x, y, width, height, fill=PANEL, stroke=RULE, rx=10, line=1):
    """A rectangle; x and y are its upper left corner."""
    place = f'x="{num(x)}" y="{num(y)}" width="{num(width)}" height="{num(height)}"'
    return f'<rect {place} rx="{rx}" fill="{fill}" stroke="{stroke}" stroke-width="{line}"/>'


def circle(x, y, r, fill="none", stroke=RULE, line=1):
    place = f'cx="{num(x)}" cy="{num(y)}" r="{num(r)}"'
    return f'<circle {place} fill="{fill}" stroke="{stroke}" stroke-width="{line}"/>'


def path(d, stroke=MUTED, line=1, fill="none", extra=""):
    return f'<path d="{d}" fill="{fill}" stroke="{stroke}" stroke-width="{num(line)}"{extra}/>'


def box(x, y, width, height, *words, colour=None, down=0):
    """A box around the point (x, y): a title, and below it notes in small.

    down: the length of an arrow that leads into it from above.
    """
    fill, stroke = (tint(colour), colour) if colour else (CARD, INK)
    top, edge = y - 9.5 * (len(words) - 1), y - height / 2
    rows = [text(x, top + 19 * i + (i > 0), w, SMALL if i else TITLE) for i, w in enumerate(words)]
    into = arrow((x, edge - down), (x, edge)) if down else ""
    return into + rect(x - width / 2, edge, width, height, fill, stroke, 7, 1.4) + "".join(rows)


def arrow(*points, colour=MUTED, line=1.8, bend=9):
    """A line along the points, with round corners, and a head at its end."""
    start, stop = points[-2:]
    length, tip = math.dist(start, stop), 4 + 2.2 * line
    ux, uy = (stop[0] - start[0]) / length, (stop[1] - start[1]) / length
    points = [*points[:-1], (stop[0] - 0.8 * tip * ux, stop[1] - 0.8 * tip * uy)]
    d = f"M{num(points[0][0])} {num(points[0][1])}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        for end, command in ((before, "L"), (after, f"Q{num(corner[0])} {num(corner[1])} ")):
            share = min(bend / math.dist(end, corner), 0.5)
            x, y = (c + share * (e - c) for c, e in zip(corner, end, strict=True))
            d += f"{command}{num(x)} {num(y)}"
    bx, by, wing = stop[0] - ux * tip, stop[1] - uy * tip, 0.45 * tip
    corners = stop, (bx - uy * wing, by + ux * wing), (bx + uy * wing, by - ux * wing)
    head = "M" + "L".join(f"{num(x)} {num(y)}" for x, y in corners) + "z"
    drawn = path(f"{d}L{num(points[-1][0])} {num(points[-1][1])}", colour, line)
    return f'{drawn}<path d="{head}" fill="{colour}"/>'


def node(x, y, sign, colour=STREAM):
    """A circle where two flows become one: + adds, × multiplies element by element."""
    turned = f' transform="rotate(45 {num(x)} {num(y)})"' * (sign == "×")
    cross = f"M{num(x - 6)} {num(y)}h12M{num(x)} {num(y - 6)}v12"
    return circle(x, y, 12, CARD, colour, 1.8) + path(cross, colour, 1.8, extra=turned)


def branch(stream, x, width, top, low, bottom, *norm):
    """What leaves the stream at height top for a norm, ends at low and is added at the bottom."""
    away = arrow((stream, top), (x, top), (x, top + 24))
    back = arrow((x, low), (x, bottom), (stream + 12, bottom)) + node(stream, bottom, "+")
    return away + box(x, top + 45, width, 42, norm, colour=NORM) + back


def heat(x, y, cell, matrix):
    """[T, T] values from 0 to 1 -> squares in 20 shades of ink, inside a frame."""
    levels, side = (20 * matrix).round().int(), cell * len(matrix)
    parts = []
    for level in range(1, 21):
        d = "".join(
            f"M{num(x + j * cell)} {num(y + i * cell)}h{num(cell)}v{num(cell)}h{num(-cell)}z"
            for i, j in (levels == level).nonzero().tolist()
        )
        parts += [
            f'<path d="{d}" fill="{tint(INK, level / 20)}" shape-rendering="crispEdges"/>'
        ] * bool(d)
    return "".join(parts) + rect(x, y, side, side, "none", MUTED, 0)


def shape(letters):
    """A shape's letters, and its numbers in Llama 3 8B: "N*H D" -> ("[N·H, D]", "[4096, 4096]")."""
    sizes = B8.sizes | {"T": len(computed()["labels"])}
    numbers = [math.prod(sizes[letter] for letter in word.split("*")) for word in letters.split()]
    return f"[{', '.join(letters.split())}]".replace("*", "·"), f"{numbers}"


def ladder(x, y, letters, anchor="start"):
    """A shape in two lines."""
    above, below = shape(letters)
    return text(x, y - 9, above, SMALL, INK, anchor) + text(x, y + 9, below, SMALL, MUTED, anchor)


# What the figures show: 8B's sizes, and what the tiny model computes.

B8 = PRESETS["Llama-3-8B"]


@cache
def computed():
    """The prompt in the tiny model, and 8B's RoPE: {name: what the figures show of it}.

    All in float64, the steps too that the model takes in float32: machines differ in the last bits
    of float32, which would show now and then in a rounded coordinate.
    """
    weights, config, tokenizer = load("tiny")
    weights = {name: weight.double() for name, weight in weights.items()}
    tokens = torch.tensor(tokenizer.encode(PROMPT))
    with patch.object(torch.Tensor, "float", torch.Tensor.double), torch.inference_mode():
        frequencies = model.rope_frequencies(B8).tolist()
        with watch(model.attend, model.block) as seen:
            logits = forward(weights, tokens, config)
    heads, blocks = ([call for call in seen if call["def"] == f] for f in ("attend", "block"))
    every = torch.stack([call["probabilities"] for call in heads])  # [L, N, T, T]
    to_previous = every.diagonal(offset=-1, dim1=-2, dim2=-1).mean(-1)  # [L, N]
    layer, head = divmod(int(to_previous.argmax()), config.n_heads)
    rows = torch.stack([call["x"][-1] for call in blocks])  # [L, D]: the last token's
    sizes = (rows.pow(2).mean(-1) + config.norm_eps).sqrt()  # [L]
    i = int((sizes - 2).abs().argmin())  # a row that its norm makes about half as long
    top = logits[-1].softmax(-1).topk(5)
    return {
        "labels": [tokenizer.decode([token]).translate(VISIBLE) for token in tokens],
        "frequencies": frequencies,
        "head": f"layer {layer}, head {head}",  # attends most to the token before
        "scores": heads[layer]["scores"][head],
        "probabilities": every[layer, head],
        "row": rows[i],
        "rms": float(sizes[i]),
        "weight": weights[f"layers.{i}.attention_norm.weight"],
        "next": [(tokenizer.decode([i]), float(p)) for p, i in zip(*top, strict=True)],
    }


# The figures, in the book's order: functions that return a height and parts.


def overview():
    """README: the head that attends most to the token before, and the next token's top five."""
    data, cell, left, top, right = computed(), 17, 168, 64, 500
    side = cell * len(data["labels"])
    low = top + side + 148
    parts = [
        title(left + side / 2, 36, f"who attends to whom ({data['head']})"),
        heading(36, "what comes next", x=right),
        heat(left, top, cell, data["probabilities"]),
        text(34, top + side / 2, "query: the token that attends", SMALL, MUTED, turn=-90),
        text(left + side / 2, low, "key: the token attended to", SMALL, MUTED),
        text(right, low, "attention probability", SMALL, MUTED, "start"),
        text(right, low - 22, "0", SMALL, anchor="start"),
        text(right + 147, low - 22, "1", SMALL, anchor="end"),
    ]
    for k, label in enumerate(data["labels"]):
        middle, style = (k + 0.5) * cell, {"size": 12, "anchor": "end", "mono": True}
        parts.append(text(left - 8, top + middle, label, **style))
        parts.append(text(left + middle, top + side + 8, label, **style, turn=-90))
    for k in range(21):
        parts.append(rect(right + 7 * k, low - 50, 7, 14, tint(INK, k / 20), "none", 0))
    parts.append(rect(right, low - 50, 147, 14, "none", MUTED, 0))
    for k, (word, p) in enumerate(data["next"]):
        y, said = top + 10 + 54 * k, f"{p:.2f}" if p >= 0.005 else "< 0.01"
        parts.append(text(right, y, word.translate(VISIBLE)[:17], 15, anchor="start", mono=True))
        parts.append(rect(right, y + 13, max(110 * p, 1), 18, MUTED if k else INK, "none", 2))
        parts.append(text(right + 110 * p + 8, y + 22, said, SMALL, anchor="start"))
    return low + 30, parts


def merges(piece, ranks):
    """bytes, {token: rank} -> (its tokens, which one is new), at first and after every merge."""
    tokens, new = [bytes([byte]) for byte in piece], None
    while True:
        yield tokens, new
        pairs = [a + b for a, b in zip(tokens, tokens[1:], strict=False)]
        merged = min(pairs, key=lambda pair: ranks.get(pair, math.inf), default=None)
        if merged not in ranks:
            return
        new = pairs.index(merged)
        tokens = [*tokens[:new], merged, *tokens[new + 2 :]]


def tokenizer():
    """The tokenizer's steps, with Llama 3's own ranks: text, pieces, merged bytes, ids."""
    package = Path(importlib.util.find_spec("llama_models").origin).parent
    llama = Tokenizer.from_file(package / "llama3" / "tokenizer.model")
    ids, pieces = llama.encode(PROMPT), regex.findall(SPLIT_PATTERN, PROMPT)
    left, cell, parts = 32, 50, []

    def chip(x, y, width, high, word, token):
        colours = (tint(STREAM), STREAM) if token else (CARD, MUTED)
        parts.append(rect(x, y, width, high, *colours, 5, 1.2))
        parts.append(text(x + width / 2, y + 14, word.translate(VISIBLE), 15, mono=True))

    def chips(y, words, ids=()):
        x = left
        for k, word in enumerate(words):
            width = max(len(word), 5 if ids else 1) * ADVANCE * 15 + 14
            if x + width > WIDTH - left:
                x, y = left, y + (64 if ids else 38)
            chip(x, y, width, 28, word, ids)
            parts.append(text(x + width / 2, y + 42, f"{ids[k]}", SMALL, MUTED) if ids else "")
            x += width + 6
        return y

    parts.append(heading(38, "A pattern cuts the text into pieces.", "· is a space"))
    y = chips(60, pieces) + 78
    parts.append(heading(y, "A piece is bytes. The pair of the lowest rank is merged first."))
    y += 22
    for tokens, new in merges(next(p for p in pieces if len(p) > 6).encode(), llama.ranks):
        x, high = left, 44 if new is None else 28
        for k, token in enumerate(tokens):
            chip(x, y, cell * len(token) - 6, high, token.decode(), k == new)
            value = f"{token[0]}" if new is None else ""
            parts.append(text(x + cell / 2 - 3, y + 32, value, SMALL, MUTED) if value else "")
            x += cell * len(token)
        said = f"rank {llama.ranks[tokens[new]]}" if high == 28 else ("bytes", "and their values")
        parts.append(text(x + 10, y + high / 2, said, anchor="start"))
        y += high + 8
    y += 42
    parts.append(heading(y, "The last rank is the token's id.", "A special token stands first."))
    return chips(y + 22, [llama.decode([token]) for token in ids], ids) + 72, parts


def rms_norm():
    """A row of the stream, divided by its size, times the weight."""
    data, left, wide, shown = computed(), 32, WIDTH - 64, 64
    row, g, rms = data["row"][:shown], data["weight"][:shown], data["rms"]
    normed, step = row / rms, wide / shown
    scale = min(66 / row.abs().max(), 44 / normed.abs().max(), 44 / (normed * g).abs().max())

    def strip(y, values, scale, colour, size=None):
        bars = [f"M{num(left + (k + 0.5) * step)} {num(y)}v{num(-scale * value)}"
                for k, value in enumerate(values)]  # fmt: skip
        guides = f"M{left} {num(y - scale * (size or 0))}h{wide}"
        guides += f"M{left} {num(y + scale * (size or 0))}h{wide}"
        dashed = path(guides, INK, extra=' stroke-dasharray="3 4"') if size else ""
        zero = path(f"M{left} {y}h{wide}", MUTED)
        return path("".join(bars), colour, 0.7 * step) + zero + dashed

    said = f"the first {shown} of {len(data['row'])} columns, tiny model"
    return 626, [
        heading(38, "x", f"one row of the stream; dashed: rms(x) = {rms:.2f}"),
        strip(130, row, scale, STREAM, rms),
        heading(228, "x / rms(x)", "the same row; dashed: 1"),
        strip(288, normed, scale, NORM, 1),
        heading(362, "g", "the weight: one factor a column"),
        strip(432, g, 44 / g.abs().max(), NORM),
        heading(478, "x / rms(x) · g", "what the sub-layer reads"),
        strip(538, normed * g, scale, NORM),
        text(WIDTH - left, 600, said, SMALL, MUTED, "end"),
    ]


def residual_stream():
    """The stream through all layers of 8B, two additions in each."""
    L, x, top, step, reach, wide = B8.n_layers, WIDTH / 2, 138, 18, 84, 150
    bottom, left, right = top + step * L, x - reach - wide / 2, x + reach + wide / 2
    parts = []
    for i in range(L):
        parts.append(text(x - reach - wide - 14, top + step * i + 6, f"{i}", 11, MUTED, "end"))
        for side, colour, y in ((-1, INK, top + step * i), (1, FFN, top + step * (i + 0.5))):
            inner, fill = x + side * reach, tint(colour, 0.03 if side < 0 else 0.1)
            parts.append(path(f"M{num(x)} {num(y + 2.5)}H{num(inner)}", MUTED, 0.8))
            parts.append(arrow((inner, y + 8.5), (x + side * 3, y + 8.5), colour=colour, line=1))
            parts.append(rect(min(inner, inner + side * wide), y, wide, 11, fill, colour, 3))
    total = f"embedding + {L} changes by attention + {L} by feed-forward"
    return bottom + 140, [
        *parts,
        arrow((x, 60), (x, bottom + 44), colour=STREAM, line=6),
        box(x, 44, 220, 42, "embedding", colour=STREAM),
        box(x, bottom + 66, 220, 42, "last RMSNorm", colour=NORM),
        text(x, bottom + 112, total, NOTE),
        text(left, 94, "RMSNorm, attention", 15),
        text(left, 115, "reads other positions", SMALL, MUTED),
        text(right, 94, "RMSNorm, feed-forward", 15),
        text(right, 115, "one position at a time", SMALL, MUTED),
        text(x - reach - wide - 14, 115, "layer", 11, MUTED, "end"),
    ]


def rope():
    """One pair on its circle; the angle between a query and a key; eight of 64 frequencies."""
    P, T, frequencies = B8.sizes["P"], len(computed()["labels"]), computed()["frequencies"]
    theta, every, near, far, y, r = frequencies[0], B8.context_length // 16, 182, 508, 192, 104

    def at(x, y, r, angle):
        return x + r * math.cos(angle), y - r * math.sin(angle)

    def ray(x, position, colour, label, fill=INK):
        angle = position * theta
        drawn = arrow((x, y), at(x, y, r, angle), colour=colour, line=2)
        return drawn + text(*at(x, y, r + 20, angle), label, NOTE, fill)

    def arc(x, start, stop, said):
        (x0, y0), (x1, y1) = at(x, y, 42, start * theta), at(x, y, 42, stop * theta)
        label = text(*at(x, y, 60, (start + stop) / 2 * theta), said, 15)
        return label + path(f"M{num(x0)} {num(y0)}A42 42 0 0 0 {num(x1)} {num(y1)}", INK, 1.3)

    parts = [circle(near, y, r), circle(far, y, r), arc(near, 0, 1, "θ")]
    for i in range(6, -1, -1):
        parts.append(ray(near, i, tint(QUERY, 1 - 0.11 * i), f"{i}"))
    for i in (1, 4):
        parts.append(ray(far, i, KEY, f"k {i}", KEY) + ray(far, i + 2, QUERY, f"q {i + 2}", QUERY))
        parts.append(arc(far, i, i + 2, "2θ"))
    for k in range(8):
        pair, x, low = round(k * (P - 1) / 7), 102 + 162 * (k % 4), 494 + 186 * (k // 4)
        n, step = (T, 1) if k < 4 else (16, every)
        frequency = frequencies[pair]
        angles, full = [i * step * frequency for i in range(n)], math.tau / frequency
        digits = 1 - math.floor(math.log10(full))
        around = f"{round(full, digits):,.{max(digits, 0)}f}"
        parts.append(circle(x, low, 44))
        for i, angle in enumerate(angles):
            parts.append(circle(*at(x, low, 44, angle), 3, tint(QUERY, 0.2 + 0.8 * i / n), "none"))
        parts.append(arrow((x, low), at(x, low, 41, angles[-1]), colour=INK, line=1.6))
        parts.append(text(x, low + 64, (f"pair {pair}", around)))
    said = f"P = {P} pairs, {P} frequencies: positions to a full rotation"
    return 772, [
        *parts,
        title(near, 38, "A pair rotates with its position"),
        text(near, 340, f"pair 0: θ = {theta:g} radian a position", NOTE, MUTED),
        title(far, 38, "q·k sees the distance alone"),
        text(far, 340, "3 positions on: the same angle", NOTE, MUTED),
        title(345, 396, said),
        text(345, 428, f"here at positions 0 to {T - 1}", NOTE, MUTED),
        text(345, 614, f"and here at 0, {every}, {2 * every}, … {15 * every}", NOTE, MUTED),
    ]


def attention_head():
    """One head, from the normalised stream to its output, with the tiny model's patterns."""
    data, cell, high, y, top = computed(), 8, 126, 250, 480
    q, k, v, T = 116, 324, 532, len(data["labels"])
    low, side, scores = y + high, cell * T, data["scores"] - data["scores"].min()
    middle, under, end = top + side / 2, top + side, top + side + 96

    def matrix(x, y, name, colour, down):
        rows = "".join(f"M{x - 33} {num(y + n * high / T)}h66" for n in range(1, T))
        drawn = rect(x - 33, y, 66, high, tint(colour, 0.15), colour, 2, 1.4) + path(rows, CARD)
        label = text(x - 44, y + high / 2, name, 18, anchor="end") + arrow(
            (x, y - down), (x, y - 4)
        )
        return drawn + label + ladder(x + 42, y + high / 2, "T H")

    parts = []
    for x, name, colour in ((q, "q", QUERY), (k, "k", KEY), (v, "v", VALUE)):
        words = f"w{name} of the head", shape("H D")
        parts.append(box(x, 124, 172, 56, *words, colour=colour, down=28))
        parts.append(matrix(x, y, name, colour, 98 if name == "v" else 34))
        parts += [box(x, 199, 90, 34, "RoPE", colour=colour, down=30)] * (name != "v")
    for x, values, name, note in (
        (q, scores / scores.max(), "scores", shape("T T")),
        (k, torch.ones(T, T).triu(1) / 5, "mask", "−∞ ahead, else 0"),
        (v, data["probabilities"], "probabilities", "each row sums to 1"),
    ):
        parts.append(heat(x - side / 2, top, cell, values))
        parts.append(title(x, under + 18, name) + text(x, under + 39, note, SMALL))
    return round(end + 206), [
        *parts,
        box(k, 46, 588, 44, "normalised stream", colour=NORM),
        text(v + 72, 46, shape("T D"), SMALL, anchor="end"),
        box(q, low + 46, 128, 36, "q kᵀ / √H", down=22),
        arrow((k, low + 6), (k, low + 46), (q + 64, low + 46)),
        arrow((q, low + 64), (q, top - 4)),
        text(k + side / 4, middle - side / 4, "−∞", 18),
        text(k - side / 4, middle + side / 4, "0", 18),
        text((q + k) / 2, middle, "+", 24),
        text((k + v) / 2, middle - 18, "softmax", SMALL),
        arrow((k + side / 2 + 6, middle), (v - side / 2 - 6, middle)),
        box(v, end, 164, 36, "probabilities · v", down=24),
        arrow((v + 33, low - 18), (v + 124, low - 18), (v + 124, end), (v + 82, end)),
        matrix(v, end + 48, "output", INK, 30),
        lines(q - side / 2, end + 68, "A row is the token that attends, a column",
              "the token attended to; dark is much.",
              f"From the tiny model, {data['head']}.", fill=MUTED, anchor="start"),
    ]  # fmt: skip


def grouped_query():
    """Which query heads share a key/value head, and what that saves."""
    N, K, G = B8.n_heads, B8.n_kv_heads, B8.n_heads // B8.n_kv_heads
    said = f"Cache for one token: keys and values of {B8.n_layers} layers in bfloat16"
    parts, y = [heading(456, said)], 456
    for x, name, colour in (
        (32, f"N = {N} query heads", QUERY),
        (262, f"K = {K} key heads", KEY),
        (466, f"K = {K} value heads", VALUE),
    ):
        parts.append(rect(x, 30, 16, 16, tint(colour), colour, 4, 1.4))
        parts.append(text(x + 25, 38, name, 15, anchor="start"))
    for group in range(K):
        x, top = 106.5 + 159 * (group % 4), 70 + 176 * (group // 4)
        parts.append(rect(x - 74.5, top, 149, 160))
        for g in range(G):
            at = x + 35 * (g - (G - 1) / 2)
            parts.append(box(at, top + 30, 29, 34, f"{group * G + g}", colour=QUERY))
            parts.append(arrow((x, top + 104), (at, top + 51), line=1.4))
        parts.append(box(x - 34, top + 124, 60, 38, f"k {group}", colour=KEY))
        parts.append(box(x + 34, top + 124, 60, 38, f"v {group}", colour=VALUE))
    for heads, said in ((N, f"with {N} key/value heads"), (K, f"with {K}, as here"), (1, "with 1")):
        y, half = y + 44, 170 * heads / N
        kib = 2 * heads * B8.head_dim * B8.n_layers * 2 / 1024
        parts.append(rect(32, y - 14, half, 28, tint(KEY), KEY, 2, 1.4))
        parts.append(rect(32 + half, y - 14, half, 28, tint(VALUE), VALUE, 2, 1.4))
        parts.append(text(44 + 2 * half, y, (f"{kib:g} KiB", said), 15, anchor="start"))
    return y + 44, parts


def swiglu():
    """The feed-forward network, its tensors as wide as they are."""
    left, middle, right, narrow, ratio = 186, 345, 504, 84, B8.ffn_dim / B8.dim
    silu = [(a / 10, a / 10 / (1 + math.exp(-a / 10))) for a in range(-58, 44)]
    curve = "M" + "L".join(f"{num(left + 8 + 12 * a)} {num(300 - 12 * b)}" for a, b in silu)

    def bar(x, y, words, width=narrow * ratio, colour=FFN, down=0):
        into = arrow((x, y - 13 - down), (x, y - 16)) if down else ""
        drawn = rect(x - width / 2, y - 13, width, 26, tint(colour, 0.15), colour, 3, 1.4)
        return into + drawn + (text(x, y, words) if words else "")

    def ends(y, words, colour, down=0):
        named = text(middle - 56, y, words, TITLE, anchor="end")
        drawn = bar(middle, y, "", narrow, colour, down)
        return named + drawn + text(middle + 56, y, shape("T D"), anchor="start")

    return 672, [
        ends(46, "normalised stream", NORM),
        arrow((middle - 20, 59), (middle - 20, 80), (left, 80), (left, 104)),
        arrow((middle + 20, 59), (middle + 20, 80), (right, 80), (right, 104)),
        box(left, 132, 172, 56, "w1", shape("F D"), colour=FFN),
        box(right, 132, 172, 56, "w3", shape("F D"), colour=FFN),
        bar(left, 200, shape("T F"), down=27),
        box(left, 280, 172, 84, colour=FFN, down=25),
        path(f"M{left - 64} 300h126M{left + 8} 244v70", MUTED),
        path(curve, FFN, 2.2),
        title(left - 46, 266, "SiLU"),
        bar(left, 362, ("gate", shape("T F")[0]), down=27),
        bar(right, 362, ("up", shape("T F")[0]), down=189),
        arrow((left, 375), (left, 416), (middle - 12, 416)),
        arrow((right, 375), (right, 416), (middle + 12, 416)),
        bar(middle, 472, ("gate × up", shape("T F")[0]), down=31),
        node(middle, 416, "×", FFN),
        box(middle, 538, 172, 56, "w2", shape("D F"), colour=FFN, down=25),
        ends(604, "added to the stream", FFN, down=25),
        text(middle, 645, f"widths to scale: F = {ratio:g} D", SMALL, MUTED),
    ]


def plain_and_gated():
    """A plain network and SwiGLU with as many parameters, their matrices to scale."""
    D, F, plain, left, right = 44, 44 * B8.ffn_dim / B8.dim, 160, 400, 572
    gated, wide = (left + right) / 2, 3 * F / 2

    def matrix(x, y, width, name, shape):
        words = text(x, y - 9, name, TITLE) + text(x, y + 11, shape, SMALL, MUTED)
        return rect(x - width / 2, y - D / 2, width, D, tint(FFN, 0.15), FFN, 2, 1.4) + words

    def bar(x, y, width, colour=FFN):
        return rect(x - width / 2, y - 5, width, 10, tint(colour, 0.15), colour, 2, 1.4)

    def ends(x, sides):
        into = [
            arrow((x + s * 14, 79), (x + s * 14, 94), (x + s * 86, 94), (x + s * 86, 116))
            for s in sides
        ]
        return [bar(x, 74, D, NORM), *into, arrow((x, 382), (x, 402)), bar(x, 407, D)]

    read, write = f"[{B8.ffn_dim}, {B8.dim}]", f"[{B8.dim}, {B8.ffn_dim}]"
    wider = 3 * B8.ffn_dim // 2
    return 486, [
        text(plain, 40, "plain", TITLE),
        text(gated, 40, "gated: SwiGLU", TITLE),
        *ends(plain, ()),
        arrow((plain, 79), (plain, 116)),
        *ends(gated, (-1, 1)),
        matrix(plain, 138, wide, "w_in", f"[{wider}, {B8.dim}]"),
        matrix(left, 138, F, "w1", read),
        matrix(right, 138, F, "w3", read),
        box(plain, 206, 84, 34, "ReLU", colour=FFN, down=29),
        box(left, 206, 84, 34, "SiLU", colour=FFN, down=29),
        arrow((plain, 223), (plain, 289)),
        bar(plain, 294, wide),
        arrow((left, 223), (left, 256), (gated - 12, 256)),
        arrow((right, 160), (right, 256), (gated + 12, 256)),
        node(gated, 256, "×", FFN),
        arrow((gated, 268), (gated, 289)),
        bar(gated, 294, F),
        arrow((plain, 299), (plain, 338)),
        arrow((gated, 299), (gated, 338)),
        matrix(plain, 360, wide, "w_out", f"[{B8.dim}, {wider}]"),
        matrix(gated, 360, F, "w2", write),
        text(plain, 436, (f"{wider} neurons", "2 matrices")),
        text(gated, 436, (f"{B8.ffn_dim} neurons", "3 matrices")),
        text(plain, 460, f"{2 * wider * B8.dim:,} parameters"),
        text(gated, 460, f"{3 * B8.ffn_dim * B8.dim:,} parameters"),
    ]


def block():
    """One layer with all its weights; the names are those of model.py."""
    spine, middle, wide, left, right = 70, 416, 480, 292, 540
    shared = f"G = {B8.sizes['G']} query heads share one k and one v"
    masked = "mask: −∞ where the key lies ahead, else 0"
    parts = [
        arrow((spine, 32), (spine, 1092), colour=STREAM, line=6),
        branch(spine, middle, wide, 56, 570, 600, "RMSNorm", "attention_norm"),
        branch(spine, middle, wide, 656, 1018, 1048, "RMSNorm", "ffn_norm"),
    ]
    for x, name, colour, heads in (
        (250, "q", QUERY, "N"),
        (416, "k", KEY, "K"),
        (582, "v", VALUE, "K"),
    ):
        parts.append(box(x, 186, 148, 76, colour=colour, down=26) + title(x, 165, f"w{name}"))
        parts.append(ladder(x, 195, f"{heads}*H D", "middle") + ladder(x + 12, 251, f"T {heads} H"))
        parts.append(arrow((x, 224 if name == "v" else 324), (x, 366)))
        parts += [box(x, 304, 148, 40, "RoPE", colour=colour, down=60)] * (name != "v")
    return 1116, [
        *parts,
        text(34, 320, "the residual stream, un-normalised", NOTE, STREAM, turn=-90),
        ladder(spine + 16, 320, "T D"),
        box(middle, 416, wide, 100, "attention", "softmax(q kᵀ / √H + mask) v", masked, shared),
        box(middle, 542, wide, 56, "wo", shape("D N*H"), down=48),
        ladder(middle + 12, 489, "T N*H"),
        box(left, 780, 232, 56, "w1", shape("F D"), colour=FFN, down=30),
        box(right, 780, 232, 56, "w3", shape("F D"), colour=FFN, down=30),
        box(left, 858, 232, 40, "SiLU", colour=FFN, down=30),
        ladder(right + 12, 858, "T F"),
        arrow((left, 878), (left, 922), (middle - 12, 922)),
        arrow((right, 808), (right, 922), (middle + 12, 922)),
        box(middle, 990, wide, 56, "w2", shape("D F"), colour=FFN, down=28),
        node(middle, 922, "×", FFN),
    ]


def architecture():
    """From the prompt to the next token: the stream on the left, what is added on the right."""
    spine, column, wide, side = 152, 452, 376, 288
    N, K = f"N = {B8.n_heads} heads", f"K = {B8.n_kv_heads} heads"
    prompt = f"{PROMPT[:10]} …{PROMPT[PROMPT.index(' everything') :]}".translate(VISIBLE)
    return 1054, [
        text(spine, 36, prompt, SMALL, mono=True),
        box(spine, 98, 240, 44, "tokenizer", down=26),
        text(side, 98, shape("T"), anchor="start"),
        box(spine, 172, 240, 44, "embedding", colour=STREAM, down=30),
        text(side, 172, shape("V D"), anchor="start"),
        *(rect(24 + shift, 224 + shift, 634, 560) for shift in (10, 5, 0)),
        text(640, 246, f"one of L = {B8.n_layers} layers", 15, anchor="end"),
        arrow((spine, 194), (spine, 828), colour=STREAM, line=6),
        lines(spine - 20, 400, "residual", "stream", size=15, fill=STREAM, anchor="end"),
        ladder(spine - 20, 456, "T D", "end"),
        branch(spine, column, wide, 272, 481, 522, "RMSNorm"),
        box(column, 423, wide, 116, down=27),
        title(column, 386, "attention"),
        box(column - 122, 440, 112, 68, "queries", N, "RoPE", colour=QUERY),
        box(column, 440, 112, 68, "keys", K, "RoPE", colour=KEY),
        box(column + 122, 440, 112, 68, "values", K, colour=VALUE),
        branch(spine, column, wide, 566, 721, 742, "RMSNorm"),
        box(
            column, 690, wide, 62, "feed-forward", f"SwiGLU, F = {B8.ffn_dim}", colour=FFN, down=27
        ),
        box(spine, 850, 240, 44, "RMSNorm", colour=NORM),
        box(spine, 924, 240, 44, "output", down=30),
        text(side, 924, shape("V D"), anchor="start"),
        arrow((spine, 946), (spine, 974)),
        title(spine, 990, "logits"),
        text(side, 990, shape("T V"), anchor="start"),
        text(spine, 1018, f"greatest in the last row: {computed()['next'][0][0]}"),
    ]


FIGURES = (
    overview, tokenizer, rms_norm, residual_stream, rope, attention_head, grouped_query, swiglu,
    plain_and_gated, block, architecture,
)  # fmt: skip


def svg(figure):
    """A figure's function -> the file's text: description, card and parts."""
    name, (height, parts) = figure.__name__, figure()
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title desc"'
        f' font-family="{SANS}">',
        f'<title id="title">{name.replace("_", " ")}</title>',
        f'<desc id="desc">{escape(ALT[name])}</desc>',
        rect(0.5, 0.5, WIDTH - 1, height - 1, CARD, rx=12), *parts, "</svg>\n",
    ])  # fmt: skip


def main(folder=Path(__file__).parent):
    """Write the figures into the folder."""
    for figure in FIGURES:
        (Path(folder) / f"{figure.__name__}.svg").write_text(svg(figure), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
