"""A subject's weights, tokenizer and chat template."""
