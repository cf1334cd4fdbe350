"""Answers: one verified way from messages to text, used by chat, by samples and by the check after a reload.

The model is left exactly as it was found: training flags of every module are restored, and nothing in its
configuration is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hasten.data.formats import Message
from hasten.data.templates import ChatEncoder


@contextmanager
def inference_mode(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients inside the block; every module's own flag is back afterwards."""
    import torch

    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in flags:
            module.training = training


def answer(
    model: Any,
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """The model's next turn.

    Args:
        model: a transformers model or `PeftModel`.
        tokenizer: its tokenizer, with a chat template.
        messages: the conversation so far.
        max_new_tokens: where to stop if no end token comes.
        temperature: 0 always takes the likeliest token, so the same question has the same answer.
        on_text: called with each finished piece of text.

    Returns:
        The whole answer, without special tokens.

    Raises:
        RowProblem: the template refuses the messages.
    """
    import torch

    encoder = ChatEncoder(tokenizer)
    prompt = torch.tensor([encoder.encode_prompt(messages)], device=model.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with inference_mode(model):
        tokens = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            eos_token_id=encoder.end_ids(model.generation_config),
            pad_token_id=tokenizer.pad_token_id,
            streamer=_streamer(tokenizer, on_text) if on_text else None,
            **sampling,
        )
    return tokenizer.decode(tokens[0, prompt.shape[1] :], skip_special_tokens=True)


def _streamer(tokenizer: Any, on_text: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            on_text(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
