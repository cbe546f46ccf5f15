"""What each head does: its attention between tokens that the generator knows to be related."""

import re
from itertools import accumulate, count
from random import Random

import torch

from llama3_scratch.model import attend, forward
from llama3_scratch.tiny import world
from llama3_scratch.tiny.pretrain import SKILLS_SEED, encode
from llama3_scratch.watch import watch


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
