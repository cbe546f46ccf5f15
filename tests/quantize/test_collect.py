"""`collect`, `sequential`, `smooth` and `llm_int8`."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import CONFIGS, ODD, close, make_tokens, make_weights

from llama3_scratch import InputError, forward
from llama3_scratch.quantize.model import READERS, collect, llm_int8, sequential, smooth
from llama3_scratch.quantize.packed import Int8, absmax
from llama3_scratch.quantize.rounding import dequantize, rtn

sys.path.insert(0, str(Path(__file__).parent))
from make_golden_int8 import inputs  # noqa: E402

TEXTS = [make_tokens(ODD, n, seed=n) for n in (7, 1, 12)]


class Recorder:
    """A matrix that keeps what it is multiplied with."""

    def __init__(self, weight):
        self.weight, self.T, self.rows = weight, self, []

    def __rmatmul__(self, x):
        self.rows.append(x)
        return x @ self.weight.T


def recorded(weights, config, texts):
    """The oracle: {name of a matrix: all rows that it met}, from plain passes of the whole model"""
    heard = {name: Recorder(weight) if name.startswith("layers.") and weight.dim() == 2 else weight
             for name, weight in weights.items()}  # fmt: skip
    for text in texts:
        forward(heard, text, config)
    return {name: torch.cat(one.rows) for name, one in heard.items() if isinstance(one, Recorder)}


@pytest.mark.parametrize("name", ["odd sizes", "multi-query", "scaled RoPE"])
def test_collect_gathers_what_a_plain_pass_sees(name):
    config = CONFIGS[name]
    weights = make_weights(config)
    texts = [make_tokens(config, n, seed=n) for n in (7, 1, 12)]
    right = recorded(weights, config, texts)
    found = {what: dict(collect(weights, config, texts, what))
             for what in ("hessian", "rows", "largest")}  # fmt: skip
    assert {frozenset(each) for each in found.values()} == {frozenset(right)}
    for matrix, rows in right.items():
        close(found["rows"][matrix], rows, 1e-6)
        close(found["hessian"][matrix], 2 * rows.double().T @ rows.double(), 1e-6)
        close(found["largest"][matrix], rows.abs().amax(0), 1e-6)
    a_layer = {matrix: hessian for matrix, hessian in found["hessian"].items() if "rs.0." in matrix}
    assert len({id(hessian) for hessian in a_layer.values()}) == 4  # for seven matrices


def test_collect_takes_lists_and_refuses_what_is_no_text():
    weights = make_weights(ODD)
    one, other = (
        dict(collect(weights, ODD, [ids])) for ids in ([1, 2, 3], torch.tensor([1, 2, 3]))
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    for texts, what in (([], "rows"), ([[]], "rows"), ([[[1]]], "rows"), ([[1]], "columns")):
        with pytest.raises(InputError):
            list(collect(weights, ODD, texts, what))


MEMORY = r"""
import re, torch
from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.config import Config, weight_shapes
from llama3_scratch.quantize.model import collect

def most(n_layers, keep):
    config = Config(256, n_layers, 4, 2, 64, 8, 1e-5, 500000.0)
    shapes = weight_shapes(config)
    weights = LazyWeights(shapes, lambda name: torch.randn(shapes[name]) / 16)
    found = collect(weights, config, torch.randint(64, (4, 64)))
    kept = [one for one in found if keep]
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s*(\d+) kB", file.read())[1]) / 1024

print(most(2, False), most(20, False), most(20, True))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is not there")
def test_collect_needs_the_memory_of_one_layer():
    """A layer's Hessians take 5 MB here, 20 layers' 107 MB; the last run, a control, keeps them."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    two, many, all_kept = map(float, done.stdout.split())
    assert many < two + 20 and all_kept > many + 70, done.stdout + done.stderr


def test_sequential_with_a_method_that_changes_nothing():
    for dtype in (torch.float32, torch.bfloat16):
        weights = make_weights(ODD, dtype)
        same = sequential(weights, ODD, TEXTS, lambda W, H: W)
        assert len(same) == 7 * ODD.n_layers
        assert all(torch.equal(same[name].to(dtype), weights[name]) for name in same)
    rounded = sequential(weights, ODD, TEXTS, lambda W, H: rtn(W, 4))  # the control
    assert not all(torch.equal(dequantize(rounded[name]), same[name]) for name in same)


def test_sequential_gives_a_layer_what_the_rounded_layers_before_it_give():
    weights, seen = make_weights(ODD), []

    def method(W, X):
        seen.append(X)
        return Int8(W) if len(seen) % 2 else rtn(W, 3)  # each kind of result

    made = sequential(weights, ODD, TEXTS, method, "rows")
    plain = {name: dequantize(one) if isinstance(one, tuple) else one.dequantize()
             for name, one in made.items()}  # fmt: skip
    right = recorded(weights | plain, ODD, TEXTS)  # all layers rounded
    before = recorded(weights, ODD, TEXTS)  # none
    for n, name in enumerate(made):
        if name.endswith(("wq.weight", "wk.weight", "wv.weight")):  # their inputs: layers before
            close(seen[n], right[name], 1e-6)
            assert name.startswith("layers.0.") or (seen[n] - before[name]).abs().max() > 1e-2


def planted(weights, factor=60.0):
    """The same function with outliers: column 5 of each norm's output is `factor` times larger."""
    new = {name: weight.clone() for name, weight in weights.items()}
    for i in range(ODD.n_layers):
        for norm, readers in READERS.items():
            new[f"layers.{i}.{norm}"][5] *= factor
            for reader in readers:
                new[f"layers.{i}.{reader}"][:, 5] /= factor
    return new


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0])
def test_smooth_leaves_the_function_alone(alpha):
    weights = planted(make_weights(ODD))
    largest = dict(collect(weights, ODD, TEXTS, "largest"))
    rows = dict(collect(weights, ODD, TEXTS, "rows"))
    new = smooth(weights, largest, alpha)
    logits = forward(weights, TEXTS[2], ODD)
    close(forward(new, TEXTS[2], ODD), logits, 2e-5)
    for name, weight in smooth(weights, rows, alpha).items():
        close(weight, new[name], 1e-6)
    changed = {name for name in new if new[name] is not weights[name]}
    assert len(changed) == ODD.n_layers * 7  # two norms and five matrices of each layer
    left_out = "layers.1.feed_forward.w3.weight"  # the control
    half = new | {left_out: weights[left_out]}
    assert (forward(half, TEXTS[2], ODD) - logits).abs().max() > 0.05 * logits.abs().max()


