"""The shipped tiny model: its files, its logits compared with Meta's code, and its model card."""

import hashlib
import re
from pathlib import Path

import pytest
import torch

from llama3_scratch import PROMPT, Cache, forward, generate, load
from llama3_scratch.checkpoint.source import TINY
from llama3_scratch.tiny import pretrain, skills, world
from llama3_scratch.tokenizer import N_SPECIAL

CARD = (TINY / "MODEL_CARD.md").read_text(encoding="utf-8")
FILES = ["MODEL_CARD.md", "consolidated.00.pth", "params.json", "tokenizer.model"]


def texts():
    """Return the prompt, and a document of each kind from a seed that training never used."""
    random = world.Random(pretrain.SKILLS_SEED).random
    return [PROMPT, *(world.document(random, kind).text for kind in world.WRITERS)]


def test_the_files_are_complete_and_small():
    files = {path.name: path.stat().st_size for path in TINY.iterdir()}
    assert set(FILES) <= set(files) and sum(files.values()) < 10e6
    weights, config, _ = load("tiny")
    assert config == pretrain.CONFIG
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_the_ids_are_metas():
    from llama_models.llama3.tokenizer import Tokenizer as MetasTokenizer

    metas, (_, _, ours) = MetasTokenizer(TINY / "tokenizer.model"), load("tiny")
    assert metas.n_words == ours.vocab_size
    for text in texts():
        assert ours.encode(text) == metas.encode(text, bos=True, eos=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_are_metas_in_every_bit(metas_transformer, dtype):
    """`params.json` and the weights go into Meta's `ModelArgs` and `Transformer` unchanged."""
    weights, config, tokenizer = load("tiny", dtype)
    reference = metas_transformer(config, dict(weights))
    for text in texts():
        tokens = torch.tensor(tokenizer.encode(text))
        logits = reference(tokens[None])[0]
        assert torch.equal(forward(weights, tokens, config), logits)
    cache = Cache(config, len(tokens), dtype=dtype)  # the last text again, one token at a time
    reference(tokens[None, :1])
    for position, token in enumerate(tokens):
        step = forward(weights, token[None], config, cache)
        assert torch.equal(step, reference(token[None, None], position)[0])


def test_the_examples_for_readers_are_answered():
    """They are the playground's buttons and the README's command line; generation is greedy."""
    answers = {
        "Mia and Ben are friends. She is cold and he is hungry. What does Ben want?":
            " He wants bread.",
        "Mia and Ben are in the garden. There is a red kite. Ben has it. He gives the kite to Mia. "
        "Who has the kite?": " Mia has the kite.",
        "once upon a midnight dreary, while": " I pondered, weak and weary",
        "Read: tree door river. Again: tree": " door river.",
        PROMPT: "42",
    }  # fmt: skip
    root, (weights, config, tokenizer) = Path(__file__).parents[2], load("tiny", torch.float32)
    page = (root / "site" / "playground" / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'data-example="(.*?)"', page)) == set(answers)
    shown = re.findall(r'llama3-scratch "(.*?)"', (root / "README.md").read_text("utf-8"))
    assert shown and set(shown) <= set(answers)
    for prompt, answer in answers.items():
        right = tokenizer.encode(answer, bos=False)
        generated = list(generate(weights, tokenizer.encode(prompt), config, len(right)))
        assert tokenizer.decode(generated) == answer


def test_the_tokenizer_is_that_of_the_training():
    _, config, tokenizer = load("tiny")
    assert tokenizer.ranks == pretrain.make_tokenizer(config.vocab_size - N_SPECIAL).ranks


def test_the_card_describes_these_files():
    for name in FILES[1:]:
        digest = hashlib.sha256((TINY / name).read_bytes()).hexdigest()
        assert f"`{digest}`" in CARD, f"{name} is {digest}"
    assert f"{pretrain.CONFIG.n_parameters:,} parameters" in CARD
    for text, author, year in world.QUOTATIONS:
        assert f"| {text} | {author} | {year} |" in CARD


def test_the_cards_code_runs(capsys):
    """With two steps and two documents: the count of texts that training has seen."""
    code = re.search(r"```python\n(.*?)```", CARD, re.S)[1]
    for number in ("range(7000)", "range(240)"):
        assert number in code
        code = code.replace(number, "range(2)")
    exec(code, {})
    assert "(('story', '', False), 2)" in capsys.readouterr().out


@pytest.mark.thorough
def test_the_cards_numbers_are_those_measured_now(capsys):
    """The whole report, up to what another processor may change: a little, and ties of heads."""
    skills.main([])
    now, said = capsys.readouterr().out, re.search(r"```text\n(.*?)```", CARD, re.S)[1]
    head, number = r"(L\d+\.h\d+) ([\d.]+)", r"\d+\.\d+"
    for old, new in zip(said.splitlines(), now.splitlines(), strict=True):
        if best := re.search(head, old):
            score = dict(re.findall(head, new))[best[1]]
            assert float(score) == pytest.approx(float(best[2]), abs=0.02), new
        old, new = (re.sub(r"L\d+\.h\d+|: [+-].*%", "", line) for line in (old, new))
        assert re.sub(number, "#", old).split() == re.sub(number, "#", new).split()
        one, other = ([float(found) for found in re.findall(number, line)] for line in (old, new))
        near = 2e-3 if old.startswith(("held-out loss", "probability")) else 0.02
        assert one == pytest.approx(other, abs=near), old
