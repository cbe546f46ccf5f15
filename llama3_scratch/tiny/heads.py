"""What each head does: its attention between tokens that the generator knows to be related.

    python -m llama3_scratch.tiny.heads build/tiny-history

This command ablates every head of the checkpoints that `make tiny-history` makes, and writes
`ablations.json`, which ships with the package; notebook 13 reads it.
"""

import argparse
import json
import re
import sys
from itertools import accumulate, count
from pathlib import Path
from random import Random

import torch

from llama3_scratch.checkpoint import load
from llama3_scratch.model import attend, block, feed_forward, forward
from llama3_scratch.tiny import world
from llama3_scratch.tiny.pretrain import SKILLS_SEED, encode
from llama3_scratch.watch import watch

SHIPPED = Path(__file__).parent / "ablations.json"


def pairs_previous(ids, **_):
    """Each token attends to the one before it; not to begin_of_text, where many heads rest."""
    return [(t, t - 1) for t in range(2, len(ids))]


def pairs_first(ids, **_):
    """Each token attends to begin_of_text."""
    return [(t, 0) for t in range(1, len(ids))]


def pairs_induction(ids, answers, **_):
    """A token of a second copy attends to the token that followed it in the first copy."""
    pairs = []
    for skill, start, stop in answers:
        if skill == "repeat":
            copy = ids[start - 1 : stop]
            first = next(i for i in range(start) if ids[i : i + len(copy)] == copy)
            pairs += [(start - 1 + i, first + i + 1) for i in range(stop - start)]
    return pairs


def pairs_pronoun(ids, answers, places, **_):
    """The token before a pronoun attends to the last name before it that the pronoun fits."""
    pairs = []
    for skill, start, stop in answers:
        if skill == "pronoun":
            people = world.SHE if places.text(start, stop).strip().lower() == "she" else world.HE
            fitting = places.find("|".join(people), start)
            pairs += [(start - 1, fitting[-1][1])] if fitting else []
    return pairs


def pairs_answer(skill):
    """The token before an answer attends to this answer in the text, if it occurs there once."""

    def pairs_of(ids, answers, places, **_):
        pairs = []
        for label, start, stop in answers:
            if label == skill:
                found = places.find(re.escape(places.text(start, stop).strip()), start)
                pairs += [(start - 1, found[0][0])] if len(found) == 1 else []
        return pairs

    return pairs_of


class Places:
    """Convert between positions of ids and positions of characters in one document."""

    def __init__(self, ids, tokenizer):
        pieces = [tokenizer.token_bytes(token).decode("latin-1") for token in ids[1:]]
        self.starts = [0, *accumulate(map(len, pieces), initial=0)]  # [i]: start of id i
        self.whole = "".join(pieces)

    def text(self, start, stop):
        """Return the text of ids[start:stop]."""
        return self.whole[self.starts[start] : self.starts[stop]]

    def find(self, pattern, stop):
        """Return the positions (first id, last id) of all whole-word matches before id `stop`."""

        def position(character):
            return max(i for i in range(1, len(self.starts)) if self.starts[i] <= character)

        matches = re.finditer(rf"\b(?:{pattern})\b", self.whole[: self.starts[stop]])
        return [(position(match.start()), position(match.end() - 1)) for match in matches]


PATTERNS = {  # name: (kind of documents, function that returns the pairs (query, key))
    "previous token": ("story", pairs_previous),
    "rest on the first token": ("story", pairs_first),
    "induction": ("repeat", pairs_induction),
    "pronoun to name": ("needs", pairs_pronoun),
    "question to answer": ("facts", pairs_answer("fact")),
}


def marked(text, pattern, tokenizer):
    """A text whose answers are marked, `[skill| answer]`, and a pattern's name -> ids, pairs."""
    draft = world.Draft(None)
    draft.say(text)
    ids, answers = encode(
        world.Document(draft.text, "by hand", 0.0, tuple(draft.answers)), tokenizer
    )
    places = Places(ids[:-1], tokenizer)  # without end_of_text
    return ids[:-1], PATTERNS[pattern][1](ids=ids[:-1], answers=answers, places=places)


def lists(tokenizer, n_lists=16, n_words=12, seed=4):
    """Lists of random words, each read twice: "Read: a b c. Again: a b c." -> ids [n_lists, T],
    the positions of the words in the first copy [n_words] and in the second [n_words].

    Each word is one token. A tokenizer that has too few such words lends any of its tokens.
    """
    spaced = [tokenizer.encode(f" {word}", bos=False) for word in world.OTHER_WORDS]
    single = [ids[0] for ids in spaced if len(ids) == 1]
    pool = torch.tensor(single if len(single) >= n_words else range(256))
    generator = torch.Generator("cpu").manual_seed(seed)
    orders = [torch.randperm(len(pool), generator=generator, device="cpu") for _ in range(n_lists)]
    words = pool[torch.stack(orders)[:, :n_words].to(pool.device)]
    read, again, end = (
        torch.tensor(tokenizer.encode(text, bos=text == "Read:")).expand(n_lists, -1)
        for text in ("Read:", ". Again:", ".")
    )
    first = read.shape[1] + torch.arange(n_words)
    return torch.cat([read, words, again, words, end], 1), first, first + n_words + again.shape[1]


