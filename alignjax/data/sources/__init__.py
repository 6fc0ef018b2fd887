"""Reads preference data files. Each source yields ``Record``s and counts the rows it leaves out.

Every source has the signature ``(report, *, path, ...) -> Iterator[Record]``. ``path`` is a file
or a glob, of the formats in `files.SUFFIXES`. A config binds the other keywords with
``functools.partial``. A malformed row (a field is missing, null or of the wrong type) stops the run
with ``file:line`` and the field; a well-formed row that cannot be used is dropped and counted.
``records.check`` applies the rules that all sources share.

The model sees plain-text prompts and responses unchanged, as prompt + response. For files of bare
questions and answers, ``chat=True`` makes the prompt a user's message, which the chat template (or
the plain one of ``data.tokenizer.chat``) formats.
"""

from alignjax.data.sources.auto import auto
from alignjax.data.sources.columns import Columns
from alignjax.data.sources.labelled import unpaired
from alignjax.data.sources.pairs import hh, persona, pku
from alignjax.data.sources.scored import lists, rated

# Other names of `auto`, for configs.
trl = sharegpt = auto

__all__ = [
    "Columns",
    "auto",
    "hh",
    "lists",
    "persona",
    "pku",
    "rated",
    "sharegpt",
    "trl",
    "unpaired",
]
