"""What the tests run on several ranks, and the mistakes of which each test must notice its own.

A rank imports this module by its name; pytest and the helpers stay outside, so that it starts fast.
"""

import contextlib
import gc
from unittest import mock

import psutil
import torch
import torch.distributed as dist
from torch.nn import functional

from llama3_scratch import Cache, Config, forward, generate, load, model, parallel, pipeline, train
from llama3_scratch.checkpoint import memory, meta
from llama3_scratch.checkpoint.source import Checkpoint, open_checkpoint
from llama3_scratch.speed import attend_fused
from llama3_scratch.tokenizer import Tokenizer

VOCABULARY = Tokenizer({bytes([byte]): byte for byte in range(256)}).vocab_size
# No two sizes are equal: D 96, L 5, N 24, K 8, G 3, H 4, P 2, F 136, V 512. 8 ranks fit.
EIGHT = Config(96, 5, 24, 8, VOCABULARY, 17, 1e-5, 500000.0, 0.52)


@contextlib.contextmanager
def in_float64():
    """The model goes up to float32 in places; here to float64, so that rounding is 1e-16."""
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


def slices(folder, dtype):
    """This rank's Checkpoint of a folder, plain slices in any type."""
    part = parallel.open_slice(folder, dist.get_rank(), dist.get_world_size())
    return part._replace(weights=part.weights.to(dtype, "cpu"))


def logits(folder, dtype, tokens, mistake=None):
    """-> the logits of a whole prompt; the same with a cache, in two chunks and one by one."""
    with contextlib.ExitStack() as stack:
        if dtype == torch.float64:
            stack.enter_context(in_float64())
        stack.enter_context(MISTAKES[mistake]())
        part = slices(folder, dtype)
        weights, config = parallel.Parallel(part.weights), part.config
        with torch.inference_mode():
            whole = forward(weights, tokens, config)
            cache = Cache(config, len(tokens), (), dtype)
            spans = tokens.split([3, len(tokens) - 5, 1, 1])
            cached = torch.cat([forward(weights, span, config, cache) for span in spans])
    return whole.clone(), cached.clone()


def generated(folder, prompt, mistake=None, **sampling):
    """-> 20 new ids."""
    with MISTAKES[mistake]():
        weights, config, _ = parallel.load_slice(folder, torch.float32)
        return list(generate(weights, prompt, config, 20, **sampling))


def gradients(folder, inputs, targets, mistake=None):
    """-> the loss and this rank's gradients by name, in float64."""
    with in_float64(), MISTAKES[mistake]():
        part = slices(folder, torch.float64)
        leaves = {name: part.weights[name].clone().requires_grad_() for name in part.weights}
        if part.config.tied_output:
            tie(leaves)
        found = forward(parallel.Parallel(leaves), inputs, part.config)
        loss = functional.cross_entropy(found.flatten(0, -2), targets.flatten())
        loss.backward()
    return loss.item(), {name: leaf.grad for name, leaf in leaves.items()}


def tie(leaves):
    """The output matrix is the slice of the table itself: one leaf with the gradient of both."""
    leaves["output.weight"] = leaves["tok_embeddings.weight"]


def data_parallel(weights, config, batches, mistake=None):
    """-> the loss of all ranks and the gradients; batches: each rank's (inputs, targets)."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    inputs, targets = batches[dist.get_rank()]
    n_targets = int((targets != train.IGNORED).sum())
    with in_float64(), MISTAKES[mistake](), train.data_parallel(leaves, n_targets) as part:
        loss = train.loss_of(leaves, inputs, targets, config)
        loss.backward()
    total = torch.tensor(part * loss.item() if n_targets else 0.0, dtype=torch.float64)
    dist.all_reduce(total)
    return total.item(), {name: leaf.grad for name, leaf in leaves.items()}


def trained(weights, config, ids, n_steps):
    """-> the weights after steps on this rank's rows."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    optimizers = train.make_optimizers(leaves)
    rows = ids[dist.get_rank()]
    for _ in range(n_steps):
        with train.data_parallel(leaves, rows[:, 1:].numel()):
            train.train_step(leaves, optimizers, rows, config, 0.5)
    return {name: leaf.detach() for name, leaf in leaves.items()}


def staged(folder, layers, tokens, prompt):
    """-> the logits by layers, with a cache in two chunks, and 12 new ids of a sampled text."""
    part = pipeline.open_stage(open_checkpoint(folder), dist.get_rank(), layers)
    weights, config = (
        pipeline.joined(part.weights.to(torch.float32, "cpu"), part.config),
        part.config,
    )
    with torch.inference_mode():
        whole = forward(weights, tokens, config)
        cache = Cache(config, len(tokens))
        cached = [forward(weights, span, config, cache) for span in tokens.split(len(tokens) - 1)]
    ids = list(generate(weights, prompt, config, 12, temperature=1.0, seed=7))
    return whole.clone(), torch.cat(cached).clone(), ids, config.n_parameters


