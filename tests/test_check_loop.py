"""The exercises of notebook 07: right answers pass, and each mistake gets the word meant for it."""

import math

import pytest
import torch

from llama3_scratch import check, model, weight_shapes
from llama3_scratch.model import attention, feed_forward, rms_norm


def said(capsys, checker, answer):
    checker(answer)
    return capsys.readouterr().out.strip()


def norm(x, weights, name, config):
    return rms_norm(x, weights[f"{name}_norm.weight"], config.norm_eps)


def my_post_norm_block(x, weights, rotations, mask, config):
    change = attention(x, weights, rotations, mask, config)
    middle = norm(x + change, weights, "attention", config)
    return norm(middle + feed_forward(middle, weights), weights, "ffn", config)


def my_settled(tops):
    settled = torch.zeros_like(tops[0])
    for layers, row in enumerate(tops, start=1):
        settled[row != tops[-1]] = layers
    return settled


def my_same_logits(ours, theirs, tolerance):
    difference = (ours - theirs).abs().max()
    return bool(difference <= tolerance * theirs.abs().max())


def my_n_layers(names):
    return len({name.split(".")[1] for name in names if name.startswith("layers.")})


def my_crossing(config):
    shapes = weight_shapes(config)
    matrices = [shapes[n] for n in shapes if len(shapes[n]) == 2 and n != "tok_embeddings.weight"]
    T = 1
    while 4 * T * T * config.n_layers * config.dim <= 2 * T * sum(a * b for a, b in matrices):
        T += 1
    return T


ALL = [
    (check.post_norm_block, my_post_norm_block), (check.settled, my_settled),
    (check.same_logits, my_same_logits), (check.n_layers, my_n_layers),
    (check.crossing, my_crossing),
]  # fmt: skip


@pytest.mark.parametrize("checker, answer", ALL)
def test_the_right_answer_is_right_and_an_empty_one_is_not(capsys, checker, answer):
    assert said(capsys, checker, answer).startswith("Right: ")
    assert "returned None" in said(capsys, checker, lambda *case: None)


def test_post_norm_block_names_the_mistake(capsys):
    def of_the_change(x, w, r, m, c):
        middle = x + norm(attention(x, w, r, m, c), w, "attention", c)
        return middle + norm(feed_forward(middle, w), w, "ffn", c)

    def arrow_from_before(x, w, r, m, c):
        before = x + attention(x, w, r, m, c)
        middle = norm(before, w, "attention", c)
        return norm(before + feed_forward(middle, w), w, "ffn", c)

    def last_alone(x, w, r, m, c):
        middle = x + attention(x, w, r, m, c)
        return norm(middle + feed_forward(middle, w), w, "ffn", c)

    def attention_norm_twice(x, w, r, m, c):
        middle = norm(x + attention(x, w, r, m, c), w, "attention", c)
        return norm(middle + feed_forward(middle, w), w, "attention", c)

    def nothing_added(x, w, r, m, c):
        middle = norm(attention(x, w, r, m, c), w, "attention", c)
        return norm(feed_forward(middle, w), w, "ffn", c)

    def other_weights(x, w, r, m, c):
        middle = norm(x + attention(x, w, r, m, c), w, "ffn", c)
        return norm(middle + feed_forward(middle, w), w, "attention", c)

    def second_from_x(x, w, r, m, c):
        middle = norm(x + attention(x, w, r, m, c), w, "attention", c)
        return norm(x + feed_forward(middle, w), w, "ffn", c)

    def forgets_attention(x, w, r, m, c):
        middle = norm(x + attention(x, w, r, m, c), w, "attention", c)
        return norm(middle + feed_forward(x, w), w, "ffn", c)

    def unweighted(x, w, r, m, c):
        def divided(rows):
            return rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + c.norm_eps)

        middle = divided(x + attention(x, w, r, m, c))
        return divided(middle + feed_forward(middle, w))

    def before_and_after(x, w, r, m, c):
        normed = norm(x, w, "attention", c)
        middle = norm(x + attention(normed, w, r, m, c), w, "attention", c)
        return norm(middle + feed_forward(norm(middle, w, "ffn", c), w), w, "ffn", c)

    for wrong, message in (
        (other_weights, "have changed places"),
        (second_from_x, "the second sum starts from x"),
        (forgets_attention, "does not see what attention brought"),
        (unweighted, "the norms' weights are missing"),
        (before_and_after, "before the parts and after the sums"),
        (lambda x, w, r, m, c: w["wq"], "for a tensor [5, 60], 'layer A' it raised KeyError"),
        (model.block, "Llama 3's own block"),
        (of_the_change, "you normalise the change and then add it"),
        (arrow_from_before, "the second arrow starts from the sum before its norm"),
        (last_alone, "after the second sum only"),
        (attention_norm_twice, "both norms use `attention_norm.weight`"),
        (nothing_added, "x + ... is missing"),
        (lambda x, w, r, m, c: x, "at [0, 0] the value is"),
    ):
        assert message in said(capsys, check.post_norm_block, wrong)


