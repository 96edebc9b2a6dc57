"""The chat at a terminal, and through a pipe: a question a line, answers and nothing else."""

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Final, TextIO

from fedsdr.chat.conversation import Conversation
from fedsdr.core.errors import UserError

HELP: Final = "/model NAME: another model   /reset: forget what was said   /quit: leave"


def chat_loop(
    conversation: Conversation,
    lines: Iterable[str],
    out: TextIO,
    notice: Callable[[str], None],
    live: bool,
) -> None:
    """Answer line by line until they end or one says /quit.

    live: pieces are written as they come, and Ctrl-C stops an answer but not the chat; otherwise
    answers are written whole.
    """
    for line in lines:
        text = line.strip()
        try:
            if text == "/quit":
                return
            if text.startswith("/"):
                notice(execute_command(conversation, text))
            elif text:
                print_answer(conversation, text, out, live)
        except UserError as error:
            notice(f"error: {error}")
            if not text.startswith("/") and not live:
                out.write("\n")  # so that the nth answer is that of the nth question


def execute_command(conversation: Conversation, text: str) -> str:
    """Execute a line that begins with a slash; returns the message to show for it."""
    word, _, rest = text.partition(" ")
    if word == "/reset":
        conversation.reset()
        return "forgotten"
    if word == "/model":
        conversation.use(rest.strip())
        return f"now talking to {conversation.name}"
    if word == "/help":
        return HELP
    raise UserError(f"{word!r} is not a command. {HELP}")


def print_answer(conversation: Conversation, question: str, out: TextIO, live: bool) -> None:
    """Write one answer and a line end to `out`. live: as in `chat_loop`."""
    if not live:
        out.write("".join(conversation.ask(question)) + "\n")
        out.flush()
        return
    try:
        with closing(conversation.ask(question)) as pieces:
            for piece in pieces:
                out.write(piece)
                out.flush()
    except KeyboardInterrupt:
        out.write(" [stopped]")
    out.write("\n")


def typed_lines(prompt: Callable[[], str]) -> Iterable[str]:
    """Lines typed at a terminal, until Ctrl-D; Ctrl-C only begins a new line."""
    while True:
        try:
            yield input(prompt())
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/quit or Ctrl-D leaves)")
