"""The right answers of notebook 12 against PyTorch, and its functions on sizes of their own.

The notebook asserts the same on its own tensors. The controls, which must differ, are here.
"""

import ast
import json
import math

import pytest
import torch
from helpers import ODD, ROOT, make_tokens
from torch.nn import functional

from llama3_scratch import model, train, watch
from llama3_scratch.exercises import e12_training as e12

HOW = {"betas": (0.9, 0.98), "eps": 1e-8}


@pytest.fixture(scope="module")
def book():
    """The functions that the cells of notebook 12 define, but for the reader's and the solutions'.

    `config` is that of the tests.
    """
    names = {"math": math, "torch": torch, "functional": functional, "train": train}
    names |= {"model": model, "watch": watch, "config": ODD, "adamw": e12.adamw.right}
    names["rms_norm_backward"] = e12.rms_norm_backward.right
    path = ROOT / "notebooks/12_training.ipynb"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            for node in ast.parse("".join(cell["source"])).body:
                if isinstance(node, ast.FunctionDef):
                    exec(ast.unparse(node), names)
    return names


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(12)


def furthest(found, expected):
    """The largest difference, in shares of the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def test_the_loss_is_pytorchs():
    logits, targets = torch.randn(3, 7, 31) * 5, torch.randint(31, (3, 7))
    targets[0, 2:], targets[2, 6:] = train.IGNORED, train.IGNORED
    found = e12.cross_entropy.right(logits, targets, train.IGNORED)
    flat = logits.flatten(0, 1), targets.flatten()
    torch.testing.assert_close(found, functional.cross_entropy(*flat, ignore_index=train.IGNORED))
    control = functional.cross_entropy(flat[0], flat[1].clamp(min=0))
    assert abs(found - control) > 0.1


def test_the_gradient_of_the_logits_is_p_minus_one_hot():
    logits, targets = torch.randn(9, 31, requires_grad=True), torch.randint(31, (9,))
    functional.cross_entropy(logits, targets).backward()
    p, hot = logits.detach().softmax(-1), functional.one_hot(targets, 31)
    torch.testing.assert_close((p - hot) / 9, logits.grad)
    assert furthest(p / 9, logits.grad) > 0.1


def test_the_norm_backwards_is_autograds_of_the_packages_norm():
    x = (ODD.norm_eps**0.5 * torch.randn(2, 5, 60)).requires_grad_()  # so small that eps counts
    weight = torch.randn(60, requires_grad=True)
    grad = torch.randn(2, 5, 60)
    expected = torch.autograd.grad(model.rms_norm(x, weight, ODD.norm_eps), (x, weight), grad)
    case = grad, x.detach(), weight.detach(), ODD.norm_eps
    for found, right in zip(e12.rms_norm_backward.right(*case), expected, strict=True):
        assert furthest(found, right) < 1e-5
    for mistake, _ in e12.rms_norm_backward.mistakes:
        pairs = zip(mistake(*case), expected, strict=True)
        assert any(a.shape != b.shape or furthest(a, b) > 1e-2 for a, b in pairs)


def test_softmax_swiglu_and_a_whole_layer_backwards_are_autograds(book):
    scores, grad = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    (expected,) = torch.autograd.grad(scores.softmax(-1), scores, grad)
    p = scores.detach().softmax(-1)
    assert furthest(book["softmax_backward"](grad, p), expected) < 1e-5
    assert furthest(p * grad, expected) > 0.1  # without the mean of what arrives

    weights = train.start_weights(ODD, 0)
    own = {n: w.detach().requires_grad_() for n, w in model.layer(weights, 1).items()}
    x, grad = torch.randn(23, ODD.dim, requires_grad=True), torch.randn(23, ODD.dim)
    positions = torch.arange(23)
    place = model.rotations_at(positions, ODD), model.causal_mask(positions, 23)
    for output, backward in (
        (model.feed_forward(x, own), lambda: book["feed_forward_backward"](grad, x, own)),
        (model.block(x, own, *place, ODD), lambda: book["block_backward"](grad, x, own, *place)),
    ):
        (right,) = torch.autograd.grad(output, x, grad, retain_graph=True)
        with torch.no_grad():
            grad_x, grads = backward()
        assert furthest(grad_x, right) < 1e-5
        for name, found in grads.items():
            (full,) = (n for n in own if n.split(".")[-2] == name)
            (right,) = torch.autograd.grad(output, own[full], grad, retain_graph=True)
            assert furthest(found, right) < 1e-5, name
    assert set(grads) == {n.split(".")[-2] for n in own}


@pytest.mark.parametrize("mistake", [None, *range(len(e12.adamw.mistakes))])
def test_ten_steps_of_adamw_are_pytorchs(mistake):
    """Each mistake that the checker knows is a control."""
    step = e12.adamw.right if mistake is None else e12.adamw.mistakes[mistake][0]
    weight, rate, decay = torch.randn(7, 11), 0.01, 0.3
    leaf = weight.clone().requires_grad_()
    optimizer = torch.optim.AdamW([leaf], lr=rate, weight_decay=decay, **HOW)
    mean = square = torch.zeros_like(weight)
    for k in range(1, 11):
        grad = leaf.grad = torch.randn(7, 11) * 0.1**k
        weight, mean, square = step(weight, grad, mean, square, k, rate, *HOW.values(), decay)
        optimizer.step()
    assert (furthest(weight, leaf.detach()) < 1e-5) == (mistake is None)


@pytest.mark.parametrize("shape", [(12, 12), (30, 12), (12, 30)])
def test_ten_steps_of_muon_are_pytorchs_in_every_bit(book, shape):
    start = torch.randn(shape)
    leaf = start.clone().requires_grad_()
    optimizer = torch.optim.Muon(
        [leaf], lr=0.01, momentum=0.95, weight_decay=train.WEIGHT_DECAY, adjust_lr_fn="original"
    )
    kept = start, torch.zeros(shape)
    wide = plain = kept
    for _ in range(10):
        grad = leaf.grad = torch.randn(shape)
        kept = book["muon"](kept[0], grad, kept[1], 0.01, torch.bfloat16)
        wide = book["muon"](wide[0], grad, wide[1], 0.01)
        average = plain[1].lerp(grad, 0.05)  # a control without Nesterov's step ahead
        update = book["orthogonal"](average, torch.bfloat16).float()
        tall = max(1, shape[0] / shape[1]) ** 0.5
        plain = plain[0] * (1 - 0.01 * train.WEIGHT_DECAY) - 0.01 * tall * update, average
        optimizer.step()
    moved = (leaf.detach() - start).norm()
    assert torch.equal(kept[0], leaf)
    assert 0 < (wide[0] - leaf).norm() < 0.02 * moved
    assert (plain[0] - leaf).norm() > 0.1 * moved


def test_the_iteration_makes_a_matrix_nearly_orthogonal(book):
    x = torch.randn(20, 4) @ torch.diag(torch.tensor([1.0, 0.5, 0.2, 0.1])) @ torch.randn(4, 4)
    values = torch.linalg.svdvals(book["orthogonal"](x))
    assert values.min() > 0.6 and values.max() < 1.3
    U, _, V_t = torch.linalg.svd(x, full_matrices=False)
    near = functional.cosine_similarity((U @ V_t).flatten(), book["orthogonal"](x).flatten(), 0)
    before = functional.cosine_similarity((U @ V_t).flatten(), x.flatten(), 0)
    assert near > 0.97 > before


def test_accumulated_gradients_are_those_of_the_whole_batch():
    weights, rows = train.start_weights(ODD, 0), [[5, 1, 0, 3, 9, 8], [5, 4], [5, 6, 2], [7]]
    inputs, targets = train.pad(rows)
    matrix = weights["layers.2.attention.wk.weight"]

    def gradient(inputs, targets):
        loss = train.loss_of(weights, inputs, targets, ODD)  # NaN where no target counts
        return torch.autograd.grad(loss, matrix)[0] + 0 * loss.detach()

    whole = gradient(inputs, targets)
    parts = [(inputs[i : i + 1], targets[i : i + 1]) for i in range(len(rows))]
    assert furthest(e12.accumulate.right(gradient, parts), whole) < 1e-5
    for mistake, message in e12.accumulate.mistakes:
        found = mistake(gradient, parts)
        assert found.isnan().any() or furthest(found, whole) > 0.05, message


def test_clipping_is_pytorchs(book):
    weights = train.start_weights(ODD, 0)
    for size in (0.001, 100.0):
        grads = {n: size * torch.randn(w.shape) for n, w in weights.items()}
        for n, w in weights.items():
            w.grad = grads[n].clone()
        torch.nn.utils.clip_grad_norm_(weights.values(), train.CLIP)
        clipped, length = book["clip"](grads)
        assert all(furthest(clipped[n], w.grad) < 1e-5 for n, w in weights.items())
        assert (length > train.CLIP) == (size > 1)
        assert torch.equal(clipped["norm.weight"], grads["norm.weight"]) == (length < train.CLIP)


def test_the_books_step_is_the_packages(book):
    (theirs, ours), ids = (train.start_weights(ODD, 0) for _ in range(2)), make_tokens(ODD, 3, 41)
    optimizers, state = train.make_optimizers(theirs), {}
    for factor in (0.3, 1.0):
        loss = train.train_step(theirs, optimizers, ids, ODD, factor)
        found, grads = book["gradients"](ours, ids, ODD)
        book["change"](ours, grads, state, factor)
        assert found == pytest.approx(loss, abs=1e-4)
    begun = train.start_weights(ODD, 0)
    for name, w in theirs.items():
        moved = (w - begun[name]).norm()
        assert (w - ours[name]).norm() < 1e-3 * moved, name


def test_the_schedule_falls_as_pytorchs_cosine():
    leaf = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([leaf], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.1)
    for step in range(40):
        found = e12.schedule.right(10 + step, 50, 10, 0.1)
        assert found == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert [e12.schedule.right(i, 50, 10, 0.1) for i in (0, 4, 9)] == [0.1, 0.5, 1.0]
