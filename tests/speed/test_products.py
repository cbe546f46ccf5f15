"""Quick weights: their products are those of the core up to rounding, whichever way is taken."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import CONFIGS, ODD, close, make_tokens, make_weights

from llama3_scratch import forward, generate
from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.quantize.packed import Int4, Int8
from llama3_scratch.quantize.rounding import awq, rtn
from llama3_scratch.speed import attend_fused, products, quick

LLAMA = CONFIGS["Llama's ratios"]
compiled = pytest.mark.skipif(products.library() is None, reason="there is no C compiler")


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def no_matrix_is_too_small(monkeypatch):
    monkeypatch.setattr(products, "SMALL", 0)


FASTER = {  # what a machine may measure
    "always": lambda kind, dtype, n_rows: True,
    "few": lambda kind, dtype, n_rows: 1 < n_rows <= products.FEW,
    "never": lambda kind, dtype, n_rows: False,
    "no compiler": lambda kind, dtype, n_rows: True,
}


@pytest.fixture(params=FASTER)
def way(request, monkeypatch):
    """Each way that a machine may take, whatever this one measures."""
    if request.param == "no compiler":
        monkeypatch.setattr(products, "library", lambda: None)
    monkeypatch.setattr(products, "faster", FASTER[request.param])
    return request.param


@pytest.mark.parametrize("shape", [(48, 64), (7, 4096), (1001, 128), (33, 60), (5, 8)])
@pytest.mark.parametrize("rows", [(64,), (1, 64), (2, 7, 64), (products.FEW + 1, 64), (0, 64)])
def test_a_product_is_float64s_up_to_rounding(shape, rows, way):
    W, x = drawn(*shape).bfloat16(), drawn(*rows[:-1], shape[1], seed=1).bfloat16()
    exact = x.double() @ W.double().T
    found = x @ quick({"w": W})["w"].T
    assert found.dtype == torch.bfloat16 and found.shape == exact.shape
    if found.numel():
        close(found.double(), exact, 2**-8)
        with pytest.raises(AssertionError):  # the control: one input of the row is forgotten
            close((x.double() * (torch.arange(shape[1]) != 3)) @ W.double().T, exact, 2**-8)


PACKED = {
    "int8": Int8,
    "int8, zeros of their own": lambda W: Int8(rtn(W, 8)),
    "int8, 32": lambda W: Int8(rtn(W, 8, 32)),
    "int8, 64": lambda W: Int8(rtn(W, 8, 64)),
    "int8, 128": lambda W: Int8(rtn(W, 8, 128)),
    "int4, 32": lambda W: Int4(rtn(W, 4, 32)),
    "int4, 32, symmetric": lambda W: Int4(rtn(W, 4, 32, symmetric=True)),
    "int4, 64": lambda W: Int4(rtn(W, 4, 64)),
    "int4, 128": lambda W: Int4(rtn(W, 4, 128)),
    "int4, 256": lambda W: Int4(rtn(W, 4, None if W.shape[1] % 256 else 256)),
    "int4, a row": lambda W: Int4(rtn(W, 4)),
    "int4, 96": lambda W: Int4(rtn(W, 4, 96)),
    "3 bits, 32": lambda W: Int4(rtn(W, 3, 32)),
    "awq": lambda W: Int4(awq(W, drawn(40, W.shape[1]), 4, 32)),
}
IN_C = set(PACKED) - {"int4, 96", "awq"}


@compiled
@pytest.mark.parametrize("measured", ["always", "never"])
@pytest.mark.parametrize("kind", PACKED)
def test_a_packed_product_is_that_of_the_matrix_it_stands_for(kind, measured, monkeypatch):
    monkeypatch.setattr(products, "faster", FASTER[measured])
    for shape in ((48, 128), (7, 4096), (31, 384)):
        W = PACKED[kind](drawn(*shape))
        assert (products.read_once(W) is not None) == (kind in IN_C)
        x = drawn(3, shape[1], seed=1)
        exact = x.double() @ W.dequantize().double().T
        close((x @ quick({"w": W})["w"].T).double(), exact, 2**-13)
        close((x[0] @ quick({"w": W})["w"].T).double(), exact[0], 2**-13)
        for dtype in (torch.float64, torch.float16):
            found = x.to(dtype) @ quick({"w": W})["w"].T
            assert found.dtype == dtype
            close(found.double(), exact, 2**-9)
        many = x.repeat(15, 1).unflatten(0, (5, 9))
        close((many @ quick({"w": W})["w"].T).double().flatten(0, 1), exact.repeat(15, 1), 2**-13)
        x[:, 33] = 0  # the control
        with pytest.raises(AssertionError):
            close((x @ quick({"w": W})["w"].T).double(), exact, 2**-13)


@compiled
@pytest.mark.parametrize("kind", sorted(IN_C))
def test_inputs_in_bfloat16_are_whole_numbers_of_16_bits(kind):
    """They lose nothing, from large blocks of 32 to small ones: only sums in float32 are left."""
    W = PACKED[kind](drawn(48, 256))
    product = products.read_once(W)
    x = drawn(2, 256, seed=1).abs().clamp(min=0.03).bfloat16()  # above 1/128 of the largest
    x[1, 32:64] *= 2.0**-20
    for scale in (1, 2.0**100, 2.0**-40):
        exact = (x * scale).double() @ W.dequantize().double().T
        wide = product((x * scale).float())
        close(wide.double(), exact, 4e-6)
        assert torch.equal(product(x * scale), wide.bfloat16())
        changed = x.clone()
        changed[:, 100] *= 1 + 2**-7  # the control: one step of one input
        with pytest.raises(AssertionError):
            close(product((changed * scale).float()).double(), exact, 4e-6)
    assert (product(x * 2.0**-100).double().abs() < 2.0**-75).all()
    assert torch.equal(product(torch.zeros(1, 256)), torch.zeros(1, 48))


@compiled
@pytest.mark.parametrize("kind", sorted(IN_C))
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_so(kind, value):
    """A product that hides a NaN would let a model talk on."""
    product = products.read_once(PACKED[kind](drawn(48, 256)))
    x = drawn(3, 256, seed=1)
    before = product(x)
    x[1, 200] = value
    after = product(x)
    assert not after[1].isfinite().any()
    assert torch.equal(after[::2], before[::2])


@compiled
@pytest.mark.parametrize("kind", ["bfloat16", *sorted(IN_C)])
def test_a_row_has_the_same_bits_alone_as_among_others(kind):
    W = drawn(31, 256)
    W = W.bfloat16() if kind == "bfloat16" else PACKED[kind](W)
    x = drawn(11, 256, seed=1).bfloat16()
    together = products.read_once(W)(x)
    alone = torch.cat([products.read_once(W)(row[None]) for row in x])
    assert torch.equal(together, alone)
    assert not torch.equal(together, alone.flip(0))  # the control


@compiled
@pytest.mark.parametrize("kind", sorted(IN_C))
def test_small_inputs_beside_a_large_one_are_off_by_its_step(kind):
    """The bound that `quick` states: each input by 2^-15 of the largest among its 32."""
    W, x = PACKED[kind](drawn(48, 256)), drawn(3, 256, seed=1) / 100
    x[:, ::32] = 1000
    whole, product = W.dequantize().double(), products.read_once(W)
    largest = x.unflatten(-1, (-1, 32)).abs().amax(-1).double().repeat_interleave(32, -1)
    bound = largest @ whole.T.abs() * (2.0**-15 + 2.0**-20)  # and the sums in float32
    off = (product(x).double() - x.double() @ whole.T).abs()
    assert (off <= bound).all()
    assert (off > bound / 64).any()  # the control: the bound is not a wide one


@compiled
@pytest.mark.parametrize("without", ["", "-mno-avx512f", "-mno-avx2"])
def test_each_form_of_the_c_code(without, monkeypatch):
    """For vectors of 64 bytes, of 32, and plain: as far as this machine has them."""
    monkeypatch.setenv("CC", f"cc {without}")
    macros = subprocess.run(
        ["cc", *without.split(), "-march=native", "-dM", "-E", "-x", "c", os.devnull],
        capture_output=True, text=True,
    )  # fmt: skip
    if macros.returncode:
        pytest.skip(f"this compiler does not know {without}")
    assert f"__{without[5:].upper()}__" not in macros.stdout
    form = products.library.__wrapped__()
    monkeypatch.setattr(products, "library", lambda: form)
    for n_in in (128, 384, 1024):
        W, x = drawn(31, n_in), drawn(9, n_in, seed=1)
        for kind in sorted(IN_C):
            matrix = PACKED[kind](W)
            exact = x.double() @ matrix.dequantize().double().T
            close(products.read_once(matrix)(x).double(), exact, 2**-13)
            with pytest.raises(AssertionError):  # the control: rows in another order
                close(products.read_once(matrix)(x.flip(0)).double(), exact, 2**-13)
        W, x = W.bfloat16(), x.bfloat16()
        close(products.read_once(W)(x).double(), x.double() @ W.double().T, 2**-8)


@pytest.mark.parametrize("kind", ["bfloat16", "int8, 32"])
def test_what_does_not_fit_raises_as_the_plain_product_does(kind, way):
    W = drawn(64, 128).bfloat16() if kind == "bfloat16" else PACKED[kind](drawn(64, 128))
    matrix, x = quick({"w": W})["w"], drawn(2, 128).bfloat16()
    for wrong in (x.reshape(1, 256), x.reshape(4, 64), torch.ones(512).bfloat16(), x.to("meta")):
        with pytest.raises((RuntimeError, ValueError)):
            torch.nn.functional.relu(wrong @ matrix.T).tolist()
    for other in (lambda: x + matrix, lambda: torch.matmul(matrix, x), lambda: matrix @ x):
        with pytest.raises(TypeError):
            other()
    assert (x @ matrix.T).shape == torch.matmul(x, matrix).shape == (2, 64)  # the control


@compiled
def test_matrices_are_read_where_they_lie():
    """No copy: what is changed in the matrix afterwards changes the product."""
    W = drawn(16, 64).bfloat16()
    x, matrix = torch.ones(1, 64).bfloat16(), quick({"w": W})["w"]
    product = products.read_once(W)
    before = product(x)
    W[3] = 0
    assert product(x)[0, 3] == 0 and torch.equal(product(x)[0, 4:], before[0, 4:])
    assert (x @ matrix.T)[0, 3] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [LLAMA, ODD], ids=["Llama's ratios", "odd sizes"])
def test_the_model_is_the_same_up_to_rounding(config, dtype, way):
    weights = make_weights(config, dtype)
    bound = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    for tokens in (make_tokens(config, 3), make_tokens(config, 2, 19)):
        expected = forward(weights, tokens, config)
        found = forward(quick(weights), tokens, config, attend=attend_fused)
        close(found, expected, bound)
        with pytest.raises(AssertionError):  # the control: other weights
            close(forward(quick(make_weights(config, dtype, 1)), tokens, config), expected, bound)


def test_float32_keeps_every_bit(way):
    """There is nothing to gain in float32, so the product is the core's."""
    weights, tokens = make_weights(LLAMA), make_tokens(LLAMA, 11)
    assert torch.equal(forward(quick(weights), tokens, LLAMA), forward(weights, tokens, LLAMA))


