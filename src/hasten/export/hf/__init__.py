"""Model folders as Hugging Face's libraries and vLLM read them, written by streaming."""
