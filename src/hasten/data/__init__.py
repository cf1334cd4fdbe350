"""From rows to tokens: sources, formats, templates and masks, packing."""
