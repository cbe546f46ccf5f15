"""Compare the forward pass with Meta's and its parts with PyTorch's; test its properties."""

import ast
import inspect
import math
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import CONFIGS, ODD, close, make_tokens, make_weights
from hypothesis import given, settings
from hypothesis import strategies as st

from llama3_scratch import PRESETS, cache, model
from llama3_scratch.config import RopeScaling, weight_shapes
from llama3_scratch.speed import attend_fused
from llama3_scratch.watch import watch

DTYPES = [torch.float32, torch.bfloat16]
NAMES = list(CONFIGS)


# Meta's Transformer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_metas_in_every_bit(metas_transformer, name, dtype):
    config = CONFIGS[name]
    weights = make_weights(config, dtype)
    reference = metas_transformer(config, weights)
    for n_tokens in (1, 2, 3, 4, 7, 9, 17, 64, 230):
        tokens = make_tokens(config, n_tokens)
        logits = model.forward(weights, tokens, config)
        assert logits.dtype == torch.float32
        assert torch.equal(logits, reference(tokens[None])[0]), f"{n_tokens} tokens"


@pytest.mark.parametrize("dtype", DTYPES)
def test_batched_logits_equal_metas_in_every_bit(metas_transformer, dtype):
    weights, tokens = make_weights(ODD, dtype), make_tokens(ODD, 3, 17)
    assert torch.equal(model.forward(weights, tokens, ODD), metas_transformer(ODD, weights)(tokens))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_cached_logits_equal_metas_in_every_bit(metas_transformer, name, dtype):
    config = CONFIGS[name]
    weights, tokens = make_weights(config, dtype), make_tokens(config, 60)
    reference = metas_transformer(config, weights)
    filled, start = cache.Cache(config, 60, dtype=dtype), 0
    for n_tokens in (7, 1, 1, 5, *[1] * 36, 10):
        new = tokens[start : start + n_tokens]
        logits = model.forward(weights, new, config, filled)
        assert torch.equal(logits, reference(new[None], start)[0]), f"at position {start}"
        start += n_tokens


def test_each_step_has_its_precision():
    """In bfloat16 the scores stay bfloat16, the softmax gets float32, and its result is cast back.

    PyTorch's softmax computes in float32 on the CPU anyway, so the cast changes no bit.
    """
    weights, given, softmax = make_weights(ODD, torch.bfloat16), [], F.softmax

    def spy(scores, dim):
        given.append(scores.dtype)
        return softmax(scores, dim)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "softmax", spy)
        with watch(model.attention, model.attend, model.rms_norm) as seen:
            logits = model.forward(weights, make_tokens(ODD, 7), ODD)
    assert logits.dtype == torch.float32 and set(given) == {torch.float32}
    for call in seen:
        for name, value in call.items():
            if isinstance(value, torch.Tensor) and not value.is_complex():
                wide = name in ("wide", "normed", "mask")
                assert value.dtype == (torch.float32 if wide else torch.bfloat16), name


# PyTorch's own functions


def test_rms_norm_agrees_with_pytorchs():
    x, weight = torch.randn(3, 7, 60), torch.randn(60)
    close(model.rms_norm(x, weight, 1e-5), F.rms_norm(x, (60,), weight, 1e-5), 1e-6)
    zeros = model.rms_norm(torch.zeros(2, 60), weight, 1e-5)
    assert torch.equal(zeros, torch.zeros(2, 60))  # eps prevents 0/0


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_attend_agrees_with_pytorchs_fused_attention(leading):
    H = ODD.head_dim
    query = torch.randn(*leading, 7, 6, H)
    keys, values = torch.randn(2, *leading, 9, 2, H)
    mask = model.causal_mask(torch.arange(2, 9), 9)
    readable = model.attend(query, keys, values, mask)
    close(attend_fused(query, keys, values, mask), readable, 1e-6)
    with pytest.raises(AssertionError, match="differs"):  # the other way to share 2 heads among 6
        swapped = query.unflatten(-2, (3, 2)).transpose(-3, -2).flatten(-3, -2)
        close(attend_fused(swapped, keys, values, mask), readable, 1e-6)


# RoPE


