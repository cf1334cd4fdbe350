"""`hasten chat`: talk to a model, an adapter or a merged folder; answers stream and stop at the end of the turn."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from hasten.cli.output import JsonFlag, Output
from hasten.errors import ConfigError, DataError

OPTIONS = {"name": "chat", "help": "Talk to a model, an adapter or a merged folder."}


def command(
    model: Annotated[
        str, typer.Argument(help="'demo', an adapter or model folder, a .gguf file, or a hub id.")
    ] = "demo",
    message: Annotated[str | None, typer.Option("--message", "-m", help="Ask this once and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="System text.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.", min=1)] = 512,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.", min=0.0)] = 0.0,
    json_mode: JsonFlag = False,
) -> None:
    """One question with --message, a conversation without."""
    if json_mode and message is None:
        raise ConfigError("--json", "no --message", "A program asks one question a call.", "Add --message TEXT.")
    out = Output(json_mode)
    talk = Conversation(model, system, max_tokens, temperature, out)
    if message is not None:
        text = talk.ask(message)
        out.result({"ok": True, "model": model, "message": message, "answer": text})
        return
    out.say("Ctrl-D or /exit leaves, /new starts over.")
    while (line := _read(out)) is not None:
        if line == "/new":
            talk.reset()
        elif line:
            try:
                talk.ask(line)
            except DataError as error:  # the conversation goes on without that line
                out.say(f"error: {error}")


class Conversation:
    """A model and the turns so far."""

    def __init__(self, model: str, system: str | None, max_tokens: int, temperature: float, out: Output) -> None:
        from hasten.cli.quiet import quiet

        quiet()
        from hasten.hardware.probe import probe
        from hasten.loading.model import LoadOptions, load
        from hasten.plan import choose_dtype

        hardware = probe()
        dtype, _ = choose_dtype(hardware, "auto")
        self.loaded = load(model, LoadOptions(device=hardware.device, dtype=dtype))
        self.system, self.max_tokens, self.temperature, self.out = system, max_tokens, temperature, out
        self.messages: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Forget every turn."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> str:
        """One turn; the answer streams to the console."""
        from hasten.data.formats import RowProblem
        from hasten.generate import answer

        question = [*self.messages, {"role": "user", "content": text}]
        try:
            reply = answer(
                self.loaded.model,
                self.loaded.tokenizer,
                question,
                max_new_tokens=self.max_tokens,
                temperature=self.temperature,
                on_text=lambda piece: self.out.console.print(
                    piece, end="", markup=False, highlight=False, soft_wrap=True
                ),
            )
        except RowProblem as problem:
            raise DataError("message", str(problem), "Messages are plain text.", "Write it differently.") from problem
        self.out.say()
        self.messages = [*question, {"role": "assistant", "content": reply}]
        return reply


def _read(out: Output) -> str | None:
    out.console.print("> ", end="", markup=False, highlight=False)
    line = sys.stdin.readline()
    return None if not line or line.strip() == "/exit" else line.strip()