def without(*ablated):
    """Heads (layer, head) -> an `attend` for one `forward`, in which their outputs are zero."""
    calls = count()  # `forward` calls it once for each layer, layer 0 first

    def attend_without(query, keys, values, mask):
        i = next(calls)
        silent = [head for layer, head in ablated if layer == i]
        outputs = attend(query, keys, values, mask).clone()  # [..., T, N, H]
        outputs[..., silent, :] = 0
        return outputs

    return attend_without


def head_scores(probabilities, pairs):
    """Probabilities [L, N, T, T], pairs (query, key) -> [L, N]: their sum over these pairs."""
    queries, keys = zip(*pairs, strict=True)
    return probabilities[..., list(queries), list(keys)].sum(-1)


@torch.no_grad()
def heads(model, n_documents=60):
    """Model -> {pattern: ([L, N] mean attention probabilities, number of pairs in the mean)}."""
    weights, config, tokenizer = model
    table = {}
    for name, (kind, pairs_of) in PATTERNS.items():
        random, n_pairs = Random(SKILLS_SEED).random, 0
        total = torch.zeros(config.n_layers, config.n_heads)
        for _ in range(n_documents):
            ids, answers = encode(world.document(random, kind), tokenizer)
            pairs = pairs_of(ids=ids, answers=answers, places=Places(ids, tokenizer))
            if pairs:
                with watch(attend) as seen:
                    forward(weights, torch.tensor(ids), config)
                probabilities = torch.stack([call["probabilities"] for call in seen])
                total, n_pairs = total + head_scores(probabilities, pairs), n_pairs + len(pairs)
        table[name] = total / max(n_pairs, 1), n_pairs
    return table


# --- Texts whose parts stand at known positions, and experiments on them (notebook 13) ------------


def single_tokens(words, tokenizer, at_least):
    """Words -> the ids of those that are one token after a space.

    A tokenizer that has fewer than `at_least` such words lends any of its tokens.
    """
    ids = [tokenizer.encode(f" {word}", bos=False) for word in words]
    single = [one[0] for one in ids if len(one) == 1]
    return torch.tensor(single if len(single) >= at_least else range(max(at_least, 24)))


def different(pool, n_rows, n_columns, seed):
    """Ids [n], a seed -> [n_rows, n_columns]: each row holds different ids, in random order."""
    generator = torch.Generator("cpu").manual_seed(seed)
    orders = [torch.randperm(len(pool), generator=generator, device="cpu") for _ in range(n_rows)]
    return pool[torch.stack(orders)[:, :n_columns].to(pool.device)]


def filled(template, slots, tokenizer):
    """A text with slots and {name: ids [R]} -> ids [R, T], {name: positions of the slot}.

    A slot is written " {name}", with its space, and takes one token, the same in all its places:
    "The {x} is {y}. What colour is the {x}? The {x} is".
    """
    parts = re.split(r" \{(\w+)\}", template)
    n_rows, columns, places = len(next(iter(slots.values()))), [], {}
    for i, part in enumerate(parts):
        if i % 2:
            places.setdefault(part, []).append(len(columns))
            columns.append(slots[part])
        elif part or i == 0:
            ids = tokenizer.encode(part, bos=i == 0)
            columns += torch.tensor(ids)[:, None].expand(-1, n_rows)
    return torch.stack(columns, 1), places


def instead(given):
    """{(layer, head): outputs [..., T, H]} -> an `attend` for one `forward`, in which these heads
    give these outputs; all other heads give their own."""
    calls = count()  # `forward` calls it once for each layer, layer 0 first

    def attend_instead(query, keys, values, mask):
        i = next(calls)
        outputs = attend(query, keys, values, mask).clone()  # [..., T, N, H]
        for (layer, head), rows in given.items():
            if layer == i:
                outputs[..., head, :] = rows
        return outputs

    return attend_instead


@torch.no_grad()
def contributions(weights, ids, config, token, other):
    """Weights, ids [T], two ids -> [1 + L (N + 1)]: what each part adds to the last row's logit of
    `token` minus that of `other`.

    The parts are the embedding and, layer by layer, what each of the N heads and the feed-forward
    write to the stream. All are divided by the size of the whole row after the last layer, so they
    add up to the difference.
    """
    with watch(block, attend, feed_forward) as seen:
        forward(weights, ids, config)
    embedding = next(call["x"] for call in seen if call["def"] == "block")[-1]
    outputs = [call["return"][-1] for call in seen if call["def"] == "attend"]  # L of [N, H]
    fed = [call["return"][-1] for call in seen if call["def"] == "feed_forward"]  # L of [D]
    parts = [embedding[None]]
    for i, (heads_of, change) in enumerate(zip(outputs, fed, strict=True)):
        wo = weights[f"layers.{i}.attention.wo.weight"].unflatten(1, heads_of.shape)  # [D, N, H]
        parts += [torch.einsum("nh,dnh->nd", heads_of, wo), change[None]]
    row = next(call["return"] for call in reversed(seen) if call["def"] == "block")[-1]
    size = (row.pow(2).mean() + config.norm_eps).sqrt()
    direction = weights["output.weight"][token] - weights["output.weight"][other]
    return torch.cat(parts) / size @ (weights["norm.weight"] * direction)