def test_rope_frequencies_are_llama_3s():
    frequencies = model.rope_frequencies(PRESETS["Llama-3-8B"])
    exact = torch.tensor([500000.0], dtype=torch.float64) ** -(torch.arange(64) / 64)
    assert frequencies.dtype == torch.float32
    close(frequencies.double(), exact, 1e-6)
    printed = [1.0, 8.1462e-01, 6.6360e-01, 5.4058e-01, 4.4037e-01]  # public walkthroughs
    close(frequencies[:5], torch.tensor(printed), 1e-4)
    close(frequencies[-2:], torch.tensor([3.0139e-06, 2.4551e-06]), 1e-4)


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Llama-3.2-1B"])
def test_scaling_lowers_only_the_low_frequencies(name):
    """High frequencies stay and low ones are divided by the factor."""
    from llama_models.llama3.model import precompute_freqs_cis

    config = PRESETS[name]
    plain = model.rope_frequencies(replace(config, rope_scaling=None))
    scaled = model.rope_frequencies(config)
    waves = 2 * torch.pi / plain
    factor = config.rope_scaling.factor
    assert torch.equal(scaled[waves < 8192 / 4], plain[waves < 8192 / 4])
    assert torch.equal(scaled[waves > 8192], plain[waves > 8192] / factor)
    metas = precompute_freqs_cis(config.head_dim, 3, config.rope_theta, use_scaled=True)[1]
    ours = torch.polar(torch.ones_like(scaled), scaled)
    # Meta's code has factor 8 built in, which is wrong for 3.2-1B and 3.2-3B
    assert torch.equal(ours, metas) == (factor == 8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 500), st.integers(0, 99))
def test_scores_depend_on_the_distance_alone(query_at, key_at, shift, seed):
    """Equal distances give equal products, within 1e-4 of |q||k| (float32 angles up to 1000)."""
    generator = torch.Generator().manual_seed(seed)
    query, key = (torch.randn(1, 1, ODD.head_dim, generator=generator) for _ in range(2))

    def product(m, n):
        at_m, at_n = (model.rotations_at(torch.tensor([at]), ODD) for at in (m, n))
        return (model.rotate(query, at_m) * model.rotate(key, at_n)).sum()

    here, there = product(query_at, key_at), product(query_at + shift, key_at + shift)
    assert (here - there).abs() <= 1e-4 * query.norm() * key.norm()


# The seams and the cache


class Packed:
    """A weight that is not a tensor: 8-bit codes with a scale for each row."""

    def __init__(self, matrix):
        self.scale = matrix.abs().amax(1) / 127
        self.codes = (matrix / self.scale[:, None]).round().to(torch.int8)

    @property
    def T(self):
        return self

    def __rmatmul__(self, x):
        return (x @ self.codes.float().T) * self.scale

    def unpacked(self):
        return self.codes.float() * self.scale[:, None]


def test_linear_accepts_weights_that_are_not_tensors():
    """Every matrix except the embedding table is used only through `linear`."""
    weights, tokens = make_weights(ODD), make_tokens(ODD, 9)
    matrices = [n for n in weights if weights[n].dim() == 2 and n != "tok_embeddings.weight"]
    packed = weights | {name: Packed(weights[name]) for name in matrices}
    unpacked = weights | {name: packed[name].unpacked() for name in matrices}
    logits = model.forward(packed, tokens, ODD)
    close(logits, model.forward(unpacked, tokens, ODD))
    with pytest.raises(AssertionError, match="differs"):  # the control: 8 bits are not 32
        close(logits, model.forward(weights, tokens, ODD))


def test_the_cache_keeps_each_heads_keys_contiguous():
    filled = cache.Cache(ODD, 12, (2,))
    model.forward(make_weights(ODD), make_tokens(ODD, 2, 9), ODD, filled)
    L, K, H = ODD.n_layers, ODD.n_kv_heads, ODD.head_dim
    assert filled.keys.shape == (L, 2, K, 12, H) and filled.keys[0, 0, 0].is_contiguous()
    new = torch.ones(2, 1, K, H)
    keys, values = filled.layer(1).append(new, 2 * new)
    assert keys.shape == values.shape == (2, 10, K, H)
    assert keys.untyped_storage().data_ptr() == filled.keys.untyped_storage().data_ptr()
    assert torch.equal(keys[:, 9:], new) and torch.equal(filled.values[1, :, :, 9], 2 * new[:, 0])


# Properties


@settings(max_examples=30, deadline=None, report_multiple_bugs=False)
@given(st.integers(2, 24), st.integers(0, 99), st.data())
def test_no_token_attends_to_a_later_one(n_tokens, seed, data):
    """Changing token t changes no bit of any logit before t, and does change those at t."""
    weights, tokens = make_weights(ODD), make_tokens(ODD, n_tokens, seed=seed)
    at = data.draw(st.integers(0, n_tokens - 1))
    changed = tokens.clone()
    changed[at] = (tokens[at] + 1) % ODD.vocab_size
    before, after = (model.forward(weights, ids, ODD) for ids in (tokens, changed))
    assert torch.equal(before[:at], after[:at])
    assert not torch.equal(before[at], after[at])


