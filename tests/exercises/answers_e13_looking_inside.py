"""Answers to the exercises of notebook 13, apart from the checkers' own."""

import torch

from llama3_scratch import forward
from llama3_scratch.model import block, causal_mask, layer, rms_norm, rotations_at


def lens_by_norm(streams, weights, token, other, config):
    def lead(rows):
        logits = rows @ weights["output.weight"].T
        return logits[:, token] - logits[:, other]

    normed = rms_norm(streams, weights["norm.weight"], config.norm_eps)
    scale = torch.rsqrt(streams[-1].square().mean() + config.norm_eps)
    return torch.stack([lead(normed), lead(streams * scale * weights["norm.weight"])])


def lens_without_eps_of_the_last(streams, weights, token, other, config):
    """Divides the second row by the largest size."""
    first, _ = lens_by_norm(streams, weights, token, other, config)
    sizes = (streams.square().mean(-1) + config.norm_eps).sqrt()
    return torch.stack([first, first * sizes / (2 * sizes[-1])])


def the_lens_twice(streams, weights, token, other, config):
    first, _ = lens_by_norm(streams, weights, token, other, config)
    return torch.stack([first, first])


def head_by_head(embedding, outputs, fed, weights, token, other, config):
    L, N, H = outputs.shape
    parts = [embedding]
    for i in range(L):
        wo = weights[f"layers.{i}.attention.wo.weight"]
        for n in range(N):
            parts.append(wo[:, n * H : (n + 1) * H] @ outputs[i, n])
        parts.append(fed[i])
    row = sum(parts)
    scale = torch.rsqrt(row.square().mean() + config.norm_eps)
    w = weights["output.weight"]
    return torch.stack([(part * scale * weights["norm.weight"]) @ (w[token] - w[other])
                        for part in parts])  # fmt: skip


def heads_of_one_row(embedding, outputs, fed, weights, token, other, config):
    """Normalises each part like the lens."""
    L, N, H = outputs.shape
    parts = [embedding]
    for i in range(L):
        wo = weights[f"layers.{i}.attention.wo.weight"]
        parts += [wo[:, n * H : (n + 1) * H] @ outputs[i, n] for n in range(N)] + [fed[i]]
    normed = rms_norm(torch.stack(parts), weights["norm.weight"], config.norm_eps)
    logits = normed @ weights["output.weight"].T
    return logits[:, token] - logits[:, other]


def attention_as_one_part(embedding, outputs, fed, weights, token, other, config):
    whole = head_by_head(embedding, outputs, fed, weights, token, other, config)
    L, N, _ = outputs.shape
    layers = whole[1:].view(L, N + 1)
    both = torch.stack([layers[:, :N].sum(1), layers[:, N]], 1).flatten()
    return torch.cat([whole[:1], both])


def missed_by_loops(leads_of, outputs, real, skills, head):
    total, count = torch.zeros_like(outputs[0, 0, head]), 0
    for r in range(len(outputs)):
        for t in range(outputs.shape[1]):
            if real[r, t]:
                total, count = total + outputs[r, t, head], count + 1
    changed = outputs.clone()
    changed[:, :, head, :] = total / count
    before, after = leads_of(outputs).tolist(), leads_of(changed).tolist()
    falls = {}
    for skill, one, two in zip(skills, before, after, strict=True):
        falls.setdefault(skill, []).append(one - two)
    means = {skill: sum(each) / len(each) for skill, each in falls.items()}
    worst = max(means, key=means.get)
    return worst, means[worst]


def missed_without_zeroing(leads_of, outputs, real, skills, head):
    changed = outputs.clone()
    changed[:, :, head] = 0
    falls = (leads_of(outputs) - leads_of(changed)).tolist()
    means = {s: [f for f, t in zip(falls, skills, strict=True) if t == s] for s in skills}
    means = {s: sum(each) / len(each) for s, each in means.items()}
    return max(means, key=means.get), max(means.values())


