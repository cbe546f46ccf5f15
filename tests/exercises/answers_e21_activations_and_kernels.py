"""Answers to the exercises of notebook 21, apart from the checkers' own."""

import torch


def column_by_column(x, W, threshold, product):
    rows = x.reshape(-1, x.shape[-1])
    rest, exact = rows.clone(), torch.zeros(len(rows), len(W))
    for j in range(x.shape[-1]):
        if rows[:, j].abs().max() >= threshold:
            exact = exact + torch.outer(rows[:, j], W[:, j])
            rest[:, j] = 0
    return (exact + product(rest, W)).reshape(*x.shape[:-1], len(W))


def outliers_of_weights(x, W, threshold, product):
    large = W.abs().amax(0) >= threshold
    return x[..., large] @ W[:, large].T + product(torch.where(large, 0, x), W)


def number_by_number(x, W, threshold, product):
    large = torch.where(x.abs() >= threshold, x, 0)
    return large @ W.T + product(x - large, W)


def without_its_columns(x, W, threshold, product):
    size = x.abs().reshape(-1, x.shape[-1]).amax(0)
    few, many = (size >= threshold).nonzero()[:, 0], (size < threshold).nonzero()[:, 0]
    found = x[..., few] @ W[:, few].T
    return found + product(x[..., many], W[:, many]) if len(many) else found


def with_its_own_rounding(x, W, threshold, product):
    large = x.abs().reshape(-1, x.shape[-1]).amax(0) >= threshold
    return x[..., large] @ W[:, large].T + token_by_token(torch.where(large, 0, x), W)


def token_by_token(x, W):
    rows = []
    for token in x.reshape(-1, x.shape[-1]).tolist():
        size = max(map(abs, token))
        codes = [round(127 * number / size) if size else 0 for number in token]
        row = []
        for weights in W.tolist():
            most = max(map(abs, weights))
            other = [round(127 * number / most) if most else 0 for number in weights]
            row.append(sum(map(int.__mul__, codes, other)) * size * most / 127**2)
        rows.append(row)
    return torch.tensor(rows).reshape(*x.shape[:-1], len(W))


def by_tensor(x, W):
    s, t = x.abs().max() / 127, W.abs().amax(1) / 127
    t = t.clamp(min=1e-20)
    return (x / s).round() @ (W / t[:, None]).round().T * s * t


def cut_off(x, W):
    s = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-20)
    t = (W.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-20)
    return (x / s).int().float() @ (W / t).int().float().T * s * t.T[0]


def _rounded(x):
    s = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-20)
    return (x / s).round() * s


def weights_alone(x, W):
    return x @ _rounded(W).T


def activations_alone(x, W):
    return _rounded(x) @ W.T


def without_zeros(x, W):
    s, t = x.abs().amax(-1, keepdim=True) / 127, W.abs().amax(-1, keepdim=True) / 127
    return (x / s).round() @ (W / t.clamp(min=1e-20)).round().T * s * t[:, 0]


def smoothed(norm, readers, largest, alpha):
    s = []
    for j in range(len(norm)):
        in_w = max(abs(float(row[j])) for W in readers for row in W)
        s.append(float(largest[j]) ** alpha * in_w ** (alpha - 1))
    s = torch.tensor(s)
    return norm * s.reciprocal(), [W * s for W in readers]


def reversed_smooth(norm, readers, largest, alpha):
    new, matrices = smoothed(norm, readers, largest, alpha)
    s = norm / new
    return norm * s, [W / s for W in readers]


def of_the_first(norm, readers, largest, alpha):
    s = largest**alpha / readers[0].abs().amax(0) ** (1 - alpha)
    return norm / s, [W * s for W in readers]


def norm_only(norm, readers, largest, alpha):
    return smoothed(norm, readers, largest, alpha)[0], readers


def vector_by_vector(L, K, H, positions, bits, scale_bits):
    one = (H * bits + 7) // 8 + scale_bits // 8
    return sum(positions * K * one for _ in range(L) for _ in ("key", "value"))


def one_of_two(L, K, H, positions, bits, scale_bits):
    return vector_by_vector(L, K, H, positions, bits, scale_bits) // 2


def without_scales(L, K, H, positions, bits, scale_bits):
    return vector_by_vector(L, K, H, positions, bits, 0)


RIGHT = {
    "e21_activations_and_kernels.llm_int8": [column_by_column],
    "e21_activations_and_kernels.w8a8": [token_by_token],
    "e21_activations_and_kernels.smooth": [smoothed],
    "e21_activations_and_kernels.cache_bytes": [vector_by_vector],
}
OTHERS = {
    "e21_activations_and_kernels.llm_int8": [
        (outliers_of_weights, "looked for in the weights"),
        (number_by_number, "single numbers are taken out"),
        (with_its_own_rounding, "`product` is not called"),
        (without_its_columns, "W is rounded without its outlier columns"),
    ],
    "e21_activations_and_kernels.w8a8": [
        (by_tensor, "all tokens share one scale"),
        (cut_off, "the codes are cut off"),
        (weights_alone, "x is not rounded"),
        (activations_alone, "W is not rounded"),
        (without_zeros, "one of zeros there is NaN"),
    ],
    "e21_activations_and_kernels.smooth": [
        (reversed_smooth, "the wrong way round"),
        (of_the_first, "the first matrix only"),
        (norm_only, "the matrices are as they were"),
    ],
    "e21_activations_and_kernels.cache_bytes": [
        (one_of_two, "The cache keeps both"),
        (without_scales, "the scales are missing"),
    ],
}