# --- Which heads a checkpoint needs, over the steps of a training ---------------------------------


def _pronouns(tokenizer, n_texts):
    """Texts of the kind "needs", cut before a pronoun -> ids [R, T], ends [R], right and other
    pronoun [R, 2], pairs (text, query, key) of the pattern."""
    random, rows, people, pairs = Random(SKILLS_SEED + 1).random, [], [], []
    she, he = (tokenizer.encode(f" {word}", bos=False)[0] for word in ("she", "he"))
    while len(rows) < n_texts:
        ids, answers = encode(world.document(random, "needs"), tokenizer)
        start = next((s for name, s, _ in answers if name == "pronoun" and ids[s] in (she, he)), 0)
        if start:
            found = pairs_pronoun(ids, [("pronoun", start, start + 1)], Places(ids, tokenizer))
            pairs += [(len(rows), *pair) for pair in found]
            people.append((ids[start], she + he - ids[start]))
            rows.append(ids[:start])
    longest = max(map(len, rows))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    return padded, torch.tensor([len(row) - 1 for row in rows]), torch.tensor(people), pairs


@torch.no_grad()
def needed(model, n_texts=40):
    """Model -> {pattern: {measure, score [L][N], fall [L][N]}} for two patterns.

    "pronoun to name" is measured by the lead of the right pronoun's logit over the other one's,
    "induction" by minus the loss of the second copies in `lists`, in nats a token. score: the mean
    attention probability where the pattern asks for it. fall: how much less the measure is when a
    head's output is its mean over all positions of these texts, one head at a time.
    """
    weights, config, tokenizer = model
    padded, ends, people, pairs = _pronouns(tokenizer, n_texts)
    texts, first, second = lists(tokenizer)
    every = torch.arange(n_texts)

    def lead(logits):
        leads = logits[every, ends].gather(1, people)
        return float((leads[:, 0] - leads[:, 1]).mean())

    def minus_loss(logits):
        said, due = logits[:, second[:-1]], texts[:, second[1:]]
        return float(said.log_softmax(-1).gather(-1, due[..., None]).mean())

    copies = [(r, int(q), int(k)) for r in range(len(texts))
              for q, k in zip(second[:-1], first[1:], strict=True)]  # fmt: skip
    table = {}
    for name, ids, real, measure, places in (
        ("pronoun to name", padded, torch.arange(padded.shape[1]) <= ends[:, None], lead, pairs),
        ("induction", texts, torch.ones_like(texts).bool(), minus_loss, copies),
    ):
        with watch(attend) as seen:
            whole = measure(forward(weights, ids, config))
        r, q, k = (list(each) for each in zip(*places, strict=True))
        table[name] = {
            "measure": whole,
            "score": [call["probabilities"][r, :, q, k].mean(0).tolist() for call in seen],
            "fall": [[whole - measure(forward(weights, ids, config, attend=instead(
                {(i, j): call["return"][real][:, j].mean(0)})))
                for j in range(config.n_heads)] for i, call in enumerate(seen)],
        }  # fmt: skip
    return table


def main(arguments=None):
    """Run the command line: measure the checkpoints of `make tiny-history`, write a file."""

    def rounded(value):
        if isinstance(value, dict):
            return {key: rounded(each) for key, each in value.items()}
        if isinstance(value, list):
            return [rounded(each) for each in value]
        return round(value, 3)

    parser = argparse.ArgumentParser(description="Ablate every head of a training's checkpoints.")
    parser.add_argument("folder", type=Path, help="folder of seed-0/step-0000 and so on")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="the JSON file to write")
    parser.add_argument("--texts", type=int, default=40, help="texts with a pronoun")
    given = parser.parse_args(arguments)
    runs = []
    for run in sorted(given.folder.glob("seed-*")):
        steps = {int(each.name.removeprefix("step-")): each for each in sorted(run.glob("step-*"))}
        measured = [
            {"step": step, "needed": rounded(needed(load(path, dtype=torch.float32), given.texts))}
            for step, path in steps.items()
        ]
        runs.append({"seed": int(run.name.removeprefix("seed-")), "checkpoints": measured})
    if not runs:
        sys.exit(f"error: there is no seed-0 in {given.folder}: make it with `make tiny-history`.")

    lines = [
        json.dumps({"seed": run["seed"], "step": at["step"], "pattern": name, **values})
        for run in runs
        for at in run["checkpoints"]
        for name, values in at["needed"].items()
    ]
    given.out.write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
