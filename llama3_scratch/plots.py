"""The pictures that the notebooks draw from tensors: functions that make a figure, and `show`.

Each has a light card as its background, so it looks the same on a light and on a dark page.
Colours are from matplotlib's viridis, which keeps its order in grey and for colour-blind readers.
"""

import cmath
import io
import math

import numpy as np
import torch

from llama3_scratch.config import weight_shapes
from llama3_scratch.errors import InputError

try:
    import matplotlib.pyplot as plt
    import PIL.Image
    from IPython.display import Image
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Wedge
except ImportError as error:
    raise InputError(f"{error}: pip install 'llama3-scratch[notebooks]' has it.") from None

INK, CARD = "#1b1b2f", "#ffffff"
STYLE = {
    "figure.facecolor": CARD, "axes.facecolor": CARD, "savefig.facecolor": CARD,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "font.size": 9, "svg.fonttype": "none",
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "⏎"})  # white space in labels
# From the card's white to dark violet: a probability of 0 is as white as the card.
_FROM_WHITE = LinearSegmentedColormap.from_list(
    "viridis_from_white", [CARD, *plt.get_cmap("viridis_r")([0.15, 0.4, 0.7, 1.0])]
)
COLOURS = ["#440154", "#21918c", "#b8730a", "#5b5b72", "#31688e", "#4d8c2f"]  # contrast 3:1 or more


def show(figure, alt) -> Image:
    """A figure -> an image for a notebook, as wide as its text, with its description.

    alt: what a reader who cannot see the picture needs to know, in a sentence or two.
    """
    drawn, data = io.BytesIO(), io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(drawn, format="png", dpi=144)
    few_colours = PIL.Image.open(drawn).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE)
    few_colours.save(data, format="png", optimize=True)  # a third of the bytes
    width = round(figure.get_figwidth() * 84)
    picture = Picture(data.getvalue(), format="png", width=width, alt=alt)
    picture.text = drawn_values(figure)
    return picture


class Picture(Image):
    """An image whose text form, which nbval compares, says what was drawn."""

    def __repr__(self):
        return self.text


def drawn_values(figure) -> str:
    """What a figure draws, by kind: how many, their size, the least and largest value, the mean."""
    drawn = {"line": [], "bars": [], "grid": []}
    for axes in figure.axes:
        if axes.get_label() != "<colorbar>":
            grids = (each.get_array() for each in (*axes.images, *axes.collections))
            drawn["line"] += [line.get_ydata() for line in axes.lines]
            drawn["bars"] += [each.datavalues for each in axes.containers if len(each)]
            drawn["grid"] += [np.ma.filled(each, np.nan) for each in grids if each is not None]
    words = [text.get_text() for axes in figure.axes for text in axes.texts]
    parts = [_summed_up(kind, drawn[kind]) for kind in drawn if drawn[kind]]
    parts += [f"{len(words)} words, the first {words[0]!r}"] if words else []
    return f"picture: {'; '.join(parts)}"


def _summed_up(kind, arrays):
    numbers = np.concatenate([np.ravel(each).astype(float) for each in arrays])
    known = numbers[np.isfinite(numbers)]
    ends = known.min(initial=np.inf), known.max(initial=-np.inf), known.mean() if len(known) else 0
    least, largest, mean = (f"{x:.2f}" if abs(x) < 10000 else f"{x:.2e}" for x in ends)
    size = "x".join(map(str, np.shape(arrays[0])))
    return f"{len(arrays)} {kind} of {size}: {least} to {largest}, mean {mean}"


def _listed(values):
    return values.detach().float().cpu().tolist() if isinstance(values, torch.Tensor) else values


