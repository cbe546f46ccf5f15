"""Sampling: which tokens are chosen, how often, and when generation stops."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ODD, close, make_tokens, make_weights
from torch._dynamo.utils import counters

from llama3_scratch import Cache, InputError, forward, generate
from llama3_scratch.cache import LayerCache
from llama3_scratch.config import PRESETS
from llama3_scratch.errors import require
from llama3_scratch.generate import choose, chunk_size, token_probabilities
from llama3_scratch.model import block, causal_mask, layer, rotations_at
from llama3_scratch.speed import attend_fused


def test_greedy_tokens_are_the_uncached_argmax():
    weights, tokens = make_weights(ODD), make_tokens(ODD, 7).tolist()
    new = list(generate(weights, tokens, ODD, max_new=12))
    expected = list(tokens)
    for _ in range(12):
        expected.append(int(forward(weights, torch.tensor(expected), ODD)[-1].argmax()))
    assert new == expected[7:]
    fused = generate(weights, tokens, ODD, max_new=12, attend=attend_fused)
    assert list(fused) == new


def test_each_token_is_computed_once(monkeypatch):
    """One pass over the prompt, then one token per step."""
    lengths = []
    module = sys.modules["llama3_scratch.generate"]  # the name in the package is the function

    def counted(weights, tokens, config, cache, attend):
        lengths.append(len(tokens))
        return forward(weights, tokens, config, cache, attend)

    monkeypatch.setattr(module, "forward", counted)
    list(generate(make_weights(ODD), [1, 2, 3, 4, 5], ODD, max_new=4))
    assert lengths == [5, 1, 1, 1]


def test_a_long_prompt_passes_in_chunks(monkeypatch):
    """Whole chunks for their keys and values only; the logits are those of one pass."""
    module = sys.modules["llama3_scratch.generate"]
    weights, tokens, lengths, last = make_weights(ODD), make_tokens(ODD, 700).tolist(), [], []

    def recorded(weights, tokens, *others):
        logits = forward(weights, tokens, *others)
        lengths.append(list(logits.shape))
        last.append(logits)
        return logits

    monkeypatch.setattr(module, "forward", recorded)
    V = ODD.vocab_size
    list(generate(weights, tokens, ODD, max_new=2))
    assert lengths == [[512, 0], [1, V], [1, V]]  # of the last row only
    close(last[1][-1], forward(weights, torch.tensor(tokens), ODD)[-1])
    lengths.clear()
    list(generate(weights, tokens, ODD, max_new=0))
    list(generate(weights, tokens[:512], ODD, max_new=1))
    assert lengths == [[1, V]]
    whole = forward(weights, torch.tensor(tokens[:512]), ODD)
    close(last[-1], whole[-1:])  # a row alone: equal but for its last bits


def test_chunks_bound_the_scores_in_memory():
    """Up to 512 tokens at once; from there on the scores of all heads take what they took."""
    config = PRESETS["Llama-3-8B"]
    assert [chunk_size(n, config) for n in (1, 17, 512, 2048)] == [512] * 4
    for n in (4096, 8192, 131072):
        assert 2**24 < config.n_heads * n * chunk_size(n, config) <= 2**25
    assert chunk_size(10**9, config) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.thorough
def test_memory_does_not_grow_with_the_square_of_the_prompt():
    code = """
