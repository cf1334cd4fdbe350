"""Conversations: templates by name, one shape for all rows, and loss on the answers only."""

from __future__ import annotations

from hasten.compat.chat_template import get_chat_template as get_chat_template
from hasten.compat.named_templates import CHAT_TEMPLATES as CHAT_TEMPLATES
from hasten.compat.offered import NotOffered
from hasten.compat.responses import train_on_responses_only as train_on_responses_only
from hasten.compat.standardize import standardize_data_formats as standardize_data_formats
from hasten.compat.standardize import standardize_sharegpt as standardize_sharegpt

_MAP = "Make a column 'conversations' of role and content with dataset.map, then use standardize_sharegpt."
to_sharegpt = NotOffered("to_sharegpt", _MAP)
apply_chat_template = NotOffered(
    "apply_chat_template", "Use get_chat_template, then dataset.map with tokenizer.apply_chat_template(tokenize=False)."
)
construct_chat_template = NotOffered(
    "construct_chat_template", "Use get_chat_template(tokenizer, (jinja_text, stop_token))."
)
