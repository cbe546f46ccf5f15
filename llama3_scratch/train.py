"""Training: the loss, the initial weights, the optimizers, their learning-rate schedule, one step.

The model is the package's own `forward`, with the batch as its leading dimension and with the fused
`attend`. The weights are a plain dict of float32 leaf tensors. One step takes R rows of T + 1
tokens, compares each prediction with the next token (cross-entropy), and updates the weights
against the gradient.
"""

import contextlib
import math

import torch
import torch.distributed as dist
from torch.nn import functional

from llama3_scratch.checkpoint.random import random_weights
from llama3_scratch.model import forward
from llama3_scratch.speed import attend_fused

MUON_RATE, ADAM_RATE, WEIGHT_DECAY, CLIP, WARM_UP = 0.01, 0.003, 0.05, 1.0, 100
IGNORED = -100  # targets with this value do not count in the loss


def pad(rows):
    """R lists of ids, the longest of length T + 1 -> inputs [R, T], targets [R, T].

    Shorter rows are padded at the end: the inputs with id 0, the targets with `IGNORED`.
    """
    longest = max(map(len, rows))
    inputs = torch.tensor([row[:-1] + [0] * (longest - len(row)) for row in rows])
    targets = torch.tensor([row[1:] + [IGNORED] * (longest - len(row)) for row in rows])
    return inputs, targets


def loss_of(weights, inputs, targets, config):
    """Weights, [R, T], [R, T] -> the mean of -ln(probability of the target), in nats per token."""
    logits = forward(weights, inputs, config, attend=attend_fused)  # [R, T, V]
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


class Muon(torch.optim.Muon):
    """PyTorch's Muon, with its Newton-Schulz iteration in float32 instead of bfloat16.

    On a processor without bfloat16 instructions (AVX2, one thread), PyTorch's takes 3.1 s for all
    matrices of the tiny model and this one 0.2 s; a training step on 8 rows of 256 tokens takes 4.2
    and 1.1 s.
    """

    @torch.no_grad()
    def step(self):
        """Update all weights of this optimizer by their gradients."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for param in group["params"]:
                state = self.state[param]
                mean = state.setdefault("momentum_buffer", torch.zeros_like(param))
                mean.lerp_(param.grad, 1 - momentum)
                update = self.orthogonal(param.grad.lerp(mean, momentum), group)
                tall = max(1.0, len(param) / len(param.T)) ** 0.5  # adjust_lr_fn="original"
                param.mul_(1 - rate * group["weight_decay"])
                param.add_(update, alpha=-rate * tall)

    @staticmethod
    def orthogonal(matrix, group):
        """Matrix -> one with nearly the same singular vectors and with singular values near 1."""
        a, b, c = group["ns_coefficients"]
        wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
        x = wide / wide.norm().clamp(min=group["eps"])
        for _ in range(group["ns_steps"]):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if matrix.shape[0] > matrix.shape[1] else x


def start_weights(config, seed):
    """Config, seed -> {name: float32 leaf tensor}: the weights before the first step.

    They are those of `random_weights`, with two changes. The output matrix is a copy of the
    embeddings, scaled so that logits have variance 1: at first, a token predicts tokens like
    itself. The matrices that write to the stream are divided by sqrt(2L), because 2L sub-layers add
    to it (as in GPT-2: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
    """
    weights = random_weights(config, seed)
    weights["output.weight"] = weights["tok_embeddings.weight"] / math.sqrt(config.dim)
    for name in weights:
        if name.endswith(("attention.wo.weight", "feed_forward.w2.weight")):
            weights[name] /= math.sqrt(2 * config.n_layers)
        weights[name].requires_grad_()
    return weights


def make_optimizers(weights):
    """Weights -> [Muon, AdamW]: the first for the layers' matrices, the second for all others.

    Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) makes the update of a matrix nearly
    orthogonal, so that all its directions learn at the same rate. It is meant for matrices between
    activations, so only the layers' matrices use it. AdamW (Loshchilov and Hutter 2017,
    arXiv:1711.05101) updates the embeddings, the output matrix and the norms. Weight decay applies
    to all weights but the embeddings and the norms.
    """
    table, output = weights["tok_embeddings.weight"], weights["output.weight"]
    norms = [tensor for tensor in weights.values() if tensor.dim() == 1]
    matrices = [weights[n] for n in weights if n.startswith("layers") and weights[n].dim() == 2]
    muon = Muon(
        matrices, lr=MUON_RATE, momentum=0.95, weight_decay=WEIGHT_DECAY, adjust_lr_fn="original"
    )
    groups = [
        {"params": [output], "weight_decay": WEIGHT_DECAY},
        {"params": [table, *norms], "weight_decay": 0.0},
    ]
    return [muon, torch.optim.AdamW(groups, lr=ADAM_RATE, betas=(0.9, 0.98))]


def rate_factor(step, steps):
    """Step, number of steps -> the factor of the learning rates at this step, 0 to 1.

    It rises for `WARM_UP` steps, stays at 1 until half of the steps are done, and falls to 0.
    """
    return min(1.0, (step + 1) / WARM_UP, 2 * (1 - step / steps))


def train_step(weights, optimizers, ids, config, factor):
    """Weights, their optimizers, ids [R, T + 1] -> the loss before the update, in nats per token.

    Updates the weights in place. `factor` scales both learning rates.
    """
    loss = loss_of(weights, ids[:, :-1], ids[:, 1:], config)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights.values(), CLIP)
    for optimizer, rate in zip(optimizers, (MUON_RATE, ADAM_RATE), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


@contextlib.contextmanager
def data_parallel(weights, n_targets):
    """While the block runs, gradients are those of the loss per target of all ranks together.

    Called by every rank of a group with the same weights, its own rows and their number of targets
    (those that are not `IGNORED`; a rank may have none), around one backward pass or `train_step`.
    Each gradient is added up over the ranks as soon as it is complete, weighted by the number of
    targets: a mean of the ranks' means would be another loss. Yields this rank's weight, with which
    its loss counts in the sum that all ranks train.
    """
    total = torch.tensor(float(n_targets), device=weights["norm.weight"].device)
    dist.all_reduce(total)
    share = n_targets / float(total)

    def average(weight):
        if n_targets:
            weight.grad.mul_(share)
        else:
            weight.grad.zero_()  # the mean of no targets is NaN
        dist.all_reduce(weight.grad)

    hooks = [w.register_post_accumulate_grad_hook(average) for w in weights.values()]
    try:
        yield share
    finally:
        for hook in hooks:
            hook.remove()
