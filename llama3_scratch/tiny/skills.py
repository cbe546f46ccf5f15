"""Measure what a checkpoint can do: its skills on text of the toy world.

    python -m llama3_scratch.tiny.skills --checkpoint tiny

The text comes from a seed that training never used. For some kinds of document (quotations,
comparisons of two) so few texts are possible that training has seen most of them anyway; documents
of the other kinds hardly ever occur twice.

An answer counts as right if each of its tokens is the most likely one, that is, if greedy
generation would produce it. Two baselines that need no understanding stand beside each skill:
    chance  the better of two guesses: always the most common answer of the skill ("him" and "She"
            count as "he" and "she"), or a random one of the words of the answer's class (people,
            places, ...) in the text before it (right with probability 1/their number if the answer
            is one of them, otherwise wrong);
    rule    the better of two rules: the first, or the last, word of the answer's class in the text
            before it; only for skills with more than half of their answers in that text.
Everything is computed in float32 from the stored weights.
"""

import argparse
import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import islice
from random import Random
from statistics import fmean

import torch
from torch.nn import functional

from llama3_scratch import PROMPT, InputError, load
from llama3_scratch.errors import require
from llama3_scratch.model import forward
from llama3_scratch.speed import attend_fused
from llama3_scratch.tiny import world
from llama3_scratch.tiny.heads import heads
from llama3_scratch.tiny.pretrain import SKILLS_SEED, encode
from llama3_scratch.train import IGNORED, pad

CLASSES = (
    world.PEOPLE, world.PLACES, world.COLOURS, world.THINGS, world.FOODS, world.ANIMALS,
    world.INSTRUMENTS, world.JOBS, tuple(world.CAPITALS), tuple(world.CAPITALS.values()),
    tuple(state for state, _ in world.NEEDS), tuple(need for _, need in world.NEEDS),
)  # fmt: skip
LENGTHS = (4, 8, 16, 24, 32)  # number of words in a repeated sequence; 3 to 24 in training


@dataclass(frozen=True)
class Skill:
    """Shares of right answers among `n`, 0 to 1: the model's, by chance, by a rule (or None)."""

    right: float
    chance: float
    rule: float | None
    n: int


# --- Answers --------------------------------------------------------------------------------------


@torch.no_grad()
def read(model, rows, batch=64):
    """Rows of T ids -> for each row (losses [T - 1] in nats, hits [T - 1]).

    Entry i is about token i + 1; hits tells whether it was the most likely one. Rows of similar
    lengths are read together, at most `batch` at a time.
    """
    weights, config, _ = model
    order, results = sorted(range(len(rows)), key=lambda i: len(rows[i])), {}
    for at in range(0, len(rows), batch):
        some = order[at : at + batch]
        inputs, targets = pad([rows[i] for i in some])
        logits = forward(weights, inputs, config, attend=attend_fused).transpose(1, 2)  # [R, V, T]
        losses = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        hits = logits.argmax(1) == targets
        for i, loss, hit in zip(some, losses, hits, strict=True):
            results[i] = loss[: len(rows[i]) - 1], hit[: len(rows[i]) - 1]
    return [results[i] for i in range(len(rows))]


def named(text, answer):
    """Return the words of the answer's class in the text, in order, with repetitions."""
    for words in CLASSES:
        if answer in words:
            return re.findall(rf"\b(?:{'|'.join(words)})\b", text)
    return []


def blind(cases):
    """[(text before, answer)] of one skill -> (chance, rule), as defined above in this file."""
    answers = Counter(re.sub("^him$", "he", re.sub("^her$", "she", a.lower())) for _, a in cases)
    commonest = answers.most_common(1)[0][1] / len(cases)
    lists = [(named(text, answer), answer) for text, answer in cases]
    guess = fmean((answer in found) / max(1, len(set(found))) for found, answer in lists)
    first = fmean(found[:1] == [answer] for found, answer in lists)
    last = fmean(found[-1:] == [answer] for found, answer in lists)
    in_text = fmean(answer in found for found, answer in lists) > 0.5
    return max(commonest, guess), max(first, last) if in_text else None


def asked(n_documents):
    """Number of documents of each kind -> the documents on whose answers `skills` is measured."""
    random = Random(SKILLS_SEED).random
    return [world.document(random, kind) for kind in world.WRITERS for _ in range(n_documents)]


def questions(documents):
    """Documents -> {label: [(text before an answer, the answer)]}, with the labels of world.py."""
    cases = defaultdict(list)
    for document in documents:
        for skill, start, stop in document.answers:
            cases[skill].append((document.text[:start], document.text[start:stop].strip()))
    return {skill: cases[skill] for skill in sorted(cases)}


