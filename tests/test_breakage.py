"""Do the tests notice? Each line below breaks one line of the package; a named test must fail.

The mutations are mistakes that people have made in walkthroughs and reimplementations of Llama.
"""

import importlib.util
import inspect

import pytest
import test_model
import torch

from llama3_scratch import cache, model

METAS = "test_logits_equal_metas_in_every_bit"
CACHED = "test_cached_is_uncached_wherever_the_text_is_cut"
BF16 = {"name": "odd sizes", "dtype": torch.bfloat16}
FP32 = {"name": "odd sizes", "dtype": torch.float32}
SCALED = {"name": "scaled RoPE", "dtype": torch.float32}

# what is wrong: (module, right text, wrong text, the test that notices, that test's arguments)
MUTATIONS = {
    "scores divided by H, not by its root": (
        model, "math.sqrt(query.shape[-1])", "query.shape[-1]", METAS, FP32),
    "scores not scaled": (
        model, "products / math.sqrt(query.shape[-1])", "products", METAS, FP32),
    "norm's weight before the cast back": (
        model, "normed.type_as(x) * weight", "(normed * weight.float()).type_as(x)", METAS, BF16),
    "norm's weight forgotten": (
        model, "normed.type_as(x) * weight", "normed.type_as(x)", "test_rms_norm_is_pytorchs", {}),
    "norm not in float32": (model, "wide = x.float()", "wide = x", METAS, BF16),
    "eps outside the root": (
        model, "torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)",
        "(torch.rsqrt(wide.pow(2).mean(-1, keepdim=True)) + eps)",
        "test_rms_norm_is_pytorchs", {}),
    "mean subtracted, as in LayerNorm": (
        model, "wide = x.float()", "wide = x.float() - x.float().mean(-1, keepdim=True)",
        "test_rms_norm_is_pytorchs", {}),
    "softmax computed in bfloat16": (
        model, "F.softmax(masked.float(), dim=-1)",
        "(masked.exp() / masked.exp().sum(-1, keepdim=True))", METAS, BF16),
    "softmax's argument not cast to float32": (
        model, "F.softmax(masked.float()", "F.softmax(masked", "test_precision_of_each_step", {}),
    "scores lifted to float32 by the mask": (
        model, "scores + mask.type_as(scores)", "scores + mask", "test_precision_of_each_step", {}),
    "mask lets each token see the next": (
        model, "> positions[:, None]", "> positions[:, None] + 1", "test_no_token_looks_ahead", {}),
    "mask hides the token itself": (
        model, "> positions[:, None]", ">= positions[:, None]", METAS, FP32),
    "no mask": (
        model, "masked = scores + mask.type_as(scores)", "masked = scores",
        "test_no_token_looks_ahead", {}),
    "future scores set to zero before the softmax": (
        model, "masked = scores + mask.type_as(scores)", "masked = scores * (mask == 0)",
        "test_no_token_looks_ahead", {}),
    "every token sees only itself": (
        model, "> positions[:, None]", "!= positions[:, None]",
        "test_every_token_looks_back", {}),
    "values rotated too": (
        model, "else (rotated_key, value)", "else (rotated_key, rotate(value, rotations))",
        METAS, FP32),
    "keys not rotated": (
        model, "rotated_key = rotate(key, rotations)", "rotated_key = key", METAS, FP32),
    "halves paired, not neighbours": (
        model, "unflatten(-1, (-1, 2)))", "unflatten(-1, (2, -1)).transpose(-1, -2).contiguous())",
        METAS, FP32),
    "theta's exponent twice too large": (
        model, "torch.arange(0, H, 2).float() / H", "torch.arange(0, H, 2).float() / (H // 2)",
        "test_frequencies_are_llama_3s", {}),
    "degrees for radians": (
        model, "torch.polar(torch.ones_like(angles), angles)",
        "torch.polar(torch.ones_like(angles), angles.deg2rad())", METAS, FP32),
    "long waves kept, short ones slowed": (
        model, "(1 - kept) * plain / by.factor + kept * plain",
        "kept * plain / by.factor + (1 - kept) * plain", METAS, SCALED),
    "heads transposed": (
        model, '["attention.wq.weight"].T).unflatten(-1, (-1, H))',
        '["attention.wq.weight"].T).unflatten(-1, (H, -1)).mT.contiguous()', METAS, FP32),
    "key/value heads interleaved, not grouped": (
        model, "keys.repeat_interleave(G, dim=-2)", "torch.cat([keys] * G, -2)", METAS, FP32),
    "heads merged without the transpose": (
        model, "(probabilities @ values_read).transpose(-3, -2)",
        "(probabilities @ values_read).reshape(query.shape)", METAS, FP32),
    "w1 and w3 swapped": (
        model, 'gate = F.silu(x @ weights["feed_forward.w1.weight"].T)',
        'gate = F.silu(x @ weights["feed_forward.w3.weight"].T)', METAS, FP32),
    "GELU for SiLU": (model, "F.silu(", "F.gelu(", METAS, FP32),
    "second residual from the normed stream": (
        model, "return middle + feed_forward(", "return renormed + feed_forward(", METAS, FP32),
    "feed-forward without its residual": (
        model, "return middle + feed_forward(", "return feed_forward(", METAS, FP32),
    "feed-forward reads the stream before attention": (
        model, "rms_norm(middle,", "rms_norm(x,", METAS, FP32),
    "the two norms of a block swapped": (
        model, 'normed = rms_norm(x, weights["attention_norm.weight"]',
        'normed = rms_norm(x, weights["ffn_norm.weight"]', METAS, FP32),
    "last norm missing": (
        model, 'normed = rms_norm(stream, weights["norm.weight"], config.norm_eps)',
        "normed = stream", METAS, FP32),
    "first layer's weights in every layer": (
        model, "layer(weights, i), rotations", "layer(weights, 0), rotations", METAS, FP32),
    "output tied to the embedding": (
        model, 'weights["output.weight"]', 'weights["tok_embeddings.weight"]', METAS, FP32),
    "logits not in float32": (
        model, '@ weights["output.weight"].T).float()', '@ weights["output.weight"].T)',
        METAS, BF16),
    "positions restart with every call": (
        model, "positions = torch.arange(start, stop,", "positions = torch.arange(0, stop - start,",
        CACHED, {}),
    "cache never grows": (model, "cache.length = stop", "cache.length = start", CACHED, {}),
    "cache written one position late": (
        cache, "self.keys[..., self.length : stop, :, :] = key",
        "self.keys[..., self.length + 1 : stop + 1, :, :] = key",
        "test_cached_is_uncached_at_every_split", {}),
    "cached values not those of their keys": (
        cache, "self.values[..., self.length : stop, :, :] = value",
        "self.values[..., self.length : stop, :, :] = key", CACHED, {}),
    "only the new keys are read": (
        cache, "return self.keys[..., :stop, :, :], self.values[..., :stop, :, :]",
        "return self.keys[..., self.length : stop, :, :], self.values[..., :stop, :, :]",
        CACHED, {}),
    "all layers share one cache": (
        cache, "LayerCache(self.keys[i], self.values[i]", "LayerCache(self.keys[0], self.values[0]",
        "test_cached_logits_equal_metas_in_every_bit", FP32),
    "the embedding table is changed in place": (
        model, 'stream = weights["tok_embeddings.weight"][tokens]',
        'stream = weights["tok_embeddings.weight"].mul_(1.01)[tokens]',
        "test_inputs_are_left_as_they_were", {}),
}  # fmt: skip