def curves(lines, xlabel, ylabel, title="", log="", size=(6.4, 3.2)) -> Figure:
    """{name: (x, y)} -> one line for each name, with a legend if there are several.

    x, y: lists or tensors of one dimension. log: the axes with a logarithmic scale: "", "x", "y",
    "xy". size: inches.
    """
    with plt.rc_context(STYLE | {"axes.prop_cycle": plt.cycler(color=COLOURS)}):
        figure = plt.figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for name, (x, y) in lines.items():
            axes.plot(_listed(x), _listed(y), label=name, linewidth=1.6)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        for axis in log:
            getattr(axes, f"set_{axis}scale")("log")
        axes.grid(color="#e6e6ee", linewidth=0.6)
        if len(lines) > 1:
            axes.legend(frameon=False)
    plt.close(figure)
    return figure


def bars(values, labels, xlabel, title="", form="{:.3f}", size=None) -> Figure:
    """n values and n labels -> horizontal bars from the top, each with its value as text."""
    values = _listed(values)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=size or (6.4, 0.7 + 0.3 * len(values)), layout="constrained")
        axes = figure.subplots()
        drawn = axes.barh(range(len(values)), values, color=COLOURS[0], height=0.7)
        axes.bar_label(drawn, [form.format(value) for value in values], padding=4)
        marked = [label.translate(VISIBLE) for label in labels]
        axes.set_yticks(range(len(values)), marked, parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(xlabel=xlabel, title=title)
    plt.close(figure)
    return figure


def attention_heatmap(matrix, labels, title="", bar="probability", axes=None) -> Figure:
    """[T, T] and T labels (tokens) -> a heatmap: a row for each query, a column for each key.

    matrix: attention probabilities or scores; minus infinity is left blank. bar: the colour bar's
    label. A space in a label is drawn as `·`, so that ` is` and `is` differ. axes: where to draw,
    for a picture of several panels; None makes a new figure.
    """
    matrix = matrix.detach().float().cpu()
    finite = matrix[matrix.isfinite()]
    limits = (0, 1) if ((finite >= 0) & (finite <= 1)).all() else (None, None)
    marked = [label.translate(VISIBLE) for label in labels]
    lines = [i + 0.5 for i in range(len(labels))]
    with plt.rc_context(STYLE):
        if axes is None:
            side = min(9.0, 2.4 + 0.27 * len(labels))
            axes = plt.figure(figsize=(side + 0.6, side), layout="constrained").subplots()
        image = axes.imshow(
            matrix.where(matrix.isfinite(), float("nan")),
            cmap=_FROM_WHITE if limits == (0, 1) else "viridis_r", vmin=limits[0], vmax=limits[1],
        )  # fmt: skip
        axes.set_xticks(range(len(labels)), marked, rotation=90, parse_math=False)
        axes.set_yticks(range(len(labels)), marked, parse_math=False)
        axes.set_xticks(lines, minor=True)
        axes.set_yticks(lines, minor=True)
        axes.grid(which="minor", color="#d9d9e3", linewidth=0.4)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="key: the token attended to", ylabel="query: the token that attends")
        axes.set_title(title)
        axes.figure.colorbar(image, ax=axes, label=bar, shrink=0.6, pad=0.02)
    plt.close(axes.figure)
    return axes.figure


def outlined(figure, pairs) -> Figure:
    """A figure of `attention_heatmap`, [(query, key), ...] -> the same, with framed cells.

    query, key: positions, counted from 0.
    """
    for query, key in pairs:
        corner = key - 0.5, query - 0.5
        frame = plt.Rectangle(corner, 1, 1, fill=False, edgecolor=COLOURS[2], linewidth=1.5)
        figure.axes[0].add_patch(frame)
        frame.set(zorder=3, clip_on=False)  # not clipped at the edges
    return figure


