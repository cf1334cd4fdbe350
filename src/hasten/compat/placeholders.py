"""Names of the `unsloth` namespace that hasten does not offer, each with what to use instead."""

from __future__ import annotations

from hasten.compat.offered import NotOffered

_TEXT_ONLY = "Only text models are trained yet: use FastLanguageModel."
_SANDBOX = "Run the model's code in a process of your own (subprocess with a timeout)."
_ROWS = "Make rows with a 'text' column with the datasets library."
_REMEDIES = {
    "FastVisionModel": _TEXT_ONLY,
    "FastDiffusionModel": _TEXT_ONLY,
    "FastSentenceTransformer": "Use the sentence-transformers library.",
    "UnslothVisionDataCollator": _TEXT_ONLY,
    "SyntheticDataKit": "Use the synthetic-data-kit program, then load its files with the datasets library.",
    "RawTextDataLoader": _ROWS,
    "TextPreprocessor": _ROWS,
    "QGaloreConfig": "Use optim='galore_adamw' of transformers.",
    "vLLMSamplingParams": "Use the arguments of model.generate.",
    "Benchmarker": "Use `hasten bench` once it is there.",
    "create_locked_down_function": _SANDBOX,
    "execute_with_time_limit": _SANDBOX,
    "check_python_modules": _SANDBOX,
    "is_port_open": "Use the socket module.",
    "launch_openenv": "Start the environment's server yourself.",
    "save_to_gguf": "Use model.save_pretrained_gguf(folder, tokenizer), or `hasten export`.",
    "unsloth_save_model": "Use model.save_pretrained_merged(folder, tokenizer).",
    "get_gpu_memory_stats": "Use torch.cuda.max_memory_reserved() and torch.cuda.mem_get_info().",
}
PLACEHOLDERS = {name: NotOffered(name, remedy) for name, remedy in _REMEDIES.items()}
