"""The pictures that the notebooks draw from tensors: functions that make a figure, and `show`.

All stand on a light card of their own, so that they read the same on a light and on a dark page.
Colours are from matplotlib's viridis, which keeps its order in grey and for colour-blind eyes.
"""

import io

import matplotlib.pyplot as plt
import torch
from IPython.display import Image
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, CARD = "#1b1b2f", "#ffffff"
STYLE = {
    "figure.facecolor": CARD, "axes.facecolor": CARD, "savefig.facecolor": CARD,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "font.size": 9, "svg.fonttype": "none",
    "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "⏎"})  # white space in labels
# From the card's white to dark violet: nothing looked at is white, as paper is.
_FROM_WHITE = LinearSegmentedColormap.from_list(
    "viridis_from_white", [CARD, *plt.get_cmap("viridis_r")([0.15, 0.4, 0.7, 1.0])]
)


COLOURS = ["#440154", "#21918c", "#b8730a", "#5b5b72", "#31688e", "#4d8c2f"]  # 4.5:1 on the card


def show(figure, alt) -> Image:
    """A figure -> a picture for a notebook, as wide as its text, that carries its description.

    alt: what a reader who cannot see the picture needs to know of it, in a sentence or two.
    """
    data = io.BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(data, format="png", dpi=144, metadata={"Software": None})
    width = round(figure.get_figwidth() * 84)
    return Image(data.getvalue(), format="png", width=width, alt=alt)


def _listed(values):
    return values.detach().float().cpu().tolist() if isinstance(values, torch.Tensor) else values


def curves(lines, xlabel, ylabel, title="", log="", size=(6.4, 3.2)) -> Figure:
    """{name: (x, y)} -> one line for each name, with a legend where there are several.

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

    matrix: attention probabilities or scores; minus infinity is left blank. `bar` names the values
    beside the colour bar. A space in a label is drawn as `·`, so that ` is` and `is` differ.
    axes: where to draw, for a picture of several panels; None makes a figure of its own.
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
            cmap=_FROM_WHITE if limits == (0, 1) else "viridis", vmin=limits[0], vmax=limits[1],
        )  # fmt: skip
        axes.set_xticks(range(len(labels)), marked, rotation=90, parse_math=False)
        axes.set_yticks(range(len(labels)), marked, parse_math=False)
        axes.set_xticks(lines, minor=True)
        axes.set_yticks(lines, minor=True)
        axes.grid(which="minor", color="#d9d9e3", linewidth=0.4)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="key: the token looked at", ylabel="query: the token that looks")
        axes.set_title(title)
        axes.figure.colorbar(image, ax=axes, label=bar, shrink=0.6, pad=0.02)
    plt.close(axes.figure)
    return axes.figure


def rope_angles(rotations, title="") -> Figure:
    """[T, P] complex, the rotations of T positions -> where each position turns each pair.

    One small circle for each pair, the quickest first: the arrow is the last position, the dots are
    all positions on the way there from position 0, which lies at angle 0, on the right.
    """
    rotations = rotations.detach().cpu()
    n_pairs = rotations.shape[-1]
    columns = min(n_pairs, 8)
    rows = -(-n_pairs // columns)
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            rows, columns, figsize=(1.15 * columns, 1.32 * rows + 0.3), squeeze=False,
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
            axes.set_title(f"pair {pair}", fontsize=8, pad=2)
        figure.suptitle(title or f"RoPE: positions 0 to {len(rotations) - 1}", fontsize=10)
    plt.close(figure)
    return figure


def token_boxes(rows, title="") -> Figure:
    """{label: [piece, ...]} -> a row of boxes for each label, one box for each piece.

    The pieces of every row make up the same text, so each character has its own column, and where
    one row is cut can be compared with the others. A space is drawn as `·`.
    """
    length = len("".join(next(iter(rows.values()))))
    column = min(0.22, 6.3 / length)  # inches for one character
    font = min(11, column * 72 / 0.62)  # a character's width is 0.6 of the font's size
    with plt.rc_context(STYLE):
        size = (max(3.0, column * length + 1.1), 0.36 * len(rows) + (0.45 if title else 0.15))
        figure = plt.figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for y, pieces in enumerate(rows.values()):
            start = 0
            for i, piece in enumerate(pieces):
                fill = ("#d5deee", "#d3ece4")[i % 2]
                box = plt.Rectangle((start, y - 0.38), len(piece), 0.76, facecolor=fill)
                axes.add_patch(box)
                box.set(edgecolor=INK, linewidth=0.6)
                for k, sign in enumerate(piece.translate(VISIBLE)):
                    axes.text(
                        start + k + 0.5, y, sign, size=font, family="DejaVu Sans Mono",
                        ha="center", va="center_baseline", parse_math=False,
                    )  # fmt: skip
                start += len(piece)
        axes.set(xlim=(-0.1, length + 0.1), ylim=(len(rows) - 0.5, -0.5), xticks=[], title=title)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    plt.close(figure)
    return figure


def neuron_heatmap(matrix, rows, columns, title="", bar="share of its largest value") -> Figure:
    """[n, T], n labels (neurons), T labels (tokens) -> how strongly each neuron fires where.

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