def rope_angles(rotations, title="", labels=None) -> Figure:
    """[T, P] complex, the rotations of T positions -> the angles of each pair at each position.

    One small circle for each pair, the highest frequency first. The arrow shows the last position,
    the dots show all positions from 0 on; position 0 is at angle 0, on the right. labels: what
    stands above each circle; None numbers the pairs.
    """
    rotations = rotations.detach().cpu()
    n_pairs = rotations.shape[-1]
    rows = -(-n_pairs // 8)
    columns = -(-n_pairs // rows)  # rows of nearly equal length, at most 8 circles each
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(1.0 * columns, 1.18 * rows + 0.3), squeeze=False,
            layout="constrained",
        )  # fmt: skip
        colours = plt.get_cmap("viridis_r")
        for pair, axes in enumerate(grid.flat):
            axes.set_axis_off()
            if pair >= n_pairs:
                continue
            turn = rotations[:, pair]
            axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="#c9c9d6", linewidth=1))
            shades = colours([0.1 + 0.9 * t / len(turn) for t in range(len(turn))])
            axes.scatter(turn.real, turn.imag, s=9, c=shades, zorder=2)
            axes.plot([0, turn[-1].real], [0, turn[-1].imag], color=INK, linewidth=1.4, zorder=3)
            axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
            axes.set_title(labels[pair] if labels else f"pair {pair}", fontsize=8, pad=2)
        figure.suptitle(title or f"RoPE: positions 0 to {len(rotations) - 1}", fontsize=10)
    plt.close(figure)
    return figure


def token_boxes(rows, title="") -> Figure:
    """{label: [piece, ...]} -> a row of boxes for each label, one box for each piece.

    The pieces of every row make up the same text. Each character has its own column, so the rows
    show where each of them splits the text. A box is coloured if the row above does not have the
    same box in the same place. A space is drawn as `·`.
    """
    length = len("".join(next(iter(rows.values()))))
    column = min(0.22, 6.3 / length)  # inches for one character
    font = min(11, column * 72 / 0.62)  # a character's width is 0.6 of the font's size
    with plt.rc_context(STYLE):
        size = (max(3.0, column * length + 1.1), 0.36 * len(rows) + (0.45 if title else 0.15))
        figure = plt.figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        above = None
        for y, pieces in enumerate(rows.values()):
            start, here = 0, set()
            for piece in pieces:
                here.add((start, piece))
                fill = "#a5d6c4" if above and (start, piece) not in above else "#eff1f6"
                box = plt.Rectangle((start, y - 0.38), len(piece), 0.76, facecolor=fill)
                axes.add_patch(box)
                box.set(edgecolor=INK, linewidth=0.6)
                for k, sign in enumerate(piece.translate(VISIBLE)):
                    axes.text(
                        start + k + 0.5, y, sign, size=font, family="DejaVu Sans Mono",
                        ha="center", va="center_baseline", parse_math=False,
                    )  # fmt: skip
                start += len(piece)
            above = here
        axes.set(xlim=(-0.1, length + 0.1), ylim=(len(rows) - 0.5, -0.5), xticks=[], title=title)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    plt.close(figure)
    return figure


def neuron_heatmap(matrix, rows, columns, title="", bar="share of its largest value") -> Figure:
    """[n, T], n labels (neurons), T labels (tokens) -> each neuron's activation at each token.

    matrix: values from 0 to 1; larger ones are drawn as 1.
    """
    marked = [label.translate(VISIBLE) for label in columns]
    size = min(11.0, 2.2 + 0.2 * len(columns)), 1.9 + 0.26 * len(rows)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        values = matrix.detach().float().cpu()
        image = axes.imshow(values, cmap=_FROM_WHITE, vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(columns)), marked, rotation=90, parse_math=False)
        axes.set_yticks(range(len(rows)), rows, parse_math=False)
        axes.set_xticks([t + 0.5 for t in range(len(columns))], minor=True)
        axes.set_yticks([i + 0.5 for i in range(len(rows))], minor=True)
        axes.grid(which="minor", color="#d9d9e3", linewidth=0.4)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="token", title=title)
        figure.colorbar(image, ax=axes, label=bar, pad=0.02)
    plt.close(figure)
    return figure