def mutated(module, right, wrong):
    """The module, with one place of its source changed."""
    source = inspect.getsource(module)
    assert source.count(right) == 1, f"{right!r} stands {source.count(right)} times"
    copy = importlib.util.module_from_spec(module.__spec__)
    exec(compile(source.replace(right, wrong), module.__file__, "exec"), copy.__dict__)
    return copy


def call(test, arguments, metas_transformer):
    """Run a test function; those that compare with Meta's get the reference."""
    function = getattr(test_model, test)
    if "metas_transformer" in inspect.signature(function).parameters:
        arguments = arguments | {"metas_transformer": metas_transformer}
    function(**arguments)


@pytest.mark.parametrize("fault", MUTATIONS)
def test_a_broken_line_is_noticed(fault, monkeypatch, metas_transformer):
    module, right, wrong, test, arguments = MUTATIONS[fault]
    name = module.__name__.rpartition(".")[2]
    monkeypatch.setattr(test_model, name, mutated(module, right, wrong))
    with pytest.raises(AssertionError):  # not a crash: the wrong line runs, its result is judged
        call(test, arguments, metas_transformer)


@pytest.mark.parametrize("test", sorted({mutation[3] for mutation in MUTATIONS.values()}))
def test_the_right_lines_pass(test, monkeypatch, metas_transformer):
    """The control: unchanged copies of the modules pass every test that is named above."""
    for module in (model, cache):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(test_model, name, mutated(module, "import torch\n", "import torch\n"))
    arguments = [mutation[4] for mutation in MUTATIONS.values() if mutation[3] == test]
    call(test, arguments[0], metas_transformer)


def test_there_are_mutations_enough():
    assert len(MUTATIONS) >= 15
