"""Training in general: loss, initial weights, optimizers, learning-rate schedule, one step."""

import math

import pytest
import torch
from helpers import ODD, make_tokens

from llama3_scratch import forward, random_weights, train


def copies(weights):
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def test_padding_is_never_a_target_and_does_not_change_the_loss():
    rows = [[5, 1, 2, 3], [5, 4, 2], [5, 9, 8, 7, 6, 3]]
    inputs, targets = train.pad(rows)
    assert inputs.shape == targets.shape == (3, 5)
    assert targets[1].tolist() == [4, 2] + [train.IGNORED] * 3
    assert inputs[1, :2].tolist() == [5, 4]
    weights, total = train.start_weights(ODD, 0), 0.0
    for row in rows:
        log_probabilities = forward(weights, torch.tensor(row[:-1]), ODD).log_softmax(-1)
        total -= sum(log_probabilities[i, token] for i, token in enumerate(row[1:]))
    loss = train.loss_of(weights, inputs, targets, ODD)
    torch.testing.assert_close(loss, total / sum(len(row) - 1 for row in rows))


def test_the_initial_weights_are_random_ones_with_two_changes():
    weights, random = train.start_weights(ODD, seed=3), random_weights(ODD, seed=3)
    random["output.weight"] = random["tok_embeddings.weight"] / math.sqrt(60)
    for i in range(4):
        for name in ("attention.wo", "feed_forward.w2"):
            random[f"layers.{i}.{name}.weight"] /= math.sqrt(8)  # 2L
    torch.testing.assert_close(dict(weights), random)
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in weights.values())
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_the_learning_rate_rises_stays_and_falls_to_zero():
    factors = [train.rate_factor(step, 1000) for step in (0, 49, 99, 300, 500, 750, 999)]
    assert factors == pytest.approx([0.01, 0.5, 1.0, 1.0, 1.0, 0.5, 0.002])


def test_each_weight_has_one_optimizer_and_only_some_decay():
    weights = train.start_weights(ODD, 0)
    before, optimizers = copies(weights), train.make_optimizers(weights)
    given = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, given)) == sorted(map(id, weights.values()))
    for tensor in weights.values():
        tensor.grad = torch.zeros_like(tensor)  # so that only the decay changes it
    for optimizer in optimizers:
        optimizer.step()
    for name, tensor in weights.items():
        decay = 0.0
        if tensor.dim() == 2 and name != "tok_embeddings.weight":
            decay = 0.05 * (0.01 if name.startswith("layers") else 0.003)
        torch.testing.assert_close(tensor.detach(), before[name] * (1 - decay), rtol=1e-6, atol=0)
        assert torch.equal(tensor, before[name]) == (decay == 0)


def test_muon_is_pytorchs_but_for_the_rounding_to_bfloat16():
    start = {n: w for n, w in train.start_weights(ODD, 0).items()
             if n.startswith("layers") and w.dim() == 2}  # fmt: skip
    runs = [[w.detach().clone().requires_grad_() for w in start.values()] for _ in range(3)]
    how = {"lr": 0.007, "weight_decay": 0.05, "adjust_lr_fn": "original"}
    optimizers = [torch.optim.Muon(runs[0], **how), train.Muon(runs[1], **how),
                  train.Muon(runs[2], **how, momentum=0.5)]  # fmt: skip  # the last is the control
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for theirs, ours, control in zip(*runs, strict=True):
            theirs.grad = torch.randn(theirs.shape, generator=generator)
            ours.grad = control.grad = theirs.grad
        for optimizer in optimizers:
            optimizer.step()
    far = []  # from PyTorch's, in shares of the way gone: ours, the control
    with torch.no_grad():
        for before, theirs, *others in zip(start.values(), *runs, strict=True):
            gone = (theirs - before).norm()
            far.append([float((other - theirs).norm() / gone) for other in others])
    far = torch.tensor(far)
    assert len(far) == 28 and far[:, 0].max() < 0.03 < 0.1 < far[:, 1].min()
    assert far[:, 0].min() > 0  # not the same bits: no rounding to bfloat16


def test_a_step_clips_the_gradient_and_scales_the_learning_rates(monkeypatch):
    weights = train.start_weights(ODD, 0)
    before, norms, clip = copies(weights), [], torch.nn.utils.clip_grad_norm_

    def watched(tensors, limit):
        tensors = list(tensors)
        clip(tensors, limit)
        norms.append(float(torch.stack([tensor.grad.norm() for tensor in tensors]).norm()))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    optimizers = train.make_optimizers(weights)
    ids = make_tokens(ODD, 2, 65)
    train.train_step(weights, optimizers, ids, ODD, factor=0.0)
    assert norms == [pytest.approx(1.0, abs=1e-3)]
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    train.train_step(weights, optimizers, ids, ODD, factor=0.5)
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert rates == [0.005, 0.0015, 0.0015]
    assert not any(torch.equal(weights[name], before[name]) for name in weights)
