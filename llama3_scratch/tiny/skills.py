"""What a checkpoint can do, and which of its heads do it.

    python -m llama3_scratch.tiny.skills --checkpoint tiny

The text is from a seed that training never used. Of some kinds there are so few texts that training
has seen most of them all the same: quotations, comparisons of two. Of the others hardly any comes
twice.

An answer counts as right when the likeliest token is right at every place of it, which is the same
as that greedy generation would write it. Beside each skill stands what is reached blindly:
    chance  the better of two guesses: always the skill's commonest answer (him and She count as he
            and she); or any of the words of the answer's class (people, places, ...) that the text
            before it names (counted as 1/their number where the answer is among them);
    rule    the better of two rules: the first word of the answer's class that the text names, or
            the last one; only for skills whose answers mostly stand in the text.
Everything is computed in float32 from the stored weights.
"""

import argparse
import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import accumulate, islice
from random import Random
from statistics import fmean

import torch
import torch.nn.functional as F

from llama3_scratch import PROMPT, InputError, checkpoint
from llama3_scratch.config import require
from llama3_scratch.model import attend, attend_fused, forward
from llama3_scratch.tiny import world
from llama3_scratch.tiny.train import IGNORED, SKILLS_SEED, encode, pad
from llama3_scratch.watch import watch

CLASSES = (
    world.PEOPLE, world.PLACES, world.COLOURS, world.THINGS, world.FOODS, world.ANIMALS,
    world.INSTRUMENTS, world.JOBS, tuple(world.CAPITALS), tuple(world.CAPITALS.values()),
    tuple(state for state, _ in world.NEEDS), tuple(need for _, need in world.NEEDS),
)  # fmt: skip
LENGTHS = (4, 8, 16, 24, 32)  # words of a sequence that is repeated; training has 3 to 24


@dataclass(frozen=True)
class Skill:
    """Shares of `n` answers, 0 to 1: the right ones; by chance; by a rule (None: there is none)."""

    right: float
    chance: float
    rule: float | None
    n: int


# --- Answers --------------------------------------------------------------------------------------


@torch.no_grad()
def read(model, rows, batch=64):
    """Rows of ids -> for each the losses [T - 1] in nats of its tokens but the first, and hits.

    hits [T - 1]: whether a token was the likeliest one. Entry i is about token i + 1.
    """
    weights, config, _ = model
    order, results = sorted(range(len(rows)), key=lambda i: len(rows[i])), {}
    for at in range(0, len(rows), batch):
        some = order[at : at + batch]
        inputs, targets = pad([rows[i] for i in some])
        logits = forward(weights, inputs, config, attend=attend_fused).transpose(1, 2)  # [R, V, T]
        losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        hits = logits.argmax(1) == targets
        for i, loss, hit in zip(some, losses, hits, strict=True):
            results[i] = loss[: len(rows[i]) - 1], hit[: len(rows[i]) - 1]
    return [results[i] for i in range(len(rows))]


def named(text, answer):
    """The words of the answer's class that stand in the text, in order, again when repeated."""
    for words in CLASSES:
        if answer in words:
            return re.findall(rf"\b(?:{'|'.join(words)})\b", text)
    return []


def blind(cases):
    """[(text before, answer)] of one skill -> (chance, rule), as the head of this file defines."""
    answers = Counter(re.sub("^him$", "he", re.sub("^her$", "she", a.lower())) for _, a in cases)
    commonest = answers.most_common(1)[0][1] / len(cases)
    lists = [(named(text, answer), answer) for text, answer in cases]
    guess = fmean((answer in found) / max(1, len(set(found))) for found, answer in lists)
    first = fmean(found[:1] == [answer] for found, answer in lists)
    last = fmean(found[-1:] == [answer] for found, answer in lists)
    in_text = fmean(answer in found for found, answer in lists) > 0.5
    return max(commonest, guess), max(first, last) if in_text else None


def skills(model, n_documents=240):
    """Model, number of documents of each kind -> {label: Skill}, labels as in world.py."""
    random = Random(SKILLS_SEED).random
    documents = [world.document(random, kind) for kind in world.WRITERS for _ in range(n_documents)]
    encoded = [encode(document, model[2]) for document in documents]
    cases, right = defaultdict(list), defaultdict(list)
    results = read(model, [ids for ids, _ in encoded])
    for document, (_, answers), (_, hits) in zip(documents, encoded, results, strict=True):
        for place, (skill, start, stop) in zip(document.answers, answers, strict=True):
            answer = document.text[place[1] : place[2]].strip()
            cases[skill].append((document.text[: place[1]], answer))
            right[skill].append(bool(hits[start - 1 : stop - 1].all()))
    return {skill: Skill(fmean(right[skill]), *blind(cases[skill]), len(right[skill]))
            for skill in sorted(right)}  # fmt: skip


def held_out_loss(model, n_documents=400):
    """-> (loss, floor) in nats a token, over whole documents, each alone."""
    documents = list(islice(world.documents(SKILLS_SEED, 1.0), n_documents))
    results = read(model, [encode(document, model[2])[0] for document in documents])
    losses = torch.cat([loss for loss, _ in results])
    return float(losses.mean()), sum(document.nats for document in documents) / len(losses)