def measured(folder, config, n_tokens):
    """-> by how many bytes this process grows when it computes, and what the plan says it needs."""
    gc.collect()  # what an earlier call has mapped
    process, tokens = psutil.Process(), torch.arange(n_tokens)
    before = process.memory_info().rss
    stored = Checkpoint(meta.read_weights(folder, config), config, None)
    part = parallel.open_slice(stored, dist.get_rank(), dist.get_world_size())
    weights, config, _ = load(part)
    weights = parallel.Parallel(weights)
    cache, peak = Cache(config, n_tokens, (), torch.bfloat16), 0

    def attend(*args):
        nonlocal peak
        peak = max(peak, process.memory_info().rss)
        return attend_fused(*args)

    with torch.inference_mode():
        forward(weights, tokens, config, cache, attend)
    peak = max(peak, process.memory_info().rss)
    plan = memory.plan(config, torch.bfloat16, "cpu", n_tokens, n_tokens)
    return peak - before, plan.weights + plan.cache + plan.activations


def metas(folder, tokens, dtype):
    """-> the logits of Meta's own Transformer on these ranks, with this rank's file, and ours."""
    from fairscale.nn.model_parallel import initialize
    from llama_models.llama3.args import ModelArgs
    from llama_models.llama3.model import Transformer

    part = slices(folder, dtype)
    with contextlib.redirect_stdout(None):
        initialize.initialize_model_parallel(dist.get_world_size())
    torch.set_default_dtype(dtype)
    try:
        params = open_checkpoint(folder).config.to_params()
        reference = Transformer(ModelArgs(max_batch_size=1, max_seq_len=64, **params))
        reference.load_state_dict(dict(part.weights))
        with torch.inference_mode():
            theirs = reference(tokens[None], 0)[0].clone()
    finally:
        torch.set_default_dtype(torch.float32)
        initialize.destroy_model_parallel()
    with torch.inference_mode():
        return theirs, forward(parallel.Parallel(part.weights), tokens, part.config).clone()


class Serial(dict):
    """All slices in one process: products with them one after another, added in their order."""

    def __getitem__(self, name):
        parts = super().__getitem__(name)
        if parts[0].dim() == 1:
            return parts[0]
        if name == "tok_embeddings.weight":
            return torch.cat(parts)
        return _Parts(parts, summed=name.endswith(parallel.SUMMED))


class _Parts:
    def __init__(self, parts, summed):
        self.parts, self.summed, self.T = parts, summed, self

    def __rmatmul__(self, x):
        if not self.summed:
            return torch.cat([x @ part.T for part in self.parts], -1)
        inputs = [part.contiguous() for part in x.chunk(len(self.parts), -1)]
        products = [a @ part.T for a, part in zip(inputs, self.parts, strict=True)]
        return sum(products[1:], products[0])


# Mistakes that give a plausible loss


def changed(owner, name, new):
    return lambda: mock.patch.object(owner, name, new)


def _partial(self, x):
    return x @ self.part.T


def _mean(self, x):
    return parallel._Sum.apply(x @ self.part.T) / dist.get_world_size()


def _norm_of_a_slice(x, weight, eps):
    wide = x.float()  # [..., D]
    part = wide.chunk(dist.get_world_size(), -1)[dist.get_rank()]
    normed = wide * torch.rsqrt(part.pow(2).mean(-1, keepdim=True) + eps)  # [..., D]
    return normed.type_as(x) * weight


class _OwnSeed(torch.Generator):
    def manual_seed(self, seed):
        return super().manual_seed(seed + dist.get_rank())


def _mean_of_means(weights, n_targets):
    return DATA_PARALLEL(weights, 1)


def _two_copies(leaves):
    leaves["output.weight"] = leaves["tok_embeddings.weight"].detach().requires_grad_()


DATA_PARALLEL = train.data_parallel
MISTAKES = {
    None: contextlib.nullcontext,
    "a forgotten reduce in the backward pass": changed(
        parallel._Copy, "backward", staticmethod(lambda ctx, gradient: gradient)
    ),
    "a mean for a sum": changed(parallel.Summed, "__rmatmul__", _mean),
    "a partial sum taken for the whole": changed(parallel.Summed, "__rmatmul__", _partial),
    "a norm over a slice": changed(model, "rms_norm", _norm_of_a_slice),
    "different seeds": changed(torch, "Generator", _OwnSeed),
    "a tied table split once": lambda: mock.patch.dict(globals(), tie=_two_copies),
    "a mean of means": changed(train, "data_parallel", _mean_of_means),
}
