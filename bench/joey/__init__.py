"""joey, the built-in demonstration model: its small world, its tokenizer and its training."""