def test_text_is_generated_with_quick_and_packed_weights(way):
    weights = make_weights(LLAMA)
    few = {n: Int8(w) if w.dim() == 2 and n[0] != "t" else w for n, w in weights.items()}
    tokens = make_tokens(LLAMA, 9).tolist()
    assert list(generate(quick(few), tokens, LLAMA, 6)) == list(generate(few, tokens, LLAMA, 6))


def test_gradients_take_the_plain_product(way):
    W, x = drawn(48, 64).bfloat16(), drawn(2, 64, seed=1).bfloat16().requires_grad_()
    (x @ quick({"w": W})["w"].T).sum().backward()
    expected = W.sum(0, dtype=torch.float32)
    close(x.grad[0].float(), expected, 2**-7)


def test_small_matrices_vectors_and_the_embedding_are_left_alone(monkeypatch):
    monkeypatch.setattr(products, "SMALL", 64 * 64)
    weights = {"large": drawn(64, 64), "small": drawn(64, 63), "vector": drawn(5000)}
    weights["tok_embeddings.weight"] = weights["large"]
    for stored in (weights, LazyWeights(weights, weights.__getitem__)):
        found = quick(stored)
        assert list(found) == list(weights) and found["large"] is not weights["large"]
        for name in ("small", "vector", "tok_embeddings.weight"):
            assert found[name] is weights[name]


