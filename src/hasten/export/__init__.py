"""A trained model as other programs take it, proven to be the same."""
