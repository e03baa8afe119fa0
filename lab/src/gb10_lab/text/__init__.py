"""Text to train and to measure on: made from pinned packages, and its tokenizer."""
