"""What a chat template writes round a response: what opens it, and the token that ends it.

Found by rendering a small dialogue. The token that the template itself ends an assistant's turn
with is what a model was trained to write there, whatever other files call the end of a sequence.
"""

import dataclasses
from collections.abc import Callable, Iterable

from alignjax.data.records import Message
from alignjax.errors import UserError

Render = Callable[[tuple[Message, ...], bool], str]  # (turns, with the next turn's beginning)

_ANSWER = "alignjax"
_STAND_IN = "\uf8ff"  # the last private-use character; stands for a whole response
_USER = (Message("user", "Hello"),)


@dataclasses.dataclass(frozen=True)
class Turn:
    """The two sides of a response.

    Attributes:
      end: the token right after it; empty: none.
      opening: what a prompt ends with that a dialogue with its response does not repeat, or a
        tag of thoughts that is left open: ``<think>`` and the like.
    """

    end: str = ""
    opening: str = ""


def find_turn(render: Render, tokens: Iterable[str]) -> Turn:
    """Renders a small dialogue and looks at what stands round the response.

    Args:
      render: of the template.
      tokens: texts of all special and added tokens.
    """
    try:
        before = render(_USER, True)
        whole = render((*_USER, Message("assistant", _ANSWER)), False)
    except UserError:  # of this dialogue; rows will say it again if they have the same fault
        return Turn()
    base, found, tail = whole.rpartition(_ANSWER)
    if not found:
        return Turn()
    after = tail.lstrip()
    end = max((x for x in tokens if after.startswith(x)), key=len, default="")
    opening = ""
    if not whole.startswith(before) and before.startswith(base):
        opening = before[len(base) :]
    elif whole.startswith(before):
        last = before.rstrip().rpartition("\n")[2]
        tag = last[last.rfind("<") :]
        opening = tag if tag.startswith("<") and tag.endswith("think>") else ""
        opening = "" if opening.startswith("</") else opening
    return Turn(end, opening if opening.strip() else "")


def after_opening(
    render: Render, context: tuple[Message, ...], before: str, answer: Message
) -> str | None:
    """What follows a prompt whose end the template leaves out once a response is there.

    Args:
      render: of the template.
      context: the turns before.
      before: what they are rendered as.
      answer: the response. Where it begins with the opening itself, that is not repeated.

    Returns:
      The response and what ends its turn; None: the two renderings differ in more than the
      opening.
    """
    stand_in = dataclasses.replace(answer, content=_STAND_IN)
    whole = render((*context, stand_in), False)
    base, found, tail = whole.rpartition(_STAND_IN)
    opening = before[len(base) :]
    if not found or not before.startswith(base) or not opening.strip():
        return None
    text = answer.content
    if text.lstrip().startswith(opening.strip()):
        text = text.lstrip()[len(opening.strip()) :].removeprefix("\n")
    return text + tail
