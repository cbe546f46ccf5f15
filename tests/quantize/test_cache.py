"""The key/value cache of 8 and 4 bits."""

import pytest
import torch
from helpers import CONFIGS, ODD, close, make_tokens, make_weights

from llama3_scratch import PROMPT, STORY, Cache, InputError, forward, generate, load
from llama3_scratch.quantize.cache import QuantizedCache

BOUND = {8: 0.02, 4: 0.25}  # of the largest logit, on tiny; measured: 0.007 and 0.12


@pytest.fixture(scope="module")
def tiny():
    return load("tiny", torch.float32)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["odd sizes", "multi-query"])
def test_cached_equals_uncached_at_every_split(name, bits):
    """In its own arithmetic: all at once, or in parts of 1 to 8 tokens.

    In float64, because a last bit of float32 can move a number over the middle between two codes.
    """
    config, dtype = CONFIGS[name], torch.float64
    weights, tokens = make_weights(config, dtype), make_tokens(config, 2, 9)
    whole = QuantizedCache(config, 9, (2,), dtype, bits=bits)
    logits = forward(weights, tokens, config, whole)
    for split in range(1, 9):
        cache = QuantizedCache(config, 12, (2,), dtype, bits=bits)
        parts = [forward(weights, part, config, cache) for part in tokens.split(split, -1)]
        close(torch.cat(parts, -2), logits)
    plain = forward(weights, tokens, config)
    assert (logits - plain).abs().max() > 1e-3 * plain.abs().max()  # the control: it does round


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_appended_at_once_is_appended_one_by_one(bits, dtype):
    draw = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 3, 7, ODD.n_kv_heads, ODD.head_dim, generator=draw).to(dtype)
    key[:, 2] *= 100  # a position's scale is its own
    value[:, 4] = 0
    once, steps = (QuantizedCache(ODD, 8, (3,), dtype, bits=bits) for _ in range(2))
    both = once.layer(1).append(key, value)
    for i in range(7):
        last = steps.layer(1).append(key[:, i : i + 1], value[:, i : i + 1])
        steps.length += 1
    assert torch.equal(once.codes, steps.codes) and torch.equal(once.scales, steps.scales)
    for x, found, again in zip((key, value), both, last, strict=True):
        assert found.dtype == dtype and torch.equal(found, again)
        half = x.float().abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1) / 2
        rounding = torch.finfo(dtype).eps * x.float().abs()
        assert ((found - x).abs() <= 1.01 * half + rounding).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_logits_of_tiny_stay_within_a_bound(tiny, bits):
    weights, config, tokenizer = tiny
    for text in (PROMPT, STORY):
        ids = tokenizer.encode(text)
        tokens = torch.tensor(ids)
        right = forward(weights, tokens, config)
        worst = {}
        for each in (8, 4):
            cache = QuantizedCache(config, len(ids), bits=each)
            off = forward(weights, tokens, config, cache) - right
            worst[each] = float(off.abs().max() / right.abs().max())
        assert worst[bits] < BOUND[bits] and worst[4] > 5 * worst[8]
        cache = QuantizedCache(config, len(ids), bits=bits)
        (token,) = generate(weights, ids, config, 1, cache=cache)
        assert token == int(right[-1].argmax()) and cache.length == len(ids)


def test_its_size_copy_and_errors():
    weights, tokens = make_weights(ODD, torch.float64), make_tokens(ODD, 8)
    full = Cache(ODD, 9, dtype=torch.bfloat16)
    numbers = 2 * full.keys.numel()
    for bits in (8, 4):
        sized = QuantizedCache(ODD, 9, dtype=torch.bfloat16, bits=bits)
        assert sized.nbytes * 8 == numbers * bits + numbers // ODD.head_dim * 16
        cache = QuantizedCache(ODD, 9, dtype=torch.float64, bits=bits)
        logits = forward(weights, tokens, ODD, cache)
        new = cache.copy(ODD, 5, 8)
        close(forward(weights, tokens[5:], ODD, new), logits[5:])
        assert cache.length == new.length == 8 and new.bits == bits
        with pytest.raises(InputError, match="has 8 positions: expected at least 9"):
            forward(weights, tokens[:1], ODD, new)
        assert new.length == 8
    for settings in ({"capacity": 0}, {"capacity": 8193}, {"capacity": 9, "bits": 5}):
        with pytest.raises(InputError):
            QuantizedCache(ODD, **settings)
