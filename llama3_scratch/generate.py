"""Sampling: choose a token, append it, repeat."""

import math
from collections import ChainMap

import torch
from torch.nn import functional

from llama3_scratch.cache import Cache
from llama3_scratch.errors import InputError, real, require, whole, wholes
from llama3_scratch.model import attend as readable_attend
from llama3_scratch.model import forward

CHUNK = 512  # tokens of a prompt that pass through the model together, at most
SCORES = 2**25  # attention scores of all heads that are in memory at one time, at most


def token_probabilities(logits, temperature=1.0, top_k=None, top_p=1.0):
    """[..., V], float32 -> [..., V]: the probabilities from which the next token is drawn.

    The logits are divided by the temperature. Then only the `top_k` likeliest tokens are kept, and
    of these the smallest set of likeliest tokens whose share exceeds `top_p`; 1 keeps all (nucleus
    sampling, Holtzman et al. 2019, arXiv:1904.09751, cut as in Meta's `sample_top_p`).
    """
    below_best = logits - logits.amax(-1, keepdim=True)  # at most 0, so exp cannot overflow
    probabilities = functional.softmax((below_best / temperature).nan_to_num(nan=0.0), dim=-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[..., top_k:] = 0
        ordered = ordered / ordered.sum(-1, keepdim=True)
    before = ordered.cumsum(-1) - ordered
    kept = ordered.masked_fill(before > top_p, 0) if top_p < 1 else ordered
    return torch.zeros_like(kept).scatter(-1, order, kept / kept.sum(-1, keepdim=True))


def choose(logits, temperature=0.0, top_k=None, top_p=1.0, generator=None):
    """[V], float32 -> one token: the likeliest at temperature 0, else drawn at random."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities = token_probabilities(logits, temperature, top_k, top_p)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def check_sampling(max_new, temperature=0.0, top_k=None, top_p=1.0, seed=None):
    """Raise `InputError` for an argument of `generate` that is invalid with every prompt."""
    require(whole("max_new", max_new) >= 0, f"max_new is {max_new}: expected 0 or more tokens.")
    right = 0 <= real("temperature", temperature) < math.inf
    require(right, f"temperature is {temperature}: expected 0 or more.")
    require(0 < real("top_p", top_p) <= 1, f"top_p is {top_p}: expected more than 0, at most 1.")
    require(
        top_k is None or whole("top_k", top_k) >= 1,
        f"top_k is {top_k}: expected 1 or more, or None for all.",
    )
    right = seed is None or -(2**63) <= whole("seed", seed) < 2**64
    require(right, f"seed is {seed}: expected a number of 64 bits.")


def chunk_size(n_tokens, config):
    """Return how many tokens of a prompt pass the model together: 512, fewer if it is long."""
    return max(1, min(CHUNK, SCORES // (config.n_heads * n_tokens)))


def generate(
    weights, tokens, config, max_new, *,
    temperature=0.0, top_k=None, top_p=1.0, seed=None, stop=(), attend=readable_attend, cache=None,
):  # fmt: skip
    """Weights, the prompt's ids, Config -> a generator of at most `max_new` new ids.

    The prompt goes through the model in chunks of `chunk_size`, then each chosen token alone, with
    a cache. Of a prompt, logits are computed for the last token only. A token of `stop` (for
    instance `tokenizer.stop_ids`) ends the text and is not yielded. The same seed gives the same
    ids on the same machine; None draws a new seed. cache: one that holds the keys and values of the
    first `cache.length` tokens (prefix caching), so that only the others are computed; None makes a
    new one. Raises `InputError` for a bad argument before anything is computed, and for logits that
    are not finite.
    """
    tokens = wholes("tokens", tokens)
    V, limit = config.vocab_size, config.context_length
    require(tokens, "the prompt has no tokens: expected at least <|begin_of_text|>.")
    outside = [token for token in tokens if not 0 <= token < V]
    require(not outside, f"there is no token {outside[:1]}: ids go from 0 to {V - 1}.")
    check_sampling(max_new, temperature, top_k, top_p, seed)
    max_new = int(max_new)
    require(
        len(tokens) + max_new <= limit,
        f"the prompt has {len(tokens)} tokens and max_new is {max_new}: expected at most {limit} "
        "in all, this model's context length.",
    )
    if cache is None:
        norm = weights["norm.weight"]
        cache = Cache(config, max(1, len(tokens) + max_new - 1), (), norm.dtype, norm.device)
    require(
        cache.length < len(tokens),
        f"the cache has {cache.length} positions and the prompt {len(tokens)} tokens: expected a "
        "cache of fewer, those of the prompt's first tokens.",
    )
    stop = set(wholes("stop", stop))
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return _steps(weights, tokens, config, max_new, sampling, seed, stop, attend, cache)


class _LastRow:
    """The output matrix, as `linear` multiplies it: only with the last row, [..., T, D] -> [1, V].

    A single row may be rounded otherwise than the same row among many, in its last bits.
    """

    def __init__(self, weights):
        self.weights, self.T = weights, self

    def __rmatmul__(self, rows):
        return rows[..., -1:, :] @ self.weights["output.weight"].T


@torch.inference_mode()
def _steps(weights, prompt, config, max_new, sampling, seed, stop, attend, cache):
    norm = weights["norm.weight"]
    generator = torch.Generator(norm.device)
    generator.seed() if seed is None else generator.manual_seed(seed)
    without_output = ChainMap({"output.weight": norm.new_zeros(0, config.dim)}, weights)
    uncached = torch.tensor(prompt[cache.length :], device=norm.device)
    *chunks, tokens = uncached.split(chunk_size(len(prompt), config))
    for chunk in chunks if max_new else ():
        forward(without_output, chunk, config, cache, attend)  # only for its keys and values
    last_row = ChainMap({"output.weight": _LastRow(weights)}, weights)
    for _ in range(max_new):
        logits = forward(last_row, tokens, config, cache, attend)
        if not torch.isfinite(logits[-1]).all():
            raise InputError(
                f"the logits are not finite. Either they overflow in {norm.dtype} (use a wider "
                "dtype), or the weights hold NaN or infinity (`llama3-scratch verify DIR` names "
                "the tensors)."
            )
        token = choose(logits[-1], **sampling, generator=generator)
        if token in stop:
            return
        yield token
        tokens = torch.tensor([token], device=norm.device)
