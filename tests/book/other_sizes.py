"""Write the checkpoint of the third lane: `python tests/book/other_sizes.py build/other-sizes`.

Random weights; every size differs from the tiny model's: V 557 (a prime; the prompt has 51 tokens),
L 5, D 84, N 6, K 3, G 2, H 14, P 7, F 190. A notebook with a hard-coded size of tiny's fails on it.
"""

import sys

from llama3_scratch import Config, random_weights, save
from llama3_scratch.tiny.pretrain import make_tokenizer
from llama3_scratch.tokenizer import N_SPECIAL

CONFIG = Config(84, 5, 6, 3, 557, 19, 1e-5, 500000.0, 0.85)

if __name__ == "__main__":
    tokenizer = make_tokenizer(CONFIG.vocab_size - N_SPECIAL)
    save(sys.argv[1], random_weights(CONFIG, seed=1), CONFIG, tokenizer)