def test_smooth_evens_out_inputs_and_weights():
    """With alpha 1/2 a column is as large in X as in W; so one scale for all of X costs less."""
    weights = planted(make_weights(ODD))
    new = smooth(weights, dict(collect(weights, ODD, TEXTS, "largest")), 0.5)
    for norm, readers in READERS.items():
        name = f"layers.2.{readers[0]}"
        in_w = torch.stack([new[f"layers.2.{reader}"].abs().amax(0) for reader in readers]).amax(0)
        close(dict(collect(new, ODD, TEXTS, "largest"))[name], in_w, 1e-4)
        errors = []
        for model in (weights, new):
            X, W = dict(collect(model, ODD, TEXTS, "rows"))[name], model[name]
            whole = absmax(X.flatten())
            rounded = (whole[0] * whole[1]).view(X.shape)
            errors.append(float(((rounded - X) @ W.T).norm() / (X @ W.T).norm()))
        assert errors[1] < errors[0] / 5, (norm, errors)
    assert smooth(weights, {}) == weights


def w8a8(x, W):
    """The oracle: int8 times int8 by torch's integer product."""
    (a, a_scale), (b, b_scale) = absmax(x), absmax(W)
    return torch._int_mm(a, b.T.contiguous()) * a_scale * b_scale[:, 0]


def test_the_thresholds_0_and_infinity_are_the_limits_of_llm_int8():
    draw = torch.Generator().manual_seed(0)
    x, W = (torch.randn(n, 64, generator=draw) for n in (24, 40))
    x[:, 7] *= 30
    assert torch.equal(llm_int8(x, W, 0.0), x @ W.T)
    close(llm_int8(x, W, math.inf), w8a8(x, W), 1e-6)
    close(llm_int8(x.view(2, 3, 4, 64), W).view(24, 40), llm_int8(x, W), 1e-6)
    right = x.double() @ W.double().T
    error = {t: float((llm_int8(x, W, t) - right).norm()) for t in (0.0, 6.0, math.inf)}
    assert error[0.0] < error[6.0] < error[math.inf] / 5
    W[:, 7] *= 30  # an outlier among the weights: nothing is decided by it
    x[:, 7] = 1.0
    assert torch.equal(llm_int8(x, W), llm_int8(x, W, math.inf))
    assert llm_int8(x.bfloat16(), W.bfloat16()).dtype == torch.bfloat16


def test_llm_int8_is_bitsandbytes():
    """Golden numbers of bitsandbytes 0.50.2, float16 on the CPU: see make_golden_int8.py."""
    text = Path(__file__).with_name("golden_int8.json").read_text()
    golden = {name: torch.tensor(numbers) for name, numbers in json.loads(text).items()}
    x, W = map(torch.tensor, inputs())
    outliers = (x.abs() >= 6).any(0)
    assert outliers.nonzero()[:, 0].tolist() == golden["columns"].tolist() == [3, 9, 17]
    for name, matrix in {"W ": W, "": x, "other ": x.masked_fill(outliers, 0)}.items():
        codes, scales = absmax(matrix)
        assert torch.equal(codes.float(), golden[f"{name}codes"])
        close(scales[:, 0] * 127, golden[f"{name}largest"], 1e-6)
    close(llm_int8(x, W, math.inf), golden["W8A8"], 1e-3)
    close(llm_int8(x[0], W), llm_int8(x[:1], W)[0], 1e-6)  # any number of dimensions
    close(x @ Int8(W).T, golden["Linear8bitLt"], 1e-3)
    close(llm_int8(x, Int8(W).dequantize()), golden["mixed"], 1e-3)  # its outliers' W: 8 bits
    close(llm_int8(x, W), golden["mixed"], 1e-2)
    with pytest.raises(AssertionError):  # the controls: 8 bits for all differ by more
        close(llm_int8(x, W, math.inf), golden["mixed"], 1e-2)
    with pytest.raises(AssertionError):
        close(x @ W.T, golden["Linear8bitLt"], 1e-3)