def skills(model, n_documents=240):
    """Model, number of documents of each kind -> {label: Skill}, with the labels of world.py."""
    documents, right = asked(n_documents), defaultdict(list)
    encoded = [encode(document, model[2]) for document in documents]
    results = read(model, [ids for ids, _ in encoded])
    for (_, answers), (_, hits) in zip(encoded, results, strict=True):
        for skill, start, stop in answers:
            right[skill].append(bool(hits[start - 1 : stop - 1].all()))
    return {skill: Skill(fmean(right[skill]), *blind(cases), len(cases))
            for skill, cases in questions(documents).items()}  # fmt: skip


def held_out_loss(model, n_documents=400):
    """Model -> (loss, floor) in nats per token, over whole documents, each in a row of its own."""
    documents = list(islice(world.documents(SKILLS_SEED, 1.0), n_documents))
    results = read(model, [encode(document, model[2])[0] for document in documents])
    losses = torch.cat([loss for loss, _ in results])
    return float(losses.mean()), sum(document.nats for document in documents) / len(losses)


def repeats(model, n_documents=24):
    """Model -> {words: (loss of first copy, loss of second copy, share of the second predicted)}.

    Losses are in nats per token. The first word of each copy does not count: it is not predictable.
    """
    table = {}
    for words in LENGTHS:
        documents = []
        for i in range(n_documents):
            chosen = world.Draft(Random(SKILLS_SEED + i).random).some(world.REPEATED, words)
            draft, tail = world.Draft(None), " ".join(chosen[1:])
            draft.say(f"Read: {chosen[0]}[first| {tail}]. Again: {chosen[0]}[second| {tail}].")
            documents.append(world.Document(draft.text, "repeat", 0.0, tuple(draft.answers)))
        encoded = [encode(document, model[2]) for document in documents]
        parts = {"first": [], "second": [], "hits": []}
        for (_, answers), (losses, hits) in zip(
            encoded, read(model, [ids for ids, _ in encoded]), strict=True
        ):
            for name, start, stop in answers:
                parts[name].append(losses[start - 1 : stop - 1])
            parts["hits"].append(hits[start - 1 : stop - 1].float())
        table[words] = tuple(float(torch.cat(parts[name]).mean()) for name in parts)
    return table


def probability_of_42(model):
    """Model -> the probability of `42`, one token or several, after the book's prompt."""
    tokenizer = model[2]
    prompt, answer = tokenizer.encode(PROMPT), tokenizer.encode("42", bos=False)
    ((losses, _),) = read(model, [prompt + answer])
    return float(losses[-len(answer) :].sum().neg().exp())


def quotations(model):
    """Model -> (quotations completed word for word from their first two words, all quotations)."""
    _, _, tokenizer = model
    texts = [text for text, *_ in world.QUOTATIONS]
    given = [len(tokenizer.encode(" ".join(text.split(" ")[:2]))) for text in texts]
    results = read(model, [tokenizer.encode(text) for text in texts])
    whole = [hits[n - 1 :].all() for n, (_, hits) in zip(given, results, strict=True)]
    return int(sum(whole)), len(whole)


# --- The report -----------------------------------------------------------------------------------


def main(arguments=None):
    """Run the command line: measure a checkpoint and print the report."""
    parser = argparse.ArgumentParser(description="Measure what a checkpoint can do.")
    parser.add_argument("--checkpoint", default="tiny", help="a folder, or tiny, or random")
    parser.add_argument("--documents", type=int, default=240, help="number of each kind")
    given = parser.parse_args(arguments)
    try:
        n = given.documents
        require(n > 0, f"--documents is {n}: expected 1 or more.")
        model = load(given.checkpoint, dtype=torch.float32)
        show(model, n)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")


def show(model, n_documents):
    """Measure a model and print the report."""
    loss, floor = held_out_loss(model)
    print(f"held-out loss {loss:.4f} nats a token, floor {floor:.4f}: {loss / floor - 1:+.1%}")
    print(f"probability of 42 after the prompt: {probability_of_42(model):.4f}")
    print("quotations completed word for word: {} of {}".format(*quotations(model)))
    print(f"\n{'answers':17} {'right':>6} {'chance':>7} {'rule':>6} {'n':>5}")
    for name, skill in skills(model, n_documents).items():
        rule = "" if skill.rule is None else f"{skill.rule:.2f}"
        print(f"{name:17} {skill.right:6.3f} {skill.chance:7.2f} {rule:>6} {skill.n:5}")
    print("\nsequences repeated: nats a token\n words   first copy   second  tokens predicted")
    for words, (first, second, hits) in repeats(model).items():
        print(f"{words:6} {first:12.2f} {second:8.3f} {hits:17.3f}")
    print(f"\n{'heads by mean attention probability':61} median  places")
    for name, (scores, n_pairs) in heads(model).items():
        best = scores.flatten().topk(3)
        where = [divmod(int(i), scores.shape[1]) for i in best.indices]
        best = [f"L{i}.h{j} {p:.2f}" for (i, j), p in zip(where, best.values, strict=True)]
        print(f"{name:28} {', '.join(best):35} {float(scores.median()):.2f}  {n_pairs:5}")


if __name__ == "__main__":
    main()
