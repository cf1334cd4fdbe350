"""Conversations: templates by name or by example, one shape for all rows, and loss on the answers only."""

from __future__ import annotations

from hasten.compat.apply_template import apply_chat_template as apply_chat_template
from hasten.compat.apply_template import construct_chat_template as construct_chat_template
from hasten.compat.chat_template import get_chat_template as get_chat_template
from hasten.compat.named_templates import CHAT_TEMPLATES as CHAT_TEMPLATES
from hasten.compat.responses import train_on_responses_only as train_on_responses_only
from hasten.compat.sharegpt import to_sharegpt as to_sharegpt
from hasten.compat.standardize import standardize_data_formats as standardize_data_formats
from hasten.compat.standardize import standardize_sharegpt as standardize_sharegpt