def test_every_token_attends_to_earlier_ones():
    """Without this test, a model whose tokens attend only to themselves would pass as causal."""
    weights, tokens = make_weights(ODD), make_tokens(ODD, 12)
    changed = tokens.clone()
    changed[0] = (tokens[0] + 1) % ODD.vocab_size
    before, after = (model.forward(weights, ids, ODD) for ids in (tokens, changed))
    assert ((before - after).abs().amax(-1) > 1e-4).all()


@settings(max_examples=15, deadline=None, report_multiple_bugs=False)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 99))
def test_cached_logits_agree_with_uncached_for_any_chunks(lengths, seed):
    """Within 1e-5 of the logit scale: matrices of different heights round differently."""
    weights, tokens = make_weights(ODD), make_tokens(ODD, sum(lengths), seed=seed)
    whole = model.forward(weights, tokens, ODD)
    filled = cache.Cache(ODD, len(tokens))
    parts = [model.forward(weights, part, ODD, filled) for part in tokens.split(lengths)]
    close(torch.cat(parts), whole)
    assert filled.length == len(tokens)


def test_cached_logits_agree_with_uncached_at_every_split():
    weights, tokens = make_weights(ODD), make_tokens(ODD, 14)
    whole = model.forward(weights, tokens, ODD)
    for cut in range(1, 14):
        filled = cache.Cache(ODD, 15)  # one position to spare
        parts = [model.forward(weights, tokens[part], ODD, filled)
                 for part in (slice(cut), slice(cut, None))]  # fmt: skip
        close(torch.cat(parts), whole)


@settings(max_examples=20, deadline=None, report_multiple_bugs=False)
@given(st.lists(st.integers(1, 4), max_size=3), st.integers(1, 12), st.integers(0, 99))
def test_a_batch_agrees_with_a_loop(leading, n_tokens, seed):
    """Any leading dimensions, none included; within 1e-5 of the logit scale, as above."""
    weights, tokens = make_weights(ODD), make_tokens(ODD, *leading, n_tokens, seed=seed)
    filled = cache.Cache(ODD, n_tokens, leading)
    together = model.forward(weights, tokens, ODD, filled)
    assert together.shape == (*leading, n_tokens, ODD.vocab_size)
    if not leading:
        together, tokens = together[None], tokens[None]
    rows = [model.forward(weights, row, ODD) for row in tokens.flatten(0, -2)]
    close(together.flatten(0, -3), torch.stack(rows))


@settings(max_examples=10, deadline=None, report_multiple_bugs=False)
@given(st.integers(1, 12), st.booleans(), st.integers(0, 99))
def test_inputs_are_not_changed(n_tokens, cached, seed):
    weights, tokens = make_weights(ODD), make_tokens(ODD, n_tokens, seed=seed)
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    model.forward(weights, tokens, ODD, cache.Cache(ODD, n_tokens) if cached else None)
    assert torch.equal(tokens, make_tokens(ODD, n_tokens, seed=seed))
    assert all(torch.equal(weights[name], copies[name]) for name in copies)


def test_gradients_reach_every_weight():
    """Training differentiates this function."""
    weights = {name: tensor.requires_grad_() for name, tensor in make_weights(ODD).items()}
    tokens = make_tokens(ODD, 2, 30)
    logits = model.forward(weights, tokens[:, :-1], ODD)
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    assert all(tensor.grad.abs().max() > 0 for tensor in weights.values())


# Shapes


@pytest.mark.parametrize("name", ["Llama-3-8B", "Llama-3-70B", "Llama-3.1-405B"])
@pytest.mark.thorough
def test_the_large_models_run_on_the_meta_device(name):
    """Shapes without values: the whole forward pass of the large models takes seconds."""
    config, dtype = PRESETS[name], torch.bfloat16
    weights = {key: torch.empty(shape, device="meta", dtype=dtype)
               for key, shape in weight_shapes(config).items()}  # fmt: skip
    tokens = torch.zeros(17, dtype=torch.long, device="meta")
    with watch(model.attention) as seen:
        logits = model.forward(weights, tokens, config)
    assert logits.shape == (17, 128256) and logits.dtype == torch.float32
    assert len(seen) == config.n_layers
    assert seen[0]["rotated_query"].shape == (17, config.n_heads, 128)
    assert seen[0]["rotated_key"].shape == (17, 8, 128)


