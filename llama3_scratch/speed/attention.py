"""Attention by PyTorch's fused kernel."""

from torch.nn import functional


def attend_fused(query, keys, values, mask):
    """[..., T, N, H], [..., S, K, H], [..., S, K, H], [T, S] -> [..., T, N, H]: `attend`, fused.

    PyTorch's `scaled_dot_product_attention`, equal to `attend` up to rounding. The G query heads
    that share a key/value head are passed as G x T queries of one head, so its keys and values are
    read once and never repeated. Without a batch dimension PyTorch takes its slow path, so there is
    always one.
    """
    K = keys.shape[-2]
    grouped = query.unflatten(-2, (K, -1)).movedim(-4, -2)  # [..., K, G, T, H]
    q, k, v = (
        x.reshape(-1, *x.shape[-3:])
        for x in (grouped.flatten(-3, -2), keys.transpose(-3, -2), values.transpose(-3, -2))
    )
    G, T, _ = grouped.shape[-3:]
    group_mask = mask.type_as(query).expand(G, *mask.shape).reshape(G * T, -1)  # [G*T, S]
    outputs = functional.scaled_dot_product_attention(q, k, v, group_mask).view(grouped.shape)
    return outputs.movedim(-2, -4).flatten(-3, -2)
