"""The pictures that the notebooks draw from tensors.

All stand on a light card of their own, so that they read the same on a light and on a dark page.
Colours are from matplotlib's viridis, which keeps its order in grey and for colour-blind eyes.
"""

import matplotlib.pyplot as plt
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
