"""BEATs' objective, tokenizer and stored labels."""
