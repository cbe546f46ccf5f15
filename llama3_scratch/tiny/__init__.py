"""The toy world and its Llama 3: text, tokenizer, pre-training, measures of skills and heads."""