def missed_in_place(leads_of, outputs, real, skills, head):
    before = leads_of(outputs)
    outputs[:, :, head] = outputs[real][:, head].mean(0)
    falls = before - leads_of(outputs)
    names = list(dict.fromkeys(skills))
    means = [falls[[s == name for s in skills]].mean().item() for name in names]
    return names[means.index(max(means))], max(means)


def some_layers(weights, stream, start, stop, config):
    positions = torch.arange(len(stream))
    rotations, mask = rotations_at(positions, config), causal_mask(positions, len(stream))
    for i in range(start, stop):
        stream = block(stream, layer(weights, i), rotations, mask, config)
    return stream


def patch_by_loop(weights, ids, other, i, t, config):
    table = weights["tok_embeddings.weight"]
    ours, theirs = (some_layers(weights, table[each], 0, i, config) for each in (ids, other))
    here = (torch.arange(len(ids)) == t)[:, None]
    end = some_layers(weights, torch.where(here, theirs, ours), i, config.n_layers, config)
    normed = rms_norm(end, weights["norm.weight"], config.norm_eps)
    return normed @ weights["output.weight"].T


def patch_of_a_token(weights, ids, other, i, t, config):
    mixed = ids.clone()
    mixed[t] = other[t]
    return forward(weights, mixed, config)


def patch_that_forgets_to_go_on(weights, ids, other, i, t, config):
    table = weights["tok_embeddings.weight"]
    ours, theirs = (some_layers(weights, table[each], 0, i, config) for each in (ids, other))
    mixed = torch.cat([ours[:t], theirs[t : t + 1], ours[t + 1 :]])
    normed = rms_norm(mixed, weights["norm.weight"], config.norm_eps)
    return normed @ weights["output.weight"].T


def missed_into_a_copy(leads_of, outputs, real, skills, head):
    changed = outputs.clone()
    changed[real][:, head] = outputs[real][:, head].mean(0)  # indexing by `real` copies
    falls = (leads_of(outputs) - leads_of(changed)).tolist()
    means = {s: [f for f, t in zip(falls, skills, strict=True) if t == s] for s in skills}
    means = {s: sum(each) / len(each) for s, each in means.items()}
    return max(means, key=means.get), max(means.values())


def control_by_lists(fit, x, labels, n, order):
    found = []
    for task in (labels, labels.gather(0, order)):
        guesses = fit(x[:n], task[:n])(x[n:])
        hits = [int(a == b) for a, b in zip(guesses.tolist(), task[n:].tolist(), strict=True)]
        found.append(sum(hits) / len(hits))
    return torch.tensor(found)


def control_in_training_only(fit, x, labels, n, order):
    one, two = fit(x[:n], labels[:n]), fit(x[:n], labels[order][:n])
    return torch.stack([(probe(x[n:]) == labels[n:]).float().mean() for probe in (one, two)])


def control_on_training_rows(fit, x, labels, n, order):
    found = []
    for task in (labels, labels[order]):
        found.append((fit(x[:n], task[:n])(x[:n]) == task[:n]).float().mean())
    return torch.stack(found)


RIGHT = {
    "e13_looking_inside.lens": [lens_by_norm],
    "e13_looking_inside.contributions": [head_by_head],
    "e13_looking_inside.missed": [missed_by_loops],
    "e13_looking_inside.patch": [patch_by_loop],
    "e13_looking_inside.control": [control_by_lists],
}
OTHERS = {
    "e13_looking_inside.lens": [
        (the_lens_twice, "both rows are the lens"),
        (lens_without_eps_of_the_last, "both rows should be equal"),
    ],
    "e13_looking_inside.contributions": [
        (heads_of_one_row, "divided by its own size"),
        (attention_as_one_part, "the shape is"),
    ],
    "e13_looking_inside.missed": [
        (missed_without_zeroing, "set to zero"),
        (missed_in_place, "changes its arguments"),
        (missed_into_a_copy, "no lead falls"),
    ],
    "e13_looking_inside.patch": [
        (patch_of_a_token, "exchanges a token of the text"),
        (patch_that_forgets_to_go_on, ""),
    ],
    "e13_looking_inside.control": [
        (control_in_training_only, "counted against the true labels"),
        (control_on_training_rows, "fitted on"),
    ],
}
