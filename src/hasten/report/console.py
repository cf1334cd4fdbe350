"""A console whose output may go nowhere without harm.

Training outlives the reader of its output: a pipe into `head`, an SSH session, a full disk behind `> log`. So a write
that fails ends the output, never the job. And text never fails for its characters: what the stream's encoding lacks
is shown by something plainer.
"""

from __future__ import annotations

import io
import os
from typing import IO, cast

from rich.console import Console

_LOG_COLUMNS = 120

# What a stream shows instead of characters it lacks; every other one becomes "?".
_PLAIN = {
    **dict.fromkeys("─━═╌╍┄┅╴╶╸╺", "-"),
    **dict.fromkeys("│┃║╎╏", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┡┩┢┪╇", "+"),
    **dict.fromkeys("█▉▊▋▌▍▎▏▓▒▇▆▅▄▃▂▁•·●", "#"),
    **dict.fromkeys("‘’‛", "'"),
    **dict.fromkeys("“”", '"'),
    **dict.fromkeys("–—‑−", "-"),
    **{"…": "...", "→": "->", "←": "<-", "×": "x", "≤": "<=", "≥": ">=", "✓": "ok", "\u00a0": " "},
}


class SurvivingStream(io.TextIOBase):
    """A text stream that swallows the loss of its reader.

    Args:
        stream: where the text goes as long as that works.
    """

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self._stream = stream
        self.lost = False
        """Whether the reader is gone and all further text is dropped."""

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoding of the stream below; UTF-8 where it has none, as for text kept in memory."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def writable(self) -> bool:
        """Always: writing cannot fail."""
        return True

    def isatty(self) -> bool:
        """Whether the stream below is a terminal."""
        try:
            return self._stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        """The file descriptor of the stream below; raises as that does when it has none."""
        return self._stream.fileno()

    def write(self, text: str, /) -> int:
        """Write a text, or drop it; returns its length either way."""
        if not self.lost:
            try:
                self._stream.write(representable(text, self.encoding))
            except (OSError, ValueError) as error:
                self._note(error)
        return len(text)

    def flush(self) -> None:
        """Flush the stream below, or do nothing when its reader is gone."""
        if not self.lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._note(error)

    def _note(self, error: OSError | ValueError) -> None:
        if isinstance(error, BlockingIOError):  # a reader that is slow, not gone: only this text is lost
            return
        if isinstance(error, ValueError) and not self._stream.closed:
            raise error
        self.lost = True
        detach_closed(self._stream)


def make_console(stream: IO[str]) -> Console:
    """Make the console for one stream.

    Args:
        stream: standard output or standard error, or any text stream.

    Returns:
        A rich console that is live and coloured on a terminal only (also inside notebooks and CI services, which rich
        would treat in ways of their own), and whose writes never fail for a lost reader or a missing character.
    """
    surviving = SurvivingStream(stream)
    terminal = surviving.isatty()
    return Console(
        file=cast(IO[str], surviving),
        force_terminal=terminal,
        force_jupyter=False,
        width=None if terminal else _LOG_COLUMNS,
    )


def detach_closed(stream: IO[str]) -> None:
    """Let a stream whose reader is gone end in the null device.

    What is left in its buffer would otherwise fail again when the interpreter flushes it at exit, which prints a
    message and turns the exit code into 120.

    Args:
        stream: the stream whose write failed; one without a file descriptor, or closed, is left as it is.
    """
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, descriptor)
    finally:
        os.close(null)


def representable(text: str, encoding: str) -> str:
    """A text with the characters that an encoding lacks replaced.

    Args:
        text: any text.
        encoding: the name of the encoding; an unknown one is taken for ASCII.

    Returns:
        The same text where possible; lines and bars become ASCII art, the rest question marks.
    """
    if _fits(text, encoding):
        return text
    return "".join(character if _fits(character, encoding) else _PLAIN.get(character, "?") for character in text)


def has_blocks(console: Console) -> bool:
    """Whether a console's stream can show braille and block characters."""
    return _fits("⣿█", console.encoding)


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    except LookupError:
        return text.isascii()
    return True