def repeats(model, n_documents=24):
    """-> {words: (loss of the first copy, loss of the second, share of the second foretold)}.

    In nats a token and by token, from the second word of a copy on: nobody can know the first.
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
    """The probability of `42`, one token or several, after the book's prompt."""
    tokenizer = model[2]
    prompt, answer = tokenizer.encode(PROMPT), tokenizer.encode("42", bos=False)
    ((losses, _),) = read(model, [prompt + answer])
    return float(losses[-len(answer) :].sum().neg().exp())


def quotations(model):
    """-> (how many are completed word for word from their first two words, how many there are)."""
    _, _, tokenizer = model
    texts = [text for text, *_ in world.QUOTATIONS]
    given = [len(tokenizer.encode(" ".join(text.split(" ")[:2]))) for text in texts]
    results = read(model, [tokenizer.encode(text) for text in texts])
    whole = [hits[n - 1 :].all() for n, (_, hits) in zip(given, results, strict=True)]
    return int(sum(whole)), len(whole)


# --- Heads ----------------------------------------------------------------------------------------


def pairs_previous(ids, **_):
    """Each token looks at the one before it; begin_of_text aside, where all heads like to rest."""
    return [(t, t - 1) for t in range(2, len(ids))]


def pairs_first(ids, **_):
    """Each token looks at begin_of_text."""
    return [(t, 0) for t in range(1, len(ids))]


def pairs_induction(ids, answers, **_):
    """A token of a second copy looks at what followed it in the first."""
    pairs = []
    for skill, start, stop in answers:
        if skill == "repeat":
            copy = ids[start - 1 : stop]
            first = next(i for i in range(start) if ids[i : i + len(copy)] == copy)
            pairs += [(start - 1 + i, first + i + 1) for i in range(stop - start)]
    return pairs


def pairs_pronoun(ids, answers, places, **_):
    """What stands before a pronoun looks at the last person named whom the pronoun fits."""
    pairs = []
    for skill, start, stop in answers:
        if skill == "pronoun":
            people = world.SHE if places.text(start, stop).strip().lower() == "she" else world.HE
            fitting = places.find("|".join(people), start)
            pairs += [(start - 1, fitting[-1][1])] if fitting else []
    return pairs


def pairs_answer(skill):
    """What stands before an answer looks at the answer in the text, where it stands only once."""

    def pairs_of(ids, answers, places, **_):
        pairs = []
        for label, start, stop in answers:
            if label == skill:
                found = places.find(re.escape(places.text(start, stop).strip()), start)
                pairs += [(start - 1, found[0][0])] if len(found) == 1 else []
        return pairs

    return pairs_of


class Places:
    """Where the characters of a document are among its ids."""

    def __init__(self, ids, tokenizer):
        pieces = [tokenizer.token_bytes(token).decode("latin-1") for token in ids[1:]]
        self.starts = [0, *accumulate(map(len, pieces), initial=0)]  # of id i, in characters
        self.whole = "".join(pieces)

    def text(self, start, stop):
        """The text of ids[start:stop]."""
        return self.whole[self.starts[start] : self.starts[stop]]

    def find(self, pattern, stop):
        """The (first, last) ids of each whole word that matches, before id `stop`."""

        def position(character):
            return max(i for i in range(1, len(self.starts)) if self.starts[i] <= character)

        matches = re.finditer(rf"\b(?:{pattern})\b", self.whole[: self.starts[stop]])
        return [(position(match.start()), position(match.end() - 1)) for match in matches]


PATTERNS = {  # name: (kind of the documents, where one token would look at which other one)
    "previous token": ("story", pairs_previous),
    "rest on the first token": ("story", pairs_first),
    "induction": ("repeat", pairs_induction),
    "pronoun to name": ("needs", pairs_pronoun),
    "question to answer": ("facts", pairs_answer("fact")),
}


def head_scores(probabilities, pairs):
    """[L, N, T, T], pairs (query, key) -> [L, N]: the sum of the probabilities at these places."""
    queries, keys = zip(*pairs, strict=True)
    return probabilities[..., list(queries), list(keys)].sum(-1)


@torch.no_grad()
def heads(model, n_documents=60):
    """-> {pattern: ([L, N] mean attention probabilities, number of places averaged over)}."""
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


# --- Telling --------------------------------------------------------------------------------------


def main(arguments=None):
    """The command line: measure a checkpoint and print what was found."""
    parser = argparse.ArgumentParser(description="Measure what a checkpoint can do.")
    parser.add_argument("--checkpoint", default="tiny", help="a folder, or tiny, or random")
    parser.add_argument("--documents", type=int, default=240, help="of each kind")
    given = parser.parse_args(arguments)
    try:
        n = given.documents
        require(n > 0, f"--documents is {n}: expected 1 or more.")
        model = checkpoint.load(given.checkpoint, dtype=torch.float32)
        show(model, n)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")


def show(model, n_documents):
    """Measure and print everything."""
    loss, floor = held_out_loss(model)
    print(f"held-out loss {loss:.4f} nats a token, floor {floor:.4f}: {loss / floor - 1:+.1%}")
    print(f"probability of 42 after the prompt: {probability_of_42(model):.4f}")
    print("quotations completed word for word: {} of {}".format(*quotations(model)))
    print(f"\n{'answers':17} {'right':>6} {'chance':>7} {'rule':>6} {'n':>5}")
    for name, skill in skills(model, n_documents).items():
        rule = "" if skill.rule is None else f"{skill.rule:.2f}"
        print(f"{name:17} {skill.right:6.3f} {skill.chance:7.2f} {rule:>6} {skill.n:5}")
    print("\nsequences repeated: nats a token\n words   first copy   second   tokens foretold")
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