def attention_grid(heads, columns, labels=None, group=None) -> Figure:
    """{title: [T, S]} -> the attention probabilities of many heads, as small panels.

    The panels go from left to right, `columns` in a row, each below its title ("L0.h0"). labels: T
    tokens, written on the left of each row of panels; more than 24 have no room and are left out.
    group: query heads that share a key/value head. There is a gap after each such group, and the
    key/value head's number above it.
    """
    group = group or columns
    labels = [label.translate(VISIBLE) for label in labels or () if len(labels) <= 24]
    side = max(1.5, 0.105 * len(labels)) if labels else min(1.7, max(0.5, 7.2 / columns))  # inches
    font = min(7.0, 8.3 * side)
    across, down = 1 + 0.06 / side, 1 + 0.025 * font / side  # from panel to panel, in panel sizes
    columns = min(columns, len(heads))
    rows = -(-len(heads) // columns)
    gap = 0.14 / side  # between groups
    wide = columns * across + (columns - 1) // group * gap
    size = (wide * side + 0.1 + 0.9 * bool(labels), rows * down * side + 0.8)
    colours = _FROM_WHITE.resampled(40)  # fewer colours make the file smaller
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for i, (title, matrix) in enumerate(heads.items()):
            left, top = i % columns * across + i % columns // group * gap, i // columns * down
            image = axes.imshow(
                matrix.detach().float().cpu(), cmap=colours, vmin=0, vmax=1,
                extent=(left, left + 1, top + 1, top),
            )  # fmt: skip
            line = {"fill": False, "edgecolor": "#b9b9c8", "linewidth": 0.4, "antialiased": False}
            axes.add_patch(plt.Rectangle((left, top), 1, 1, **line))
            axes.text(left, top - 0.02, title, fontsize=font, va="bottom", parse_math=False)
            if top == 0 and 1 < group < columns and i % group == 0:
                end, height = left + group * across - 0.06 / side, -1.3 * (down - 1)
                axes.plot([left, end], [height, height], color=INK, linewidth=0.8)
                words = {"ha": "center", "va": "bottom", "fontsize": 7}
                axes.text((left + end) / 2, height, f"key/value head {i // group}", **words)
        middles = [(t + 0.5) / len(labels) for t in range(len(labels))]
        places = [row * down + middle for row in range(rows) for middle in middles]
        axes.set_yticks(places, labels * rows, parse_math=False)
        axes.set_xticks([])
        axes.tick_params(length=0, labelsize=7)
        axes.spines[:].set_visible(False)
        low = (rows - 1) * down + 1
        top = (1 - down) * (1 if group in (1, columns) else 2.6)
        axes.set(xlim=(-0.02, wide - 0.06 / side + 0.02), ylim=(low + 0.02, top))
        axes.set_xlabel("key: the same tokens, from left to right")
        axes.set_ylabel("query: the token that attends")
        figure.colorbar(
            image, ax=axes, label="attention probability", location="bottom", ticks=[0, 0.5, 1],
            shrink=0.4, fraction=0.03, pad=0.02, aspect=40,
        )  # fmt: skip
    plt.close(figure)
    return figure


def arrows_on_circles(panels, size=None) -> Figure:
    """{title: {label: complex number}} -> one unit circle per panel, with an arrow for each number.

    An arrow shows where its number points; all are drawn with length 1, with the label at the tip.
    If a panel has two arrows, the angle from the second to the first is shaded.
    """
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=size or (2.7 * len(panels), 2.8), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False)
        for axes, (title, arrows) in zip(grid.flat, panels.items(), strict=True):
            axes.set_axis_off()
            axes.set(xlim=(-1.4, 1.4), ylim=(-1.3, 1.65), aspect="equal")
            axes.plot([-1.1, 1.1, 0, 0, 0], [0, 0, 0, -1.1, 1.1], color="#e6e6ee", linewidth=0.8)
            axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="#c9c9d6", linewidth=1))
            angles = [cmath.phase(complex(number)) for number in arrows.values()]
            if len(angles) == 2:
                start, stop = (math.degrees(angle) for angle in reversed(angles))
                axes.add_patch(Wedge((0, 0), 0.45, start, stop, color=COLOURS[1], alpha=0.3))
            for i, (label, angle) in enumerate(zip(arrows, angles, strict=True)):
                x, y = math.cos(angle), math.sin(angle)
                colour = COLOURS[i * (len(angles) == 2)]
                style = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0}
                axes.annotate("", (x, y), (0, 0), arrowprops=style | {"linewidth": 1.4})
                place = {"ha": "center", "va": "center", "color": colour, "parse_math": False}
                axes.text(1.24 * x, 1.2 * y, label, **place)
            axes.text(0, 1.5, title, ha="center", va="center", fontsize=10)
    plt.close(figure)
    return figure


