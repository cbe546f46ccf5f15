"""Draws every picture in this folder from the tiny model: `python images/draw.py`."""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

from llama3_scratch import PROMPT, forward, load, model, plots, watch

HERE = Path(__file__).parent


def overview():
    """README: the head that looks most at the token before, and the next token's top five."""
    weights, config, tokenizer = load("tiny", torch.float32)
    tokens = tokenizer.encode(PROMPT)
    with torch.inference_mode(), watch(model.attend) as seen:
        logits = forward(weights, torch.tensor(tokens), config)[-1]
    heads = torch.stack([call["probabilities"] for call in seen])  # [L, N, T, T]
    to_previous = heads.diagonal(offset=-1, dim1=-2, dim2=-1).mean(-1)  # [L, N]
    i, j = divmod(int(to_previous.argmax()), config.n_heads)
    labels = [tokenizer.decode([token]) for token in tokens]
    top = logits.softmax(-1).topk(5)

    with plt.rc_context(plots.STYLE):
        figure = plt.figure(figsize=(10.4, 5.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[2.1, 1])
        title = f"who looks at whom (layer {i}, head {j})"
        plots.attention_heatmap(heads[i, j], labels, title=title, axes=left)
        shown = [tokenizer.decode([token]).replace(" ", "·") for token in top.indices]
        bars = right.barh(shown, top.values, color=["#440154", *["#35b779"] * 4])
        right.bar_label(bars, [f"{p:.3f}" for p in top.values], padding=4)
        right.invert_yaxis()
        right.set(xlim=(0, 1.25), xticks=[0, 0.5, 1], title="what comes next")
        right.set_xlabel("probability")
        right.tick_params(axis="y", length=0, labelsize=12)
    return figure


def main():
    """Write the pictures; the same model gives the same bytes."""
    plt.rcParams["svg.hashsalt"] = "llama3-scratch"
    for name, figure in {"overview": overview()}.items():
        with plt.rc_context(plots.STYLE):
            figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