def check_shape(tensor, letters, sizes, where):
    """letters: "..., T, N, H"; each may be a product, N*H. Raises AssertionError."""
    words = letters.split(", ")
    leading = words[0] == "..."
    expected = [math.prod(sizes[one] for one in word.split("*")) for word in words[leading:]]
    found = list(tensor.shape)
    assert len(found) == len(expected) or (leading and len(found) > len(expected)), where
    assert found[len(found) - len(expected) :] == expected, f"{where}: [{letters}] is {found}"


def shape_claims(function):
    """Return the shapes that a function's source states: {local name: letters}, inputs, output."""
    source = inspect.getsource(function)
    comments = {}
    for number, line in enumerate(source.splitlines(), start=1):
        if found := re.search(r"  # \[([^\]]*)\]$", line):
            comments[number] = found[1]
    names = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and node.end_lineno in comments:
            names[node.targets[0].id] = comments.pop(node.end_lineno)
    assert not comments, f"shape comments without an assignment: {comments}"
    signature = inspect.getdoc(function).splitlines()[0].split("->")
    inputs, output = (re.findall(r"\[([^\]]*)\]", side) for side in (signature[0], signature[-1]))
    return names, inputs, output[:1] if len(signature) == 2 else []


FUNCTIONS = [
    model.linear, model.rms_norm, model.rope_frequencies, model.rotations_at, model.rotate,
    model.causal_mask, model.attend, attend_fused, model.attention, model.feed_forward, model.block,
    model.forward,
]  # fmt: skip


def calls_of(function, leading, attend):
    """The recorded calls of one function in a forward pass with cache: 2 tokens, then 7 more."""
    config = replace(ODD, rope_scaling=RopeScaling(8.0))  # so that no line is left out
    weights = make_weights(config)
    tokens, filled = make_tokens(config, *leading, 9), cache.Cache(config, 9, leading)
    model.forward(weights, tokens[..., :2], config, filled)
    with watch(function) as seen:
        model.forward(weights, tokens[..., 2:], config, filled, attend)
    return seen


@pytest.mark.parametrize("leading", [(), (5,)])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_written_shapes_are_correct(function, leading):
    """Compare every `# [...]` and every docstring's shape signature with real tensors."""
    sizes = ODD.sizes | {"T": 7, "S": 9}
    names, inputs, output = shape_claims(function)
    assert output, f"{function.__name__}: the docstring's first line is not a shape signature"
    attend = attend_fused if function is attend_fused else model.attend
    seen = calls_of(function, leading, attend)
    assert seen
    for call in seen:
        if function is model.linear:
            sizes["O"], sizes["I"] = call["weight"].shape
        if function is model.rotate:  # its docstring: K in place of N for keys
            sizes["N"] = call["x"].shape[-2]
            assert sizes["N"] in (ODD.n_heads, ODD.n_kv_heads)
        for name, letters in names.items():
            check_shape(call[name], letters, sizes, f"{function.__name__}: {name}")
        arguments = [call.get(name) for name in inspect.signature(function).parameters]
        tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
        assert len(tensors) == len(inputs), function.__name__
        for letters, tensor in zip(inputs, tensors, strict=True):
            check_shape(tensor, letters, sizes, f"{function.__name__}: an argument")
        check_shape(call["return"], output[0], sizes, f"{function.__name__}: the result")


def test_a_wrong_shape_is_noticed():
    with pytest.raises(AssertionError, match="is \\[7, 60\\]"):
        check_shape(torch.zeros(7, 60), "..., D, T", ODD.sizes | {"T": 7}, "here")
    assert len(set((ODD.sizes | {"T": 7, "S": 9}).values())) == 11  # no two sizes are equal


def test_every_name_is_assigned_once():
    """So `watch` can show every intermediate value; the residual stream is the one exception."""
    for function in FUNCTIONS + [model.layer]:
        names = [n for n in ast.walk(ast.parse(inspect.getsource(function)))
                 if isinstance(n, ast.Name)]  # fmt: skip
        stored = [name.id for name in names if isinstance(name.ctx, ast.Store)]
        again = {name for name in stored if stored.count(name) > 1}
        assert again <= {"stream"}, f"{function.__name__} assigns {again} again"


def test_the_model_has_no_hard_coded_sizes():
    """Its only numbers are 0, 1, 2, and 3 (a dimension, counted from the end)."""
    nodes = ast.walk(ast.parse(inspect.getsource(model)))
    constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
    assert {value for value in constants if isinstance(value, (int, float))} <= {0, 1, 2, 3}
