"""Rows as they are trained, token by token, for people to read."""

from collections.abc import Iterable

from alignjax.data.tokenizer.load import Tokenizer

_COLOUR, _PLAIN = "\x1b[32m", "\x1b[0m"


def pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """The text of each token; line breaks and the like are escaped."""
    names = {index: text for text, index in tokenizer.specials.items()}
    texts = [names.get(int(i)) or tokenizer.decode_ids([int(i)]) for i in ids]
    return [text.encode("unicode_escape").decode() if _hidden(text) else text for text in texts]


def _hidden(text: str) -> bool:
    return any(not char.isprintable() for char in text)


def tokens(
    tokenizer: Tokenizer, prompt: Iterable[int], response: Iterable[int], *, colour: bool
) -> str:
    """A prompt's tokens with ``|`` between them, and the response's, which are trained, in ``[]``.

    Args:
      tokenizer: of the ids.
      prompt, response: ids.
      colour: whether to colour what is trained as well.
    """
    trained = "".join(f"[{piece}]" for piece in pieces(tokenizer, response))
    trained = f"{_COLOUR}{trained}{_PLAIN}" if colour else trained
    return "|".join([*pieces(tokenizer, prompt), trained])