def predictions(probabilities, words, rows, columns, xlabel, ylabel, title="") -> Figure:
    """[R, C] probabilities, R lists of C words -> a table of words on their probabilities' colours.

    rows, columns: R and C labels. Long words are shortened; white space is drawn as elsewhere.
    """
    probabilities = probabilities.detach().float().cpu()

    def short(word):
        marked = word.translate(VISIBLE)
        return marked if len(marked) <= 10 else marked[:9] + "…"

    lines = [i + 0.5 for i in range(max(probabilities.shape))]
    with plt.rc_context(STYLE):
        size = (2.2 + 0.8 * len(columns), 0.9 + 0.25 * len(rows))
        axes = plt.figure(figsize=size, layout="constrained").subplots()
        image = axes.imshow(probabilities, cmap=_FROM_WHITE, vmin=0, vmax=1, aspect="auto")
        for row, line in enumerate(words):
            for column, word in enumerate(line):
                red, green, blue, _ = _FROM_WHITE(float(probabilities[row, column]))
                light = 0.21 * red**2.2 + 0.72 * green**2.2 + 0.07 * blue**2.2  # WCAG's luminance
                style = {"ha": "center", "va": "center", "fontsize": 8, "parse_math": False}
                style["antialiased"] = False  # halves the file's size
                axes.text(column, row, short(word), color=INK if light > 0.2 else CARD, **style)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), map(short, rows), parse_math=False)
        axes.set_xticks(lines[: len(columns)], minor=True)
        axes.set_yticks(lines[: len(rows)], minor=True)
        axes.grid(which="minor", color="#d9d9e3", linewidth=0.6)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        axes.figure.colorbar(image, ax=axes, label="probability", shrink=0.6, pad=0.02)
    plt.close(axes.figure)
    return axes.figure


def parameter_map(config, title="") -> Figure:
    """Where a model's parameters are: each area is proportional to the part's number of parameters.

    From the left: the embedding table, a column for each layer (attention below, feed-forward
    above), the output matrix. The norms' weights are too few to be seen.
    """
    count = {name: math.prod(size) for name, size in weight_shapes(config).items()}
    inner = {name: n for name, n in count.items() if name.startswith("layers.0.")}
    one, L = sum(inner.values()), config.n_layers
    below = sum(n for name, n in inner.items() if ".attention." in name) / one
    table = count["tok_embeddings.weight"]
    scale, word = (1e9, "billion") if config.n_parameters >= 1e9 else (1e6, "million")
    parts = [  # left, bottom, width, height, colour, words
        (0, 0, table, 1, COLOURS[3], f"embedding {table / scale:.2f}"),
        *((table + i * one, 0, one, below, COLOURS[0], "") for i in range(L)),
        *((table + i * one, below, one, 1 - below, COLOURS[4], "") for i in range(L)),
    ]
    if not config.tied_output:
        parts.append((table + L * one, 0, table, 1, COLOURS[3], f"output {table / scale:.2f}"))
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(6.9, 3.2), layout="constrained")
        axes = figure.subplots()
        style = {"color": CARD, "ha": "center", "va": "center", "fontsize": 11}
        for left, bottom, width, height, colour, words in parts:
            place = (left / scale, bottom), width / scale, height
            axes.add_patch(plt.Rectangle(*place, facecolor=colour, edgecolor=CARD, linewidth=0.8))
            middle = (left + width / 2) / scale, bottom + height / 2
            axes.text(*middle, words, rotation=90, **style)
        middle = (table + L * one / 2) / scale
        for name, share, y, colour in (
            ("attention", below, below / 2, COLOURS[0]),
            ("feed-forward", 1 - below, (1 + below) / 2, COLOURS[4]),
        ):
            words = f"{name} {share * L * one / scale:.2f}"
            axes.text(middle, y, words, **style, bbox={"facecolor": colour, "linewidth": 0})
        axes.set(xlim=(0, config.n_parameters / scale), ylim=(0, 1), yticks=[], title=title)
        axes.set_xlabel(f"{word} parameters, in the order of the names, {L} layers in all")
        axes.spines[:].set_visible(False)
    plt.close(figure)
    return figure


