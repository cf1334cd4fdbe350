"""What the authors of chat formats render: conversations, and the texts that named templates must make of them.

The texts are written down from public sources, named beside each; `<B>` and `<E>` stand for the tokenizer's begin and
end tokens. Where the authors' Jinja template is public, the templates were also compared with it, over more
conversations than are kept here.
"""

from typing import NamedTuple


class Expected(NamedTuple):
    """Texts of one template: with a system turn, of one exchange without, and what asks for the answer."""

    full: str
    short: str
    asked: str


SYSTEM = {"role": "system", "content": "S"}
TURNS = [
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
    {"role": "assistant", "content": "A2"},
]

_CHATML_TURNS = (
    "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n"
)
_LLAMA_TURNS = (
    "<|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU2<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA2<|eot_id|>"
)
_LLAMA_SHORT = (
    "<|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
)
_LLAMA_ASKED = (
    "<|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
_LLAMA_DATE = (
    "<B><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)
_QWEN_SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
_STANFORD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
_FASTCHAT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
EXPECTED = {
    # Stanford Alpaca, train.py: PROMPT_DICT["prompt_no_input"], the answer, the end token. Its answers follow the
    # header without a newline; the newline is that of the format as it is in general use (alpaca-lora, dolly).
    "alpaca": Expected(
        "<B>S\n\n### Instruction:\nU1\n\n### Response:\nA1<E>\n\n### Instruction:\nU2\n\n### Response:\nA2<E>\n\n",
        f"<B>{_STANFORD}### Instruction:\nU1\n\n### Response:\nA1<E>\n\n",
        f"<B>{_STANFORD}### Instruction:\nU1\n\n### Response:\n",
    ),
    # llama.cpp, tests/test-chat-template.cpp: teknium/OpenHermes-2.5-Mistral-7B.
    "chatml": Expected(
        f"<|im_start|>system\nS<|im_end|>\n{_CHATML_TURNS}",
        "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n",
        "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n",
    ),
    # tokenizer_config.json of deepseek-ai/DeepSeek-V3, and LLM_CHAT_TEMPLATE_DEEPSEEK_3 of llama.cpp.
    "deepseek": Expected(
        "<B>S<｜User｜>U1<｜Assistant｜>A1<｜end▁of▁sentence｜><｜User｜>U2<｜Assistant｜>A2<｜end▁of▁sentence｜>",
        "<B><｜User｜>U1<｜Assistant｜>A1<｜end▁of▁sentence｜>",
        "<B><｜User｜>U1<｜Assistant｜>",
    ),
    # tokenizer_config.json of google/gemma-3-*-it; without a system turn also of google/gemma-2-*-it.
    "gemma": Expected(
        "<B><start_of_turn>user\nS\n\nU1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
        "<start_of_turn>user\nU2<end_of_turn>\n<start_of_turn>model\nA2<end_of_turn>\n",
        "<B><start_of_turn>user\nU1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n",
        "<B><start_of_turn>user\nU1<end_of_turn>\n<start_of_turn>model\n",
    ),
    # Hugging Face's blog "Welcome Llama 3", "How to prompt Llama 3"; tokenizer_config.json of Meta-Llama-3-8B-Instruct.
    "llama-3": Expected(
        f"<B><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>{_LLAMA_TURNS}",
        f"<B>{_LLAMA_SHORT}",
        f"<B>{_LLAMA_ASKED}",
    ),
    # tokenizer_config.json of meta-llama/Llama-3.1-8B-Instruct (3.2 takes the day from the clock).
    "llama-3.1": Expected(
        f"{_LLAMA_DATE}S<|eot_id|>{_LLAMA_TURNS}",
        f"{_LLAMA_DATE}<|eot_id|>{_LLAMA_SHORT}",
        f"{_LLAMA_DATE}<|eot_id|>{_LLAMA_ASKED}",
    ),
    # Mistral's cookbook, "chat templates", tokenizer V3; mistral-common, tests/data/chat_templates/v3_spm.jinja. The
    # system text in the first question: llama.cpp, tests/test-chat-template.cpp, 'v3' with the system prompt at start.
    "mistral": Expected(
        "<B>[INST] S\n\nU1[/INST] A1<E>[INST] U2[/INST] A2<E>",
        "<B>[INST] U1[/INST] A1<E>",
        "<B>[INST] U1[/INST]",
    ),
    # tokenizer_config.json of microsoft/Phi-3.5-mini-instruct (llama.cpp, models/templates).
    "phi-3": Expected(
        "<|system|>\nS<|end|>\n<|user|>\nU1<|end|>\n<|assistant|>\nA1<|end|>\n"
        "<|user|>\nU2<|end|>\n<|assistant|>\nA2<|end|>\n<E>",
        "<|user|>\nU1<|end|>\n<|assistant|>\nA1<|end|>\n<E>",
        "<|user|>\nU1<|end|>\n<|assistant|>\n",
    ),
    # llama.cpp, tests/test-chat-template.cpp: phi-4.
    "phi-4": Expected(
        "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>U1<|im_end|>"
        "<|im_start|>assistant<|im_sep|>A1<|im_end|><|im_start|>user<|im_sep|>U2<|im_end|>"
        "<|im_start|>assistant<|im_sep|>A2<|im_end|>",
        "<|im_start|>user<|im_sep|>U1<|im_end|><|im_start|>assistant<|im_sep|>A1<|im_end|>",
        "<|im_start|>user<|im_sep|>U1<|im_end|><|im_start|>assistant<|im_sep|>",
    ),
    # tokenizer_config.json of Qwen/Qwen2.5-7B-Instruct.
    "qwen-2.5": Expected(
        f"<|im_start|>system\nS<|im_end|>\n{_CHATML_TURNS}",
        f"{_QWEN_SYSTEM}<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n",
        f"{_QWEN_SYSTEM}<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n",
    ),
    # tokenizer_config.json of Qwen/Qwen3-8B: the last answer has its thinking, earlier ones have lost theirs.
    "qwen-3": Expected(
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nA2<|im_end|>\n",
        "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nA1<|im_end|>\n",
        "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n",
    ),
    # FastChat, fastchat/conversation.py: vicuna_v1.1, SeparatorStyle.ADD_COLON_TWO.
    "vicuna": Expected(
        "<B>S USER: U1 ASSISTANT: A1<E>USER: U2 ASSISTANT: A2<E>",
        f"<B>{_FASTCHAT}USER: U1 ASSISTANT: A1<E>",
        f"<B>{_FASTCHAT}USER: U1 ASSISTANT:",
    ),
    # tokenizer_config.json and model card of HuggingFaceH4/zephyr-7b-beta.
    "zephyr": Expected(
        "<|system|>\nS<E>\n<|user|>\nU1<E>\n<|assistant|>\nA1<E>\n<|user|>\nU2<E>\n<|assistant|>\nA2<E>\n",
        "<|user|>\nU1<E>\n<|assistant|>\nA1<E>\n",
        "<|user|>\nU1<E>\n<|assistant|>\n",
    ),
}
# What an assistant wrote in `full`, where it is more than the answers and their end of turn.
WRITTEN = {
    "mistral": [" A1<E>", " A2<E>"],
    "vicuna": [" A1<E>", " A2<E>"],
    "qwen-3": ["A1<|im_end|>", "<think>\n\n</think>\n\nA2<|im_end|>"],
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
WEATHER_JSON = (
    '{"type": "function", "function": {"name": "weather", "description": "Weather of a city", '
    '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}'
)
CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL_TURNS = [
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "cold", "tool_call_id": "call00001"},
    {"role": "assistant", "content": "A1"},
]
HERMES_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    f"{WEATHER_JSON}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
    'tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
)
HERMES_TURNS = (
    '<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": '
    '{"city": "Oslo"}}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\ncold\n</tool_response><|im_end|>\n'
    "<|im_start|>assistant\n"
)
# The sources are those of the templates above.
WITH_TOOLS = {
    "chatml": f"<|im_start|>system\n{HERMES_TOOLS}{HERMES_TURNS}A1<|im_end|>\n",
    "qwen-2.5": f"{_QWEN_SYSTEM.removesuffix('<|im_end|>' + chr(10))}\n\n{HERMES_TOOLS}{HERMES_TURNS}A1<|im_end|>\n",
    "qwen-3": f"<|im_start|>system\n{HERMES_TOOLS}{HERMES_TURNS}<think>\n\n</think>\n\nA1<|im_end|>\n",
    "llama-3.1": "<B><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, please respond with a JSON for a "
    "function call with its proper arguments that best answers the given prompt.\n\nRespond in the format "
    '{"name": function name, "parameters": dictionary of argument name and its value}.Do not use variables.\n\n'
    '{\n    "type": "function",\n    "function": {\n        "name": "weather",\n'
    '        "description": "Weather of a city",\n        "parameters": {\n            "type": "object",\n'
    '            "properties": {\n                "city": {\n                    "type": "string"\n'
    "                }\n            }\n        }\n    }\n}\n\nU1<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "weather", "parameters": {"city": "Oslo"}}<|eot_id|>'
    '<|start_header_id|>ipython<|end_header_id|>\n\n"cold"<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>",
    "mistral": f"<B>[AVAILABLE_TOOLS] [{WEATHER_JSON}][/AVAILABLE_TOOLS][INST] U1[/INST]"
    '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}, "id": "call00001"}]<E>'
    '[TOOL_RESULTS] {"content": "cold", "call_id": "call00001"}[/TOOL_RESULTS] A1<E>',
    "deepseek": "<B><｜User｜>U1<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather"
    '\n```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>'
    "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>cold<｜tool▁output▁end｜><｜tool▁outputs▁end｜>A1<｜end▁of▁sentence｜>",
}
