"""Training: the loss, where the weights start, the optimizers, their schedule, one step.

The model is the package's own `forward`, given a batch as its leading dimension and the fused
`attend`; the weights are a plain dict of float32 leaf tensors. One step takes rows of T + 1 tokens,
compares each prediction with the token that follows (cross-entropy), and follows the gradient.
"""

import math

import torch
import torch.nn.functional as F

from llama3_scratch.checkpoint.random import random_weights
from llama3_scratch.model import forward
from llama3_scratch.speed import attend_fused

MUON_RATE, ADAM_RATE, WEIGHT_DECAY, CLIP, WARM_UP = 0.01, 0.003, 0.05, 1.0, 100
IGNORED = -100  # the target that `cross_entropy` leaves out


def pad(rows):
    """Lists of ids of any lengths -> inputs [R, T], targets [R, T] (`IGNORED` after the end)."""
    longest = max(map(len, rows))
    inputs = torch.tensor([row[:-1] + [0] * (longest - len(row)) for row in rows])
    targets = torch.tensor([row[1:] + [IGNORED] * (longest - len(row)) for row in rows])
    return inputs, targets


def loss_of(weights, inputs, targets, config):
    """[R, T], [R, T] -> the mean of -ln(probability of the target), in nats a token."""
    logits = forward(weights, inputs, config, attend=attend_fused)  # [R, T, V]
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def start_weights(config, seed):
    """Config, seed -> {name: float32 leaf tensor}: where training starts.

    As `random_weights`, but for two things. The output matrix starts as a copy of the embeddings,
    scaled to logits of variance 1, so a token first predicts tokens like itself. And the matrices
    that write to the stream are divided by sqrt(2L), because 2L sub-layers add to it (as in GPT-2).
    """
    weights = random_weights(config, seed)
    weights["output.weight"] = weights["tok_embeddings.weight"] / math.sqrt(config.dim)
    for name in weights:
        if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")):
            weights[name] /= math.sqrt(2 * config.n_layers)
        weights[name].requires_grad_()
    return weights


def make_optimizers(weights):
    """Weights -> [Muon, AdamW], each for a part; all decay but embeddings and norms.

    Muon (Jordan 2024) makes the update of a matrix nearly orthogonal, so that all its directions
    learn at one pace; it is for matrices between activations, so the layers' only. AdamW
    (Loshchilov and Hutter 2017, arXiv:1711.05101) has the two tables and the norms.
    """
    table, output = weights["tok_embeddings.weight"], weights["output.weight"]
    norms = [tensor for tensor in weights.values() if tensor.dim() == 1]
    matrices = [weights[n] for n in weights if n.startswith("layers") and weights[n].dim() == 2]
    muon = torch.optim.Muon(
        matrices, lr=MUON_RATE, momentum=0.95, weight_decay=WEIGHT_DECAY, adjust_lr_fn="original"
    )
    groups = [
        {"params": [output], "weight_decay": WEIGHT_DECAY},
        {"params": [table, *norms], "weight_decay": 0.0},
    ]
    return [muon, torch.optim.AdamW(groups, lr=ADAM_RATE, betas=(0.9, 0.98))]


def rate_factor(step, steps):
    """Return the factor of the learning rates: it rises for 100 steps, is 1, falls from half on."""
    return min(1.0, (step + 1) / WARM_UP, 2 * (1 - step / steps))


def train_step(weights, optimizers, ids, config, factor):
    """Update the weights in place from ids [R, T + 1]. Returns the loss before the update."""
    loss = loss_of(weights, ids[:, :-1], ids[:, 1:], config)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights.values(), CLIP)
    for optimizer, rate in zip(optimizers, (MUON_RATE, ADAM_RATE), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()