def test_settled_names_the_mistake(capsys):
    def last_change(tops):
        return my_settled(tops) - 1

    def last_change_by_loop(tops):
        found = torch.zeros_like(tops[0])
        for layers, row in enumerate(tops):
            found[row != tops[-1]] = layers
        return found

    for wrong, message in (
        (lambda tops: (tops == tops[-1]).int().argmax(0), "the first layer at which"),
        (lambda tops: (tops != tops[-1]).sum(0), "counted all rows that disagree"),
        (lambda tops: len(tops) - (tops != tops[-1]).flip(0).int().argmax(0), "finds nothing"),
        (last_change, "and where all agree it is -1"),
        (last_change_by_loop, "the last row that still disagrees. The final token"),
        (lambda tops: my_settled(tops) + 1, "one too many: row 0"),
        (lambda tops: len(tops) - my_settled(tops), "how many rows agree at the end"),
        (lambda tops: my_settled(tops.T), "the shape is [10], expected [23]"),
    ):
        assert message in said(capsys, check.settled, wrong)


def test_settled_takes_a_list_and_any_whole_numbers(capsys):
    for answer in (lambda tops: my_settled(tops).tolist(), lambda tops: my_settled(tops).int()):
        assert said(capsys, check.settled, answer).startswith("Right: ")
    as_floats = said(capsys, check.settled, lambda tops: my_settled(tops).float())
    assert "the dtype is torch.float32, expected torch.int64" in as_floats


def test_same_logits_takes_a_tensor_of_one_truth_value_and_no_larger_one(capsys):
    def near(ours, theirs, tolerance):
        return (ours - theirs).abs() <= tolerance * theirs.abs().max()

    assert said(capsys, check.same_logits, lambda *case: near(*case).all()).startswith("Right: ")
    by_position = said(capsys, check.same_logits, lambda *case: near(*case).all(-1))
    assert "the result is 'a tensor [6]', expected True" in by_position


def test_same_logits_names_the_mistake(capsys):
    def let_nan_through(ours, theirs, tolerance):
        wrong = (ours - theirs).abs() > tolerance * theirs.abs().max()
        return not wrong.any()

    def close_to_itself(ours, theirs, tolerance):
        return torch.allclose(ours, theirs, rtol=tolerance)

    for wrong, message in (
        (lambda a, b, t: my_same_logits(a[-1], b[-1], t), "the last position alone"),
        (lambda a, b, t: bool(a[-1].argmax() == b[-1].argmax()), "One right argmax validates"),
        (lambda a, b, t: torch.equal(a.argmax(-1), b.argmax(-1)), "which token is on top"),
        (let_nan_through, "NaN goes through"),
        (lambda a, b, t: bool((a - b).max() <= t * b.abs().max()), "take the absolute value"),
        (lambda a, b, t: bool((a - b).abs().mean() <= t * b.abs().max()), "One wrong logit among"),
        (lambda a, b, t: bool((a - b).mean().abs() <= t * b.abs().max()), "one up and one down"),
        (lambda a, b, t: bool((a - b).abs().max() <= t), "you use it as a difference"),
        (lambda a, b, t: torch.allclose(a, b, atol=t), "a share of each logit, `rtol`, and"),
        (close_to_itself, "against its own logit"),
        (lambda a, b, t: torch.equal(a, b), "you ask for equal bits"),
        (lambda a, b, t: bool((a - b).abs().max() <= t * b.max()), "the largest |logit|"),
        (lambda a, b, t: bool((a - b).norm() <= t * b.norm()), "the length of all differences"),
        (lambda a, b, t: True, "the result is True, expected False"),
    ):
        assert message in said(capsys, check.same_logits, wrong)