def choices(rows, labels, r, chosen) -> Figure:
    """{name: [n] probabilities} and n labels -> a bar for each name, cut into n pieces.

    All bars are on one scale, from 0 to 1. The last label stands for all tokens without one. A line
    at r crosses one piece of each bar, and `chosen` is written beside it: the token of that piece.
    """
    values = np.array([_listed(each) for each in rows.values()])  # [rows, n]
    starts, places = values.cumsum(1) - values, range(len(rows))
    colours = [*plt.get_cmap("viridis")(np.linspace(0, 0.9, len(labels) - 1)), "#e3e3ec"]
    with plt.rc_context(STYLE | {"font.size": 8}):
        figure = plt.figure(figsize=(7.2, 0.7 + 0.38 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for j, (label, colour) in enumerate(zip(labels, colours, strict=True)):
            word = label.translate(VISIBLE) if j < len(labels) - 1 else label
            axes.barh(places, values[:, j], 0.8, starts[:, j], color=colour, edgecolor=CARD)
            ink = CARD if j < len(labels) // 2 else INK
            for y, width, start in zip(places, values[:, j], starts[:, j], strict=True):
                upright = width < 0.013 * len(word) + 0.01
                turned = {"fontsize": 6, "rotation": 90} if upright else {}
                if width > 0.016 and (len(word) <= 8 or not upright):
                    style = {"color": ink, "ha": "center", "va": "center", "zorder": 3} | turned
                    axes.text(start + width / 2, y, word, parse_math=False, **style)
        axes.axvline(r, color=COLOURS[2], linewidth=1.5)
        for y, word in zip(places, chosen, strict=True):
            axes.text(1.01, y, word.translate(VISIBLE), va="center", parse_math=False)
        axes.text(1.01, -0.75, f"at r = {r}", va="center")
        axes.set_yticks(places, rows)
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="probability")
        axes.spines["left"].set_visible(False)
    plt.close(figure)
    return figure


def masks(panels) -> Figure:
    """{title: [T, S] mask} -> which query may attend to which key, one panel per mask.

    A cell is filled where the mask is 0; all cells have one size. The queries are the last T of
    the S positions, and rows and columns are numbered by position.
    """
    shapes = [mask.shape for mask in panels.values()]
    cell = min(0.16, 6.0 / sum(S for _, S in shapes))  # inches
    with plt.rc_context(STYLE):
        size = (cell * sum(S for _, S in shapes) + 1.3, cell * max(T for T, _ in shapes) + 0.9)
        figure = plt.figure(figsize=size, layout="constrained")
        grid = figure.subplots(1, len(panels), width_ratios=[S for _, S in shapes], squeeze=False)
        for axes, (title, mask) in zip(grid.flat, panels.items(), strict=True):
            T, S = mask.shape
            axes.pcolormesh(
                (mask == 0).cpu(), cmap=_FROM_WHITE, vmin=0, vmax=1.2, edgecolors="#c9c9d6",
                linewidth=0.4,
            )  # fmt: skip
            step = max(1, round(0.32 / cell))
            axes.set_xticks([s + 0.5 for s in range(0, S, step)], range(0, S, step))
            first = [t for t in range(T) if t % step == 0]
            axes.set_yticks([t + 0.5 for t in first], [S - T + t for t in first])
            axes.set(aspect="equal", anchor="N", ylim=(T, 0), title=title)
            axes.tick_params(length=0, labelsize=7)
            axes.spines[:].set_visible(False)
        grid[0, 0].set_ylabel("query: position")
        figure.supxlabel("key: position", fontsize=9)
    plt.close(figure)
    return figure


def strip(rows, labels, xlabel) -> Figure:
    """{name: n numbers, 0, 1 or 2} and n labels -> a row of n coloured cells for each name.

    0: equal in every bit (dark green, =), 1: equal up to rounding (light green, ≈), 2: different
    (orange, ≠). The signs repeat what the colours say.
    """
    kinds = [("#1b7f5c", CARD, "="), ("#a5d6c4", INK, "≈"), (COLOURS[2], CARD, "≠")]
    n = len(labels)
    side = min(0.36, 5.6 / n)  # inches
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(side * n + 1.5, 0.36 * len(rows) + 0.6), layout="constrained")
        axes = figure.subplots()
        for y, values in enumerate(rows.values()):
            for x, value in enumerate(values):
                fill, ink, sign = kinds[value]
                box = plt.Rectangle((x, y), 1, 1, facecolor=fill)
                axes.add_patch(box)
                box.set(edgecolor=CARD, linewidth=1)
                if side > 0.15:
                    axes.text(x + 0.5, y + 0.5, sign, color=ink, ha="center", va="center")
        step = max(1, round(0.25 / side))
        axes.set_xticks([x + 0.5 for x in range(0, n, step)], labels[::step])
        axes.set_yticks([y + 0.5 for y in range(len(rows))], rows)
        axes.set(xlim=(0, n), ylim=(len(rows), 0), xlabel=xlabel)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    plt.close(figure)
    return figure


