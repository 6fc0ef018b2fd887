"""Rules that compare a response with the data's answer, for `scorers.checked`."""

import re
from decimal import Decimal, InvalidOperation

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def same_text(response: str, answer: str) -> float:
    """Gives 1 if the response is the answer, apart from case, spaces and a final full stop.

    >>> same_text(" Paris.", "paris"), same_text("It is Paris", "Paris")
    (1.0, 0.0)
    """
    return float(_plain(response) == _plain(answer))


def same_number(response: str, answer: str) -> float:
    r"""Gives 1 if the last number of the response equals the last number of the answer.

    Reasoning may come before the result: GSM8K's answers end in ``#### 42``, those of MATH in
    ``\boxed{42}``. Commas separate thousands. Without a number in both it gives 0.

    >>> same_number("3 boxes of 14 are 42.0", "3 * 14 = 42 #### 42"), same_number("41", "42")
    (1.0, 0.0)
    """
    found, wanted = last_number(response), last_number(answer)
    return float(found is not None and found == wanted)


def last_number(text: str) -> Decimal | None:
    """Reads the last number in a text; None if there is none."""
    numbers = NUMBER.findall(text)
    try:
        return Decimal(numbers[-1].replace(",", "")) if numbers else None
    except InvalidOperation:
        return None


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").casefold()
