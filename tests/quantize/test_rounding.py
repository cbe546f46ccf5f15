"""Methods that round a matrix: identities, each with a control that must fail, and golden files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from by_definition import CASES, case, kronecker, unit_lower

from llama3_scratch import InputError
from llama3_scratch.quantize import adaround, awq, dequantize, gptq, hessian, quip, rounding, rtn

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
O, I = 37, 101  # noqa: E741


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(seed=0, T=300):
    """-> W [O, I] and inputs [T, I] that depend on one another, some columns larger than others."""
    mix = draw(I, I, seed=seed + 1) * (1 + draw(I, seed=seed + 2).abs() ** 3)
    return draw(O, I, seed=seed), draw(T, I, seed=seed + 3) @ mix / 30


def damped(H, share=0.01):
    return H + share * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)


def same(one, other):
    """Whether two `Rounded` have the same codes, scales and zeros."""
    return all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def error(W, rounded, X):
    return float(rounding.row_errors(W, rounded, X).sum())


# --- Round to nearest -----------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_rtn_is_torchs_fake_quantization(bits, symmetric):
    """0 differences, in rows of many sizes, of one sign, all 0, and with an outlier."""
    W = draw(211, I) * torch.logspace(-9, 9, 211)[:, None]
    W[3], W[5], W[7] = W[3].abs(), -W[5].abs(), 0
    W[9, 20] = 1e3 * W[9].abs().max()
    found = rtn(W, bits, symmetric=symmetric)
    scales, zeros = found.scales[:, 0], found.zeros[:, 0].int()
    theirs = torch.fake_quantize_per_channel_affine(W, scales, zeros, 0, 0, 2**bits - 1)
    assert torch.equal(dequantize(found), theirs)
    other = torch.fake_quantize_per_channel_affine(W, scales * 1.01, zeros, 0, 0, 2**bits - 1)
    assert not torch.equal(dequantize(found._replace(scales=found.scales * 1.01)), other)  # control


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_grid_reaches_from_the_least_weight_to_the_largest_and_contains_0(bits):
    W, top = draw(O, I), 2**bits - 1
    found = rtn(W, bits)
    low, high = ((code - found.zeros) * found.scales for code in (0, top))
    assert (low[:, 0] - W.amin(1)).abs().max() <= found.scales.max() / 2 * 1.001
    assert (high[:, 0] - W.amax(1)).abs().max() <= found.scales.max() / 2 * 1.001
    assert (dequantize(found) - W).abs().max() <= found.scales.max() * 1.001  # at the two ends
    assert torch.equal(found.zeros, found.zeros.round())
    both = rtn(W, bits, symmetric=True)
    assert (both.zeros == 2 ** (bits - 1)).all()
    assert torch.allclose(both.scales[:, 0], 2 * W.abs().amax(1) / top)


@pytest.mark.parametrize("group", [1, 10, 32, 100, 101, 500])
def test_a_group_is_rounded_as_a_matrix_of_its_own(group):
    """Also the last group of a row, which may be shorter."""
    W = draw(O, I)
    found = rtn(W, 3, group)
    assert found.scales.shape == found.zeros.shape == (O, math.ceil(I / group))
    alone = [dequantize(rtn(part, 3)) for part in W.split(group, 1)]
    assert torch.equal(dequantize(found), torch.cat(alone, 1))
    assert (group >= I) == same(found, rtn(W, 3))  # a control


def test_codes_are_bytes_scales_are_float32_whatever_the_weights_are():
    W, X = layer()
    for dtype in (torch.float64, torch.bfloat16):
        weights = W.to(dtype)
        kept = weights.clone()
        for found in (
            rtn(weights, 4), gptq(weights, hessian(X), 4), awq(weights, X, 4),
            adaround(weights, X, 4, steps=3), quip(weights, hessian(X), 4),
        ):  # fmt: skip
            assert [each.dtype for each in found[:3]] == [torch.uint8] + 2 * [torch.float32]
            assert found.codes.max() <= 15 and found.codes.shape == (O, I)
            assert dequantize(found).dtype == torch.float32
        assert torch.equal(weights, kept)  # and are not written to


def test_rows_of_zeros_and_of_tiny_numbers_stay_finite():
    W, X = layer()
    W[0], W[1], W[:, 5] = 0, 1e-42, 0
    for found in (
        rtn(W, 4), rtn(W, 2, 8, symmetric=True), gptq(W, hessian(X), 3, 8), awq(W, X, 3, 8),
        adaround(W, X, 3, 8, steps=20), quip(W, hessian(X), 3), quip(0 * W, hessian(X), 3),
    ):  # fmt: skip
        assert dequantize(found).isfinite().all() and found.scales.gt(0).all()
        if found.turns is None:
            assert not dequantize(found)[0].any()


# --- GPTQ -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [None, 32, 7])
def test_gptq_with_inputs_that_are_independent_is_rtn(group, act_order):
    """With the identity as Hessian, and with any diagonal. A control: inputs that are not."""
    W, X = layer()
    for diagonal in (torch.ones(I), draw(I, seed=9).exp()):
        found = gptq(W, diagonal.diag(), 3, group, act_order)
        assert same(found, rtn(W, 3, group))
    assert not same(gptq(W, hessian(X), 3, group, act_order), rtn(W, 3, group))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group", [None, 32, 7, 64])
def test_the_size_of_a_block_changes_nothing(group, act_order):
    W, X = layer()
    expected = gptq(W, hessian(X), 3, group, act_order, block=1)
    for block in (5, 32, 48, 128):
        assert same(gptq(W, hessian(X), 3, group, act_order, block=block), expected)
    other = gptq(W, hessian(X), 3, group, act_order, damping=0.3)
    assert not same(other, expected)  # a control


def test_the_explicit_inverse_update_is_the_row_of_the_cholesky_factor():
    """To 1e-12: and the inverse of what is left is the Schur complement, not a part of H^-1."""
    H = damped(hessian(layer()[1])).double()
    H /= H.diagonal().mean()
    U, inverse = rounding.inverse_factor(H), torch.linalg.inv(H)
    assert torch.equal(U, U.triu())
    assert torch.allclose(U.T @ U, inverse, rtol=0, atol=1e-12 * float(inverse.max()))
    rest = inverse
    for j in range(I):
        row = rest[0] / rest[0, 0].sqrt()
        assert (row - U[j, j:]).abs().max() <= 1e-12 * row.abs().max()
        again = torch.linalg.inv(H[j:, j:])
        assert (rest - again).abs().max() <= 1e-9 * again.abs().max()
        if j == 40:  # a control: one global inverse for all columns
            assert (inverse[j:, j:] - again).abs().max() > 0.1 * again.abs().max()
        rest = rest[1:, 1:] - torch.outer(rest[1:, 0], rest[0, 1:]) / rest[0, 0]


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 600])
def test_a_triangle_is_inverted_in_its_place(n):
    L = draw(n, n).double().tril() / n**0.5 + 2 * torch.eye(n)
    expected = torch.linalg.inv(L)
    rounding.invert_(L)
    assert torch.allclose(L, expected, rtol=0, atol=1e-12)
    assert torch.equal(L, L.tril())


@pytest.mark.parametrize("name", CASES)
def test_gptq_gives_the_codes_of_its_definition(name):
    """Golden: in fractions, with the inverse of what is left computed anew for every column."""
    settings, golden = dict(CASES[name]), GOLDEN[name]
    W, X = map(torch.tensor, case(10 * list(CASES).index(name)))
    X[:, settings.pop("dead", [])] = 0
    bits = settings.pop("bits")
    found = gptq(W, hessian(X), bits, **settings)
    assert found.codes.tolist() == golden["codes"]
    assert torch.equal(found.scales, torch.tensor(golden["scales"]))
    assert found.zeros.tolist() == golden["zeros"]
    if settings.get("act_order") or "dead" in name:  # controls
        settings["act_order"] = not settings.get("act_order")
        assert gptq(W, hessian(X), bits, **settings).codes.tolist() != golden["codes"]
    else:
        nearest = rtn(W, bits, settings.get("group"), settings.get("symmetric", False))
        assert nearest.codes.tolist() != golden["codes"]


def test_the_columns_of_dead_inputs_become_0_and_leave_the_others_alone():
    W, X = layer()
    alive = torch.arange(I) % 10 != 4
    found = dequantize(gptq(W, hessian(X * alive), 4))
    assert not found[:, ~alive].any() and found[:, alive].any(0).all()
    W[:, ~alive] *= 0.5  # these are not looked at, but for the range of a row
    groups = [gptq(each, hessian(X * alive), 4, 10) for each in (W, W * alive)]
    assert torch.equal(dequantize(groups[0]), dequantize(groups[1]))


def test_damping_is_a_share_of_the_mean_diagonal():
    W, X = layer(T=50)  # fewer inputs than columns
    H = hessian(X)
    assert same(gptq(W, H, 3), gptq(W, damped(H), 3, damping=0))
    assert same(gptq(W, H, 3), gptq(W, 1024 * H, 3))  # a factor of H changes nothing
    assert not same(gptq(W, H, 3), gptq(W, damped(H), 3))  # a control
    assert same(gptq(W, H, 3, damping=1e9), rtn(W, 3))  # the limit
    with pytest.raises(InputError, match="not positive definite"):
        gptq(W, H, 3, damping=0)


@pytest.mark.parametrize("group", [None, 20])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_gptq_has_a_smaller_error_than_rtn_on_the_inputs_that_it_saw(bits, group):
    W, X = layer()
    for act_order in (False, True):
        found = gptq(W, hessian(X), bits, group, act_order)
        assert error(W, found, X) < 0.8 * error(W, rtn(W, bits, group), X)


def test_hessians_of_several_batches_add_up():
    X = layer()[1].view(10, 30, I)
    parts = sum(hessian(part) for part in X)
    assert torch.allclose(hessian(X), parts, rtol=1e-12) and parts.dtype == torch.float64
    w = draw(I).double().requires_grad_()
    second = torch.autograd.functional.hessian(lambda w: (X.double() @ w).square().sum(), w)
    assert torch.allclose(hessian(X), second)


# --- AWQ ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, 32])
def test_awq_with_alpha_0_is_rtn_and_every_alpha_leaves_the_function_alone(group):
    W, X = layer()
    for alpha in (0, 0.5, 0.95):
        columns = rounding.awq_columns(X, alpha)
        exact = (X / columns).double() @ (W * columns).double().T
        assert torch.allclose(exact, X.double() @ W.double().T, atol=1e-4)
        assert float(columns.max() * columns.min()) == pytest.approx(1, rel=1e-5)
        assert same(rtn(W * columns, 3, group), rtn(W, 3, group)) == (alpha == 0)
    level = X.sign()  # all columns are equally large: there is nothing to choose
    assert torch.equal(dequantize(awq(W, level, 3, group)), dequantize(rtn(W, 3, group)))


@pytest.mark.parametrize("bits", [4, 3, 2])
def test_awq_takes_the_best_of_its_grid(bits):
    W, X = layer()
    X[:, 17] *= 30
    tried = [rounding.awq_columns(X, step / 20) for step in range(20)]
    errors = [error(W, rtn(W * s, bits)._replace(columns=s), X) for s in tried]
    found = awq(W, X, bits)
    assert error(W, found, X) == min(errors) < errors[0] == error(W, rtn(W, bits), X)
    assert torch.equal(found.columns, tried[errors.index(min(errors))])
    assert found.columns.argmax() == 17
    assert error(W, found._replace(columns=None), X) > error(W, found, X)  # a control


# --- AdaRound -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits, group", [(4, None), (3, 20), (2, None)])
def test_adaround_takes_floor_or_ceiling_and_is_never_worse_than_rtn(bits, group):
    W, X = layer()
    found, nearest = adaround(W, X, bits, group, steps=200), rtn(W, bits, group)
    assert torch.equal(found.scales, nearest.scales) and torch.equal(found.zeros, nearest.zeros)
    scales, zeros = rounding.spread(nearest)
    exact = W / scales + zeros
    low, high = (each.clamp(0, 2**bits - 1) for each in (exact.floor(), exact.ceil()))
    assert ((found.codes == low) | (found.codes == high)).all()
    rows = [rounding.row_errors(W, each, X) for each in (found, nearest)]
    assert (rows[0] <= rows[1]).all()
    assert rows[0].sum() < 0.8 * rows[1].sum()
    for other in (1 - low % 2, found.codes.flip(0)):  # a control: other codes are neither
        assert not ((other == low) | (other == high)).all()


def test_adaround_without_a_step_is_rtn_and_a_seed_repeats_it():
    W, X = layer()
    assert same(adaround(W, X, 3, steps=0), rtn(W, 3))
    once, again, other = (adaround(W, X, 3, steps=40, seed=seed) for seed in (0, 0, 1))
    assert same(once, again) and not same(once, other)


def test_adaround_learns_where_gradients_are_switched_off():
    W, X = layer()
    with torch.inference_mode():
        found = adaround(W.clone(), X.clone(), 3, steps=40)
    assert same(found, adaround(W, X, 3, steps=40)) and not same(found, rtn(W, 3))


# --- QuIP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 12, 37, 101, 192, 672])
def test_a_turn_is_orthogonal_and_is_undone(n):
    turn = rounding.random_turn(n, torch.Generator().manual_seed(n))
    Q = rounding.turned(torch.eye(n, dtype=torch.float64), turn).T
    assert (Q @ Q.T - torch.eye(n)).abs().max() < 1e-13
    x = draw(3, 2, n).double()
    assert (rounding.turned(x, turn) - x @ Q.T).abs().max() < 1e-13
    assert (rounding.turned_back(rounding.turned(x, turn), turn) - x).abs().max() < 1e-13
    p = len(turn.left)
    assert p * len(turn.right) == n and p == max(
        p for p in range(1, n + 1) if not n % p and p * p <= n
    )
    if n < 200:
        dense = kronecker(*(part.tolist() for part in turn))
        assert np.abs(Q.numpy() - dense).max() < 1e-14


def test_turning_and_rescaling_keep_the_error_and_spread_what_stands_out():
    """tr(W H W^T) to 1e-12; the largest weight falls from 40 times the mean square to below 8."""
    W, X = layer()
    W[3, 50] = 60
    of_columns, of_rows = (
        rounding.random_turn(n, torch.Generator().manual_seed(2)) for n in (I, O)
    )

    def turn(W, H):
        W = rounding.turned(rounding.turned(W, of_columns).T, of_rows).T
        return W, rounding.turned(rounding.turned(H, of_columns).T, of_columns)

    def trace(W, H):
        return float((W @ H * W).sum())

    def incoherence(W):
        return float(W.abs().max() / W.square().mean().sqrt())

    H = damped(hessian(X))
    columns, scaled, H_scaled = rounding.rescaled(W, hessian(X))
    turned, H_turned = turn(scaled, H_scaled)
    exact = trace(W.double(), H)
    assert trace(scaled, H_scaled) == pytest.approx(exact, rel=1e-12)
    assert trace(turned, H_turned) == pytest.approx(exact, rel=1e-12)
    assert abs(trace(turned, H_scaled) / exact - 1) > 0.1  # a control: H not turned
    before, after = incoherence(W.double()), incoherence(turn(W.double(), H)[0])
    assert before > 30 and after < 8
    sizes = [float(H.trace() * W.square().sum()), float(H_scaled.trace() * scaled.square().sum())]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("bits", [4, 2])
def test_ldlq_is_gptq_in_the_reverse_order(bits):
    """0 differences, for any block. A control: gptq in the same order."""
    W, X = layer()
    H = hessian(X)
    grid = rtn(W, bits)
    for block in (1, 13, 128):
        found = rounding.ldlq(W / grid.scales + grid.zeros, damped(H), bits, block)
        reverse = gptq(W.flip(1), H.flip(0, 1), bits).codes.flip(1)
        assert torch.equal(found, reverse)
        assert not torch.equal(found, gptq(W, H, bits).codes)


def test_the_factor_of_ldlq_is_that_of_elimination():
    H = damped(hessian(layer()[1]))
    L = rounding.cholesky_(H.clone().mT)
    L = L / L.diagonal()
    assert np.abs(L.numpy() - unit_lower(H.numpy())).max() < 1e-12 * L.abs().max()


@pytest.mark.parametrize("bits", [4, 2])
def test_quip_gives_the_codes_of_its_definition(bits):
    """Golden: dense turns, elimination in place of Cholesky, one number at a time."""
    W, X = map(torch.tensor, case(0))
    found, golden = quip(W, hessian(X), bits, seed=5), GOLDEN[f"QuIP, {bits} bits"]
    for turn, stored in zip(found.turns, GOLDEN["QuIP's turns"], strict=True):
        for part, expected in zip(turn, stored, strict=True):
            assert np.abs(part.numpy() - np.array(expected)).max() < 1e-12
    assert found.codes.tolist() == golden["codes"]
    assert found.scales.flatten().tolist() == pytest.approx([golden["scale"]] * len(W), rel=1e-6)
    assert quip(W, hessian(X), bits, seed=6).codes.tolist() != golden["codes"]


def test_quip_comes_back_close_to_the_weights_and_beats_rtn_at_two_bits():
    W, X = layer()
    X[:, 11] *= 20
    W[5, 60] = 30
    two, four = (error(W, quip(W, hessian(X), bits), X) for bits in (2, 4))
    assert four < two / 5 < error(W, rtn(W, 2), X) / 20
    unturned = quip(W, hessian(X), 4)._replace(turns=None)
    assert error(W, unturned, X) > error(W, rtn(W, 2), X)  # a control


# --- The border -----------------------------------------------------------------------------------


@pytest.mark.parametrize("call, message", [
    (lambda W, X: rtn(W[0], 4), r"W is \(101,\): expected a matrix"),
    (lambda W, X: rtn(W.long(), 4), "expected a matrix of floats"),
    (lambda W, X: rtn("W", 4), "expected a matrix"),
    (lambda W, X: rtn(W / 0, 4), "W has NaN or infinity"),
    (lambda W, X: rtn(W, 9), "bits is 9: expected 2 to 8"),
    (lambda W, X: rtn(W, 1), "bits is 1: expected 2 to 8"),
    (lambda W, X: rtn(W, 2.5), "bits is 2.5: expected a whole number"),
    (lambda W, X: rtn(W, 4, 0), "group is 0: expected 1 or more"),
    (lambda W, X: gptq(W, X, 4), r"H is \(300, 101\): expected \(101, 101\)"),
    (lambda W, X: gptq(W, hessian(X) / 0, 4), "H has NaN or infinity"),
    (lambda W, X: gptq(W, -hessian(X), 4), "not positive definite"),
    (lambda W, X: quip(W, hessian(X)[1:], 4), "H is"),
    (lambda W, X: quip(W, -hessian(X), 4), "not positive definite"),
    (lambda W, X: awq(W, X.T, 4), r"X is \(101, 300\): expected inputs \[..., 101\]"),
    (lambda W, X: adaround(W, X[:0], 4), "expected inputs"),
    (lambda W, X: adaround(W, X / 0, 4), "X has NaN or infinity"),
])  # fmt: skip
def test_what_no_method_can_round_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(*layer())
