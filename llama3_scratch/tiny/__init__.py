"""The toy world: its text (world), its tokenizer (bpe), and the training of the tiny Llama 3."""
