"""Thinking in Ollama's language: where the chat template keeps it, and what asks for it or against it."""

from hasten.data.named_templates import named_template
from hasten.export.ollama.chat_parts import talk
from hasten.export.ollama.go_template import GoTemplate
from hasten.export.ollama.prompt import ollama_prompt
from hasten.export.ollama.tool_parts import call, calling, result
from hasten.export.ollama.translate import translate
from support import tiny
from support.encoders import encoder_of

ONE = call("weather", {"city": "Oslo"}, 1)
KEPT = tiny.CHATML.replace("+ message['content'] +", "+ thought + message['content'] +").replace(
    "{{ '<|im_start|>'",
    "{% set thought = '<think>' + message['reasoning_content'] + '</think>' if message['reasoning_content'] else '' %}"
    "{{ '<|im_start|>'",
)


def made_of(template, messages, think=None):
    return ollama_prompt(GoTemplate(translate(encoder_of(template)).template), messages, None, think)


def test_qwen_keeps_thinking_behind_the_last_question():
    thought = {"reasoning_content": "Hm."}
    earlier = [{**talk(a="Hi!")[0], **thought}, *talk(v="Cold?")]
    turns = [*talk(u="Hello"), *earlier, calling(ONE, content="Wait.", **thought), result("4", ONE)]
    text = made_of(named_template("qwen-3")[0], turns)
    assert "<|im_start|>assistant\nHi!<|im_end|>" in text
    assert "<|im_start|>assistant\n<think>\nHm.\n</think>\n\nWait.\n<tool_call>" in text


def test_a_request_can_turn_thinking_off():
    template = named_template("qwen-3")[0]
    off = made_of(template, talk(u="Hello"), think=False)
    assert off.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    for think in (None, True):
        assert made_of(template, talk(u="Hello"), think=think).endswith("<|im_start|>assistant\n")


def test_a_template_that_keeps_all_thinking():
    turns = [*talk(u="Hello"), {**talk(a="Hi!")[0], "reasoning_content": "Hm."}, *talk(v="And?")]
    assert "assistant\n<think>Hm.</think>Hi!<|im_end|>" in made_of(KEPT, turns)
    assert "$.IsThinkSet" not in translate(encoder_of(KEPT)).template


def test_thinking_that_is_not_proven_is_left_out_with_the_reason():
    changed = KEPT.replace("+ message['reasoning_content'] +", "+ message['reasoning_content'] | replace('Hm', 'Oh') +")
    made = translate(encoder_of(changed))
    assert ".Thinking" not in made.template
    assert any(note.startswith("Thinking has a place") and "Oh" in note for note in made.notes)


def test_templates_without_thinking_have_none():
    for template in (tiny.CHATML, named_template("qwen-2.5")[0]):
        assert ".Thinking" not in translate(encoder_of(template)).template