import sys
from llama3_scratch import Config, generate, random_weights
config = Config(256, 2, 32, 8, 500, 32, 1e-5, 500000.0)
weights = random_weights(config, 0)
list(generate(weights, [7] * int(sys.argv[1]), config, max_new=2))
status = dict(line.split(":") for line in open("/proc/self/status"))
print(1024 * int(status["VmHWM"].split()[0]))  # the most resident memory since the start
"""
    peak = [
        int(subprocess.run([sys.executable, "-c", code, str(n)], capture_output=True, text=True,
                           check=True).stdout)
        for n in (512, 4096)
    ]  # fmt: skip
    one_piece = 32 * 4096**2 * 4  # bytes of one copy of its scores: 2.1 GB
    assert peak[1] < 1.2e9 and peak[1] - peak[0] < 0.4 * one_piece


@pytest.mark.parametrize("known", [1, 5, 11])
def test_a_cache_of_the_first_tokens_saves_their_computation(known):
    weights, tokens = make_weights(ODD), make_tokens(ODD, 12)
    cache = Cache(ODD, 20)
    forward(weights, tokens[:known], ODD, cache)
    new = list(generate(weights, tokens.tolist(), ODD, max_new=9, cache=cache))
    assert new == list(generate(weights, tokens.tolist(), ODD, max_new=9)) and cache.length == 20
    again = cache.copy(ODD, known, 30)
    assert again.length == known and again.keys.shape[-2] == 30
    assert torch.equal(again.keys[..., :known, :], cache.keys[..., :known, :])
    assert torch.equal(again.values[..., :known, :], cache.values[..., :known, :])
    with pytest.raises(InputError, match="the cache has 20 positions and the prompt 12 tokens"):
        generate(weights, tokens.tolist(), ODD, max_new=1, cache=cache)


def test_tokens_are_yielded_one_at_a_time():
    """The first token can be read alone, and no inference mode leaks out of the generator."""
    new = generate(make_weights(ODD), [1, 2, 3], ODD, max_new=3)
    assert isinstance(next(new), int)
    new.close()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_stop_token_ends_the_text():
    weights, prompt = make_weights(ODD), [1, 2, 3]
    free = list(generate(weights, prompt, ODD, max_new=10))
    stop = free[4]
    assert list(generate(weights, prompt, ODD, max_new=10, stop={stop})) == free[: free.index(stop)]
    assert list(generate(weights, prompt, ODD, max_new=0)) == []


def test_stop_tokens_may_be_given_in_any_form_but_text():
    weights, prompt = make_weights(ODD), [1, 2, 3]
    free = list(generate(weights, prompt, ODD, max_new=10))
    stop = free[4]
    for stops in (torch.tensor([stop]), [torch.tensor(stop)], {stop: 0}, np.array([stop])):
        new = list(generate(weights, prompt, ODD, 10, stop=stops))
        assert new == free[: free.index(stop)]
    for wrong in (free[4], None, str(free[4]), [str(free[4])], "<|end_of_text|>", [None], [1.5]):
        with pytest.raises(InputError, match="stop"):
            generate(weights, prompt, ODD, 10, stop=wrong)


def test_the_same_seed_gives_the_same_text():
    weights = make_weights(ODD)

    def text(seed, **kwargs):
        return list(generate(weights, [1, 2], ODD, 20, temperature=1.0, seed=seed, **kwargs))

    assert text(3) == text(3)
    assert text(3) != text(4)
    assert text(3, top_k=1) == list(generate(weights, [1, 2], ODD, 20))
    state = torch.get_rng_state()
    text(3)
    assert torch.equal(torch.get_rng_state(), state)  # the reader's own draws are left alone


def test_token_probabilities_equal_their_closed_form():
    logits = torch.tensor([0.4, 0.1, 0.3, 0.2]).log()
    near = dict(atol=1e-6, rtol=0)
    same = token_probabilities(logits)
    assert torch.allclose(same, torch.tensor([0.4, 0.1, 0.3, 0.2]), **near)
    squared = torch.tensor([0.16, 0.01, 0.09, 0.04]) / 0.3
    assert torch.allclose(token_probabilities(logits, temperature=0.5), squared, **near)
    best_two = torch.tensor([4 / 7, 0, 3 / 7, 0])
    assert torch.allclose(token_probabilities(logits, top_k=2), best_two, **near)
    assert torch.allclose(token_probabilities(logits, top_p=0.5), best_two, **near)
    # top-p applies to what top-k keeps: 4/7 of the two is already more than half
    only = token_probabilities(logits, top_k=2, top_p=0.5)
    assert torch.allclose(only, torch.tensor([1.0, 0, 0, 0]), **near)
    for temperature in (1e-30, 1e-300):  # no overflow near 0
        assert token_probabilities(logits, temperature)[0] == 1
    many = torch.randn(128256, generator=torch.Generator().manual_seed(0)) * 3
    kept = token_probabilities(many)  # all of them, although their running float32 sum exceeds 1
    assert (kept > 0).all() and torch.allclose(kept, many.softmax(-1), atol=0, rtol=1e-3)
    near = dict(atol=1e-6, rtol=0)
    assert torch.allclose(token_probabilities(logits, top_k=99), same, **near)


def metas_sample_top_p():
    """Return Meta's function from its file, which cannot be imported without torchvision."""
    import llama_models

    path = Path(llama_models.__file__).parent / "llama3" / "generation.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", "") == "sample_top_p"]
    names = {"torch": torch}
    exec(compile(tree, path, "exec"), names)
    return names["sample_top_p"]


def test_top_p_keeps_the_same_tokens_as_metas_code():
    sample_top_p = metas_sample_top_p()
    torch.manual_seed(0)
    logits = torch.randn(60) * 2
    for p in (0.1, 0.5, 0.9):
        kept = set(token_probabilities(logits, top_p=p).nonzero().flatten().tolist())
        draws = sample_top_p(logits.softmax(-1).expand(4000, -1), p).flatten().tolist()
        assert set(draws) <= kept
        likely = token_probabilities(logits, top_p=p) > 0.005  # each seen in 4000 draws
        assert set(likely.nonzero().flatten().tolist()) <= set(draws)


