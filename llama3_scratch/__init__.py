"""Llama 3 from scratch: every operation between a prompt and the next token, equal to Meta's.

The core is `config`, `tokenizer`, `model`, `cache` and `generate`, in the order to read them; it
imports nothing from the rest. Around it stand wings: `checkpoint` (files <-> weights), `formats`
(numbers of few bits), `speed`, `parallel` and `pipeline` (several devices, by `processes`),
`train`, `tiny` (the toy world and its model), `exercises`, and `watch`, `plots` and `reference`,
with which the notebooks look inside.

How a prompt becomes a token: `__main__.run` opens the checkpoint, encodes the prompt, plans the
memory for exactly this run and loads the weights by that plan. `generate` passes the ids to
`forward`, which looks up their embeddings, sends them through `block` once per layer, each with its
part of the `Cache`, and returns logits; `choose` takes a token from the last row, and the loop
repeats with that token alone. How a tensor gets there: `checkpoint.source` decides by the weights
in the folder whether `meta`, `huggingface` or `gguf` reads it; that module maps the files and gives
a `LazyWeights`, a mapping that reads, casts and moves a tensor when `layer` looks it up by Meta's
name; `linear` multiplies by it.
"""

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:
    sys.path.pop(0)  # `python -m` puts the current folder first, and a stranger's torch.py with it

from llama3_scratch import model
from llama3_scratch.cache import Cache
from llama3_scratch.checkpoint import load, save
from llama3_scratch.checkpoint.random import random_weights
from llama3_scratch.config import PRESETS, Config, weight_shapes
from llama3_scratch.errors import InputError
from llama3_scratch.generate import generate
from llama3_scratch.model import attend, forward
from llama3_scratch.tokenizer import Tokenizer
from llama3_scratch.watch import shape, watch

# The book's two texts. The tiny model has the prompt by heart; the story's answer, Ben, has to be
# looked up in it, and changes when its names do.
PROMPT = "the answer to the ultimate question of life, the universe, and everything is "
STORY = (
    "Ben is in the kitchen. Mia is in the cellar. There is a black box. Mia has it. There is a "
    "blue kite in the office. Ben goes to the office and picks up the kite. Now Ben has it. Mia "
    "goes to the office. Who has the kite?"
)

__version__ = "0.1.0"
