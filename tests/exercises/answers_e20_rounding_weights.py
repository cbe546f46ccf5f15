"""Answers to the exercises of notebook 20, apart from the checkers' own."""

import itertools
import math

import torch

# --- 20.1 -----------------------------------------------------------------------------------------


def row_by_row(W, bits):
    codes, scales, zeros = [], [], []
    for row in W.tolist():
        low, high = min(0.0, *row), max(0.0, *row)
        scale = (high - low) / (2**bits - 1)
        zero = round(-low / scale)
        codes.append([min(max(round(w / scale) + zero, 0), 2**bits - 1) for w in row])
        scales.append(scale)
        zeros.append(float(zero))
    return torch.tensor(codes), torch.tensor(scales), torch.tensor(zeros)


def by_torch(W, bits):
    low, high = W.amin(1).clamp(max=0), W.amax(1).clamp(min=0)
    scales = (high - low) / (2**bits - 1)
    zeros = (-low / scales).round()
    kept = torch.fake_quantize_per_channel_affine(W, scales, zeros.int(), 0, 0, 2**bits - 1)
    codes = (kept / scales[:, None]).round() + zeros[:, None]
    return codes.to(torch.uint8), scales[:, None], zeros[:, None]


def around_the_middle(W, bits):
    scales = 2 * W.abs().amax(1) / (2**bits - 1)
    zeros = torch.full_like(scales, 2.0 ** (bits - 1))
    codes = ((W / scales[:, None]).round() + zeros[:, None]).clamp(0, 2**bits - 1)
    return codes, scales, zeros


def without_zero(W, bits):
    low, high = W.amin(1), W.amax(1)
    scales = (high - low) / (2**bits - 1)
    zeros = (-low / scales).round()
    codes = ((W / scales[:, None]).round() + zeros[:, None]).clamp(0, 2**bits - 1)
    return codes, scales, zeros


def a_scale_for_each_column(W, bits):
    low, high = W.amin(0).clamp(max=0), W.amax(0).clamp(min=0)
    scales = (high - low) / (2**bits - 1)
    zeros = (-low / scales).round()
    return ((W / scales).round() + zeros).clamp(0, 2**bits - 1), scales, zeros


def from_the_least(W, bits):
    codes, scales, zeros = row_by_row(W, bits)
    low = W.amin(1, keepdim=True).clamp(max=0)
    return torch.round((W - low) / scales[:, None]), scales, zeros


def codes_only(W, bits):
    return row_by_row(W, bits)[0]


# --- 20.2 -----------------------------------------------------------------------------------------


def with_loops(w, H):
    least, found = math.inf, None
    for ways in itertools.product(*((math.floor(x), math.floor(x) + 1) for x in w.tolist())):
        q = torch.tensor(ways, dtype=w.dtype)
        if (loss := float((q - w) @ H @ (q - w))) < least:
            least, found = loss, q
    return found


def nearest(w, H):
    return torch.where(w - w.floor() < 0.5, w.floor(), w.ceil())


def up_from_the_nearest(w, H):
    ways = torch.tensor(list(itertools.product((0, 1), repeat=len(w)))).to(w)
    d = w.round() + ways - w
    return (d + w)[((d @ H) * d).sum(1).argmin()]


def of_the_columns_alone(w, H):
    ways = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * len(w)).view(-1, len(w))
    d = w.floor() + ways - w
    return (d + w)[(d.square() * H.diag()).sum(1).argmin()]


def greedy(w, H):
    q = w.floor()
    for i in range(len(w)):
        up = q.clone()
        up[i] += 1
        if (up - w) @ H @ (up - w) < (q - w) @ H @ (q - w):
            q = up
    return q


# --- 20.3 -----------------------------------------------------------------------------------------


def in_place(W, u, scale, zero, top):
    rest, codes = W.clone(), torch.clamp(torch.round(W[:, 0] / scale) + zero, 0, top)
    rest -= ((W[:, 0] - (codes - zero) * scale) / u[0])[:, None] * u
    return codes.to(torch.uint8), rest[:, 1:]


