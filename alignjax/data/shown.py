"""Formats rows as they are trained, token by token, for people to read."""

from collections.abc import Iterable

from alignjax.data.tokenizer.load import Tokenizer

_COLOUR, _PLAIN = "\x1b[32m", "\x1b[0m"


def pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """Returns the text of each token; unprintable characters are escaped."""
    names = {index: text for text, index in tokenizer.specials.items()}
    texts = [names.get(int(i)) or tokenizer.decode_ids([int(i)]) for i in ids]
    return [
        text.encode("unicode_escape").decode() if not text.isprintable() else text for text in texts
    ]


def tokens(
    tokenizer: Tokenizer, prompt: Iterable[int], response: Iterable[int], *, colour: bool
) -> str:
    """Joins a prompt's tokens with ``|``, and puts the trained tokens, the response's, in ``[]``.

    Args:
      tokenizer: the tokenizer of the ids.
      prompt, response: ids.
      colour: also colour the trained tokens.
    """
    trained = "".join(f"[{piece}]" for piece in pieces(tokenizer, response))
    trained = f"{_COLOUR}{trained}{_PLAIN}" if colour else trained
    return "|".join([*pieces(tokenizer, prompt), trained])
