"""`watch`, `shape`, and the pictures that are drawn from recorded tensors."""

import io
import math
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import ODD, make_tokens, make_weights

from llama3_scratch import InputError, forward, model, plots, shape, watch


def test_every_call_is_recorded_with_its_locals():
    weights, tokens = make_weights(ODD), make_tokens(ODD, 7)
    with watch(model.attend, model.feed_forward) as seen:
        logits = forward(weights, tokens, ODD)
    assert [call["def"] for call in seen] == ["attend", "feed_forward"] * ODD.n_layers
    for call in seen[::2]:
        sums = call["probabilities"].sum(-1)
        assert call["probabilities"].shape == (ODD.n_heads, 7, 7)
        assert torch.allclose(sums, torch.ones_like(sums))
        again = model.attend(call["query"], call["keys"], call["values"], call["mask"])
        assert torch.equal(call["return"], again)
    assert torch.equal(logits, forward(weights, tokens, ODD))  # watching changes nothing


def test_watch_ends_with_its_block_and_restores_the_profiler():
    def profile(*_):
        pass

    sys.setprofile(profile)
    try:
        with pytest.raises(KeyError), watch(model.attend):
            raise KeyError
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)
    with watch(model.rms_norm) as seen:
        pass
    model.rms_norm(torch.ones(2, 3), torch.ones(3), 1e-5)
    assert seen == []


ONE = torch.ones(2, 3), torch.ones(3), 1e-5


def norm():
    return model.rms_norm(*ONE)


@pytest.mark.parametrize("first", [0, 1])
def test_blocks_that_overlap_each_see_their_calls_and_end_in_any_order(first):
    """As blocks in two generators do: they need not end in the opposite order of their start."""

    def profile(*_):
        pass

    sys.setprofile(profile)
    try:
        blocks = watch(model.rms_norm), watch(model.rms_norm, norm)
        one, two = (block.__enter__() for block in blocks)
        norm()
        assert [call["def"] for call in one] == ["rms_norm"]
        assert [call["def"] for call in two] == ["rms_norm", "norm"]
        blocks[first].__exit__(None, None, None)
        norm()
        assert (len(one), len(two)) == ((1, 4) if first == 0 else (2, 2))
        blocks[1 - first].__exit__(None, None, None)
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(None)
    before = len(one), len(two)
    norm()
    assert (len(one), len(two)) == before


def test_each_thread_records_its_own_calls():
    """Also where a block of a thread ends in another one, as a generator's may."""

    def in_thread(function):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(function).result()

    with watch(model.rms_norm) as seen:
        in_thread(norm)
        assert in_thread(sys.getprofile) is None and seen == []

        def watched():
            with watch(model.rms_norm) as inner:
                norm()
            return inner, sys.getprofile()

        assert [len(in_thread(watched)[0]), len(seen)] == [1, 0]
        assert in_thread(watched)[1] is None
        norm()
    assert len(seen) == 1

    block = watch(model.rms_norm)
    seen = block.__enter__()
    in_thread(lambda: block.__exit__(None, None, None))
    norm()
    norm()
    assert seen == [] and sys.getprofile() is None


def test_a_profile_function_set_inside_a_block_is_not_lost_and_returns_no_other():
    def profile(*_):
        pass

    with watch(norm) as seen:
        norm()
        sys.setprofile(profile)
    assert sys.getprofile() is profile  # it is not the block's
    sys.setprofile(None)
    outer = watch(norm)
    outer.__enter__()
    sys.setprofile(profile)
    with watch(norm) as inner:
        norm()
    outer.__exit__(None, None, None)
    assert (len(seen), len(inner), sys.getprofile()) == (1, 1, None)


def test_only_python_functions_can_be_watched():
    with pytest.raises(InputError, match="not a function written in Python"), watch(torch.softmax):
        pass


def test_shape_gives_three_readings():
    line = shape(torch.zeros(7, 60), "T D", ODD)
    assert re.fullmatch(r"\[T, D\] +here \[7, 60\] +Llama-3-8B \[7, 4096\]", line)
    assert shape(torch.zeros(60, 60), "N*H D", ODD).endswith("Llama-3-8B [4096, 4096]")
    assert shape(torch.zeros(2, 3), "T S", ODD).endswith("[2, 3]")
    for tensor, letters in [(torch.zeros(60, 7), "T D"), (torch.zeros(60), "T D")]:
        with pytest.raises(InputError, match="the shape is"):
            shape(tensor, letters, ODD)
    with pytest.raises(InputError, match="'Q' is not one of the sizes"):
        shape(torch.zeros(7), "Q", ODD)


def drawn(figure):
    """Return the figure as SVG text."""
    figure.savefig(file := io.StringIO(), format="svg")
    return file.getvalue()


def test_attention_heatmap_shows_values_and_labels():
    labels = ["<|begin_of_text|>", "the", " answer", "\n"]
    scores = torch.tensor([[0.5, 9, 9, 9], [1, -2.0, 9, 9], [0, 1, 2, 9], [3, 2, 1, 0]])
    masked = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    for matrix, limits in [(masked.softmax(-1), (0, 1)), (masked, (-2, 3))]:
        figure = plots.attention_heatmap(matrix, labels, title="layer 0, head 0", bar="value")
        axes, bar = figure.axes
        assert axes.images[0].get_clim() == limits and axes.images[0].get_array().shape == (4, 4)
        assert bar.get_ylabel() == "value"
        shown = [label.get_text() for label in axes.get_yticklabels()]
        assert shown == ["<|begin_of_text|>", "the", "·answer", "⏎"]
        assert shown == [label.get_text() for label in axes.get_xticklabels()]
        assert "layer 0, head 0" in drawn(figure)


def test_labels_are_shown_literally():
    """Dollar signs do not start formulas, and white space is visible."""
    labels = ["$$", "$x^2$", "\t", "\r"]
    figure = plots.attention_heatmap(torch.eye(4), labels)
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown[:2] == labels[:2] and "$x^2$" in drawn(figure)
    assert plots.VISIBLE[ord("\t")] == shown[2] == "⇥"
    assert plots.attention_heatmap(torch.full((4, 4), -torch.inf), labels).axes


def test_rope_angles_point_at_the_last_position():
    positions = torch.arange(5)
    angles = torch.outer(positions.float(), model.rope_frequencies(ODD))
    figure = plots.rope_angles(torch.polar(torch.ones_like(angles), angles))
    shown = [axes for axes in figure.axes if axes.lines]
    assert len(shown) == ODD.sizes["P"]
    for pair, axes in enumerate(shown):  # the arrow points at the last position's angle
        x, y = axes.lines[0].get_data()
        last = float(angles[-1, pair])
        assert (x[-1], y[-1]) == pytest.approx((math.cos(last), math.sin(last)), abs=1e-6)
    assert "positions 0 to 4" in drawn(figure)
