"""Finds the text that a chat template puts before a response, and the token that ends it.

Both are found by rendering a small dialogue. A model was trained to end a turn with the template's
token, even if other files name another end of sequence.
"""

import dataclasses
from collections.abc import Callable, Iterable

from alignjax.data.records import Message
from alignjax.errors import UserError

Render = Callable[[tuple[Message, ...], bool], str]  # (turns, add_generation_prompt) -> text

_ANSWER = "alignjax"
_STAND_IN = "\uf8ff"  # the last private-use character; stands for a whole response
_USER = (Message("user", "Hello"),)


@dataclasses.dataclass(frozen=True)
class Turn:
    """The text around a response.

    Attributes:
      end: the token right after it; empty if there is none.
      opening: the end of a prompt that the template leaves out once a response follows, or an
        open tag of reasoning such as ``<think>``; empty if there is none.
    """

    end: str = ""
    opening: str = ""


def find_turn(render: Render, tokens: Iterable[str]) -> Turn:
    """Finds the opening and the end of a response in a small rendered dialogue.

    Args:
      render: renders the template.
      tokens: texts of all special and added tokens.
    """
    try:
        before = render(_USER, True)
        dialogue = render((*_USER, Message("assistant", _ANSWER)), False)
    except UserError:  # the template may refuse this dialogue only; rows raise their own errors
        return Turn()
    base, answer, tail = dialogue.rpartition(_ANSWER)
    if not answer:
        return Turn()
    after = tail.lstrip()
    end = max((x for x in tokens if after.startswith(x)), key=len, default="")
    opening = ""
    if not dialogue.startswith(before) and before.startswith(base):
        opening = before[len(base) :]
    elif dialogue.startswith(before):
        last = before.rstrip().rpartition("\n")[2]
        tag = last[last.rfind("<") :]
        opening = tag if tag.startswith("<") and tag.endswith("think>") else ""
        opening = "" if opening.startswith("</") else opening
    return Turn(end, opening if opening.strip() else "")


def after_opening(
    render: Render, context: tuple[Message, ...], before: str, answer: Message
) -> str | None:
    """Renders a response after a prompt that ends with an opening (see `Turn`).

    Args:
      render: renders the template.
      context: the turns of the prompt.
      before: the rendered prompt.
      answer: the response. If it begins with the opening, the opening is removed.

    Returns:
      The response and the end of its turn; None if the two renderings differ in more than the
      opening.
    """
    stand_in = dataclasses.replace(answer, content=_STAND_IN)
    base, response, tail = render((*context, stand_in), False).rpartition(_STAND_IN)
    opening = before[len(base) :]
    if not response or not before.startswith(base) or not opening.strip():
        return None
    text = answer.content
    if text.lstrip().startswith(opening.strip()):
        text = text.lstrip()[len(opening.strip()) :].removeprefix("\n")
    return text + tail
