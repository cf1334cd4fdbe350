"""Builders that several tests share: tiny models, tiny tokenizers, templates."""
