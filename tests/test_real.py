"""The real Meta-Llama-3-8B, for people who have it: `make test-real`. Others see it skipped.

The environment's LLAMA3_CHECKPOINT names its folder, with Meta's files or Hugging Face's. The
notebooks run on it as they are; no cell may fail, and no output is compared.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llama3_scratch import PRESETS, PROMPT, InputError, checkpoint, generate, load

NAMED = os.environ.get("LLAMA3_CHECKPOINT", "")
NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("0[1-9]_*.ipynb"))
IDS = [128000, 1820, 4320, 311, 279, 17139, 3488, 315, 2324, 11, 279, 15861, 11, 323, 4395, 374]
IDS += [220]


def why_not():
    """What is missing for these tests; empty when it is there."""
    wanted = "needs the real weights: LLAMA3_CHECKPOINT=<folder of Meta-Llama-3-8B> make test-real"
    try:
        config = checkpoint.find(NAMED)[1] if NAMED not in ("", "tiny", "random") else None
    except InputError as error:
        return f"{wanted}. As it is: {error}"
    fits = config == PRESETS["Llama-3-8B"]
    return "" if fits else f"{wanted}. {repr(NAMED) if NAMED else 'None'} is not that model."


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def real():
    return load(NAMED)


def test_the_prompts_ids(real):
    _, _, tokenizer = real
    assert tokenizer.encode(PROMPT) == IDS
    assert tokenizer.decode([2983]) == "42"


def test_8030261248_parameters(real):
    weights, config, _ = real
    counted = sum(math.prod(weights[name].shape) for name in weights)
    assert counted == config.n_parameters == 8_030_261_248


def test_the_next_token_is_42(real):
    weights, config, tokenizer = real
    (token,) = generate(weights, tokenizer.encode(PROMPT), config, 1)
    assert (token, tokenizer.decode([token])) == (2983, "42")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path):
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "--nbval-current-env"]
    done = subprocess.run(
        [*command, "-p", "no:xdist", "--nbval-cell-timeout=3600", path],
        env=os.environ | {"LLAMA3_CHECKPOINT": NAMED}, capture_output=True, text=True,
    )  # fmt: skip
    assert not done.returncode, done.stdout[-6000:] + done.stderr[-2000:]