def test_n_layers_names_the_mistake(capsys):
    def numbers(names):
        return [name.split(".")[1] for name in names if name.startswith("layers.")]

    for wrong, message in (
        (lambda names: max(map(int, numbers(names))), "layers count from 0"),
        (lambda names: int(max(numbers(names))) + 1, "as text, or by its first digit"),
        (lambda names: max(int(number[0]) for number in numbers(names)) + 1, "first digit"),
        (lambda names: len(numbers(names)), "you counted the tensors of all layers"),
        (lambda names: len({name.split(".")[1] for name in names}), "after the first dot"),
        (len, "you counted all tensors"),
        (lambda names: sum("norm" in name for name in names), "you counted the norms"),
        (lambda names: int(names[-3].split(".")[1]) + 1, "expected"),
    ):
        assert message in said(capsys, check.n_layers, wrong)


def test_crossing_names_the_mistake(capsys):
    def count(config, factor=2, layers=None, heads=None, without="tok_embeddings", full=False):
        shapes = weight_shapes(config).items()
        kept = [s for n, s in shapes if len(s) == 2 and not n.startswith(tuple(without.split()))]
        weights = sum(a * b for a, b in kept)
        if full:
            extra = (config.n_heads - config.n_kv_heads) * config.head_dim * config.dim
            weights += 2 * config.n_layers * extra
        heads = heads or config.n_heads
        return weights, factor * (layers or config.n_layers) * heads * config.head_dim

    def first_above(**changed):
        def answer(config):
            weights, products = count(config, **changed)
            return weights // products + 1

        return answer

    def by_letters(config, layers=None, matrices=3):
        V, L, D, F, N, K, H = (config.sizes[letter] for letter in "VLDFNKH")
        one = 2 * N * H * D + 2 * K * H * D + matrices * D * F
        return ((layers or L) * one + V * D) // (2 * L * N * H) + 1

    def shared_heads(config):
        weights, products = count(config, heads=config.n_kv_heads)
        return weights // products + 1

    for wrong, message in (
        (first_above(without="nothing"), "you count the embedding table"),
        (lambda c: c.n_parameters // (2 * c.n_layers * c.dim) + 1, "you count all parameters"),
        (lambda c: by_letters(c, layers=1), "There are L layers"),
        (lambda c: by_letters(c, matrices=2), "three matrices of D times F"),
        (first_above(heads=1), "counted for one head"),
        (first_above(without="tok_embeddings output"), "the output matrix is missing"),
        (first_above(factor=1), "twice too many"),
        (first_above(factor=4), "twice too few"),
        (first_above(layers=1), "the factor L is missing"),
        (shared_heads, "you count K heads"),
        (first_above(full=True), "as large as wq"),
        (lambda config: my_crossing(config) - 1, "one too few"),
        (lambda config: count(config)[0] / count(config)[1], "where the two are equal"),
        (lambda config: math.ceil(count(config)[0] / count(config)[1]), "division comes out even"),
        (lambda config: 17, "the result is 17, expected"),
    ):
        assert message in said(capsys, check.crossing, wrong)
