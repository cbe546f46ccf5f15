"""Llama 3 from scratch: every operation between a prompt and the next token, equal to Meta's."""

from llama3_scratch import checkpoint, model
from llama3_scratch.cache import Cache
from llama3_scratch.checkpoint import load, random_weights, save
from llama3_scratch.config import PRESETS, Config, InputError, weight_shapes
from llama3_scratch.generate import generate
from llama3_scratch.model import attend, forward
from llama3_scratch.tokenizer import Tokenizer
from llama3_scratch.watch import shape, watch

PROMPT = "the answer to the ultimate question of life, the universe, and everything is "

__version__ = "0.1.0"