def test_what_is_faster_is_measured_once_for_each_power_of_two_of_rows(monkeypatch):
    measured = []

    def seconds(*functions):
        measured.append(len(functions[1]()))
        return [1, 2] if measured[-1] > 4 else [2, 1]

    monkeypatch.setattr(products, "seconds", seconds)
    products._faster.cache_clear()
    numbers = (1, 2, 3, 4, 5, 8, 64, 65, 3000, 1, 7)
    found = [products.faster(torch.bfloat16, torch.bfloat16, n) for n in numbers]
    products._faster.cache_clear()
    assert measured == [1, 2, 4, 8, 64, 128, 512]
    assert found == [n > 4 for n in numbers[:-2]] + [False, True]


@compiled
def test_packed_codes_are_not_copied_for_a_few_rows(monkeypatch):
    """PyTorch's kernels would need them in another order."""
    monkeypatch.setattr(products, "faster", FASTER["never"])
    few, W = drawn(products.FEW, 128).bfloat16(), Int8(drawn(48, 128))
    few @ quick({"w": W})["w"].T
    assert not W.kernels
    few @ W.T  # the control
    assert W.kernels


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    for compiler in ("no-such-compiler", "false"):
        monkeypatch.setenv("CC", compiler)
        assert products.library.__wrapped__() is None


@compiled
def test_an_empty_cc_is_cc(monkeypatch):
    monkeypatch.setenv("CC", "")
    assert products.library.__wrapped__() is not None


def test_numbers_that_are_nearly_zero_stay_after_the_library_is_loaded():
    """Some compiler flags make a process round subnormal numbers to 0 for good: these do not."""
    code = (
        "import torch; from llama3_scratch.speed.products import library; library()\n"
        "print(float(torch.tensor([1e-40]) * 1.0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(1e-40, rel=1e-4)
