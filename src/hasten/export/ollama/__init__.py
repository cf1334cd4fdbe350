"""Ollama: the chat template in Go's template language, the Modelfile, and a running server."""