def row_orders(left, right, names) -> Figure:
    """Two orders of the same rows, each [(pair, 0 or 1)], and their names -> a picture.

    Two columns of boxes, with a line from each row to its place in the other column. The two rows
    of a pair have the same colour, and the second one (1) has a frame.
    """
    n_pairs, n = 1 + max(pair for pair, _ in left), len(left)
    shades = plt.get_cmap("viridis")([0.05 + 0.5 * pair / n_pairs for pair in range(n_pairs)])
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(5.2, 0.6 + 0.2 * n), layout="constrained")
        axes = figure.subplots()
        for y, (pair, second) in enumerate(left):
            there = right.index((pair, second))
            style = {"color": shades[pair], "linewidth": 1.2, "linestyle": ":" if second else "-"}
            axes.plot([1, 3], [y, there], **style)
            for x, at in ((0.0, y), (3.0, there)):
                box = plt.Rectangle((x, at - 0.42), 1, 0.84, facecolor=shades[pair])
                axes.add_patch(box)
                words = f"pair {pair}, {'second' if second else 'first'}"
                axes.text(x + 0.5, at, words, color=CARD, ha="center", va="center", fontsize=7.5)
                if second:
                    box.set(edgecolor=COLOURS[2], linewidth=1.4)
                number = {"ha": "right" if x == 0 else "left", "va": "center", "fontsize": 8}
                axes.text(-0.08 if x == 0 else 4.08, at, str(at), **number)
        axes.text(0.5, -1.1, names[0], ha="center", fontsize=10)
        axes.text(3.5, -1.1, names[1], ha="center", fontsize=10)
        axes.set(xlim=(-0.4, 4.4), ylim=(n - 0.4, -1.7))
        axes.set_axis_off()
    plt.close(figure)
    return figure