def test_tokens_are_drawn_with_their_probabilities():
    """20,000 draws: within 5 standard errors of each probability."""
    logits, generator = torch.tensor([2.0, 0.0, 1.0, -1.0]), torch.Generator().manual_seed(0)
    draws = torch.tensor([choose(logits, 0.8, generator=generator) for _ in range(20_000)])
    expected = (logits / 0.8).softmax(-1)
    found = torch.bincount(draws, minlength=4) / 20_000
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / 20_000).sqrt()).all()
    assert not ((found - logits.softmax(-1)).abs() < 0.01).all()  # control: not temperature 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": []}, "the prompt has no tokens"),
        ({"tokens": [1, 101]}, "no token \\[101\\]: ids go from 0 to 100"),
        ({"tokens": [-1]}, "no token \\[-1\\]"),
        ({"max_new": -1}, "max_new is -1"),
        ({"max_new": 8190}, "3 tokens and max_new is 8190: expected at most 8192"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 0}, "top_p is 0: expected more than 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 2.5}, "top_k is 2.5: expected a whole number"),
        ({"tokens": [1.5]}, "a token is 1.5: expected a whole number"),
        ({"tokens": 5}, "tokens is 5: expected ids"),
        ({"tokens": "ab"}, "tokens is 'ab'"),
        ({"tokens": torch.tensor(5)}, "expected ids"),
        ({"tokens": None}, "tokens is None"),
        ({"tokens": [[1, 2]]}, "expected a whole number"),
        ({"stop": 5}, "stop is 5: expected ids"),
        ({"temperature": "1"}, "temperature is '1': expected a number"),
        ({"temperature": None}, "temperature is None"),
        ({"temperature": 1j}, "temperature is 1j"),
        ({"temperature": torch.ones(3)}, "expected a number"),
        ({"top_p": "0.9"}, "top_p is '0.9'"),
        ({"max_new": 2.5}, "max_new is 2.5"),
        ({"seed": "1"}, "seed is '1'"),
        ({"seed": 2**64}, "expected a number of 64 bits"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"tokens": torch.zeros(2, 3)}, "expected a whole number"),
        ({"max_new": 2.5}, "max_new is 2.5: expected a whole number"),
        ({"seed": "a"}, "seed is 'a': expected a whole number"),
    ],
)
def test_bad_arguments_are_named_at_the_call(change, says):
    arguments = {"tokens": [1, 2, 3], "config": ODD, "max_new": 5} | change
    with pytest.raises(InputError, match=says):
        generate(make_weights(ODD), **arguments)


def test_the_cache_refuses_too_many_positions():
    with pytest.raises(InputError, match="capacity is 8193: expected 1 to 8192"):
        Cache(ODD, 8193)
    with pytest.raises(InputError, match="capacity is 0"):
        Cache(ODD, 0)
    filled, weights = Cache(ODD, 4), make_weights(ODD)
    forward(weights, torch.tensor([1, 2, 3]), ODD, filled)
    with pytest.raises(InputError, match="has 4 positions: expected at least 5"):
        forward(weights, torch.tensor([4, 5]), ODD, filled)
    assert filled.length == 3  # unchanged: the text can continue with fewer tokens
    whole = forward(weights, torch.tensor([1, 2, 3, 4]), ODD)
    last = forward(weights, torch.tensor([4]), ODD, filled)
    assert torch.allclose(last[-1], whole[-1], atol=1e-5)


def test_a_cached_position_of_the_8b_takes_128_kib():
    filled = Cache(PRESETS["Llama-3-8B"], 17, dtype=torch.bfloat16, device="meta")
    assert (filled.keys.nbytes + filled.values.nbytes) / 17 == 128 * 1024


def test_decoding_is_not_compiled_again_for_each_token():
    """Two graphs: one for a single position, one for every other number of them."""
    weights, ids, config = make_weights(ODD), make_tokens(ODD, 9), ODD

    def graphs(kind):
        """Decode with a block that is recorded -> the number of recordings."""
        torch.compiler.reset()
        counters.clear()
        recorded, filled = torch.compile(block, backend="eager"), Cache(config, 9)
        for t in range(9):
            at, own = torch.tensor([t]), kind(filled.keys[0], filled.values[0], t)
            given = rotations_at(at, config), causal_mask(at, t + 1), config, own
            recorded(weights["tok_embeddings.weight"][ids[t : t + 1]], layer(weights, 0), *given)
        return counters["stats"]["unique_graphs"]

    class Told(LayerCache):
        def append(self, key, value):
            require(self.length < 9, f"{self.length} positions")
            return super().append(key, value)

    assert graphs(LayerCache) == 2
    assert graphs(Told) > 2  # the control: a message, whether or not it is needed
