"""From a name to a plain Hugging Face model and its tokenizer."""