def added(W, u, scale, zero, top):
    codes = ((W[:, 0] / scale).round() + zero).clamp(0, top)
    e = (W[:, 0] - scale * (codes - zero)) / u[0]
    return codes, W[:, 1:] + e[:, None] * u[None, 1:]


def all_columns(W, u, scale, zero, top):
    codes = ((W[:, 0] / scale).round() + zero).clamp(0, top)
    e = (W[:, 0] - scale * (codes - zero)) / u[0]
    return codes, W - e[:, None] * u[None]


def not_normalised(W, u, scale, zero, top):
    codes = ((W[:, 0] / scale).round() + zero).clamp(0, top)
    return codes, W[:, 1:] - torch.outer(W[:, 0] - scale * (codes - zero), u[1:])


def in_steps(W, u, scale, zero, top):
    codes = ((W[:, 0] / scale).round() + zero).clamp(0, top)
    e = (W[:, 0] / scale - (codes - zero)) / u[0]
    return codes, W[:, 1:] - torch.outer(e, u[1:])


def uncut_error(W, u, scale, zero, top):
    whole = (W[:, 0] / scale).round()
    return (whole + zero).clamp(0, top), W[:, 1:] - torch.outer(
        (W[:, 0] - whole * scale) / u[0], u[1:]
    )


# --- 20.4 -----------------------------------------------------------------------------------------


def by_kl_div(exact, found):
    p, q = exact.log_softmax(-1), found.log_softmax(-1)
    divergence = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    return divergence, (exact.argmax(1) != found.argmax(1)).float().mean()


def by_hand(exact, found):
    total, flips = 0.0, 0
    for a, b in zip(exact.tolist(), found.tolist(), strict=True):
        top_a, top_b = max(a), max(b)
        sum_a = sum(math.exp(x - top_a) for x in a)
        sum_b = sum(math.exp(x - top_b) for x in b)
        for x, y in zip(a, b, strict=True):
            ln_p, ln_q = x - top_a - math.log(sum_a), y - top_b - math.log(sum_b)
            total += math.exp(ln_p) * (ln_p - ln_q)
        flips += a.index(top_a) != b.index(top_b)
    return total / len(exact), flips / len(exact)


def arguments_exchanged(exact, found):
    p, q = exact.log_softmax(-1), found.log_softmax(-1)
    divergence = torch.nn.functional.kl_div(p, q, reduction="batchmean", log_target=True)
    return divergence, (exact.argmax(1) != found.argmax(1)).float().mean()


def mean_of_all(exact, found):
    p, q = exact.log_softmax(-1), found.log_softmax(-1)
    divergence = (p.exp() * (p - q)).mean()
    return divergence, (exact.argmax(1) != found.argmax(1)).float().mean()


def that_stay(exact, found):
    return by_hand(exact, found)[0], (exact.argmax(1) == found.argmax(1)).float().mean()


RIGHT = {
    "e20_rounding_weights.rtn": [row_by_row, by_torch],
    "e20_rounding_weights.best": [with_loops],
    "e20_rounding_weights.gptq_step": [in_place],
    "e20_rounding_weights.apart": [by_kl_div, by_hand],
}
OTHERS = {
    "e20_rounding_weights.rtn": [
        (around_the_middle, ""),
        (without_zero, "0 has to be in it"),
        (a_scale_for_each_column, "one scale and one zero for each row"),
        (from_the_least, "0 may fall between two codes"),
        (codes_only, "a tuple of three tensors"),
    ],
    "e20_rounding_weights.best": [
        (nearest, "its nearest whole number"),
        (up_from_the_nearest, "added to the nearest"),
        (of_the_columns_alone, "only the diagonal of H"),
        (greedy, ""),
    ],
    "e20_rounding_weights.gptq_step": [
        (added, "the wrong sign"),
        (all_columns, "the first column, too"),
        (not_normalised, "not divided by u[0]"),
        (in_steps, "the error is in steps"),
        (uncut_error, ""),
    ],
    "e20_rounding_weights.apart": [
        (arguments_exchanged, "are exchanged"),
        (mean_of_all, "over the tokens, too"),
        (that_stay, "the share that stays"),
    ],
}
