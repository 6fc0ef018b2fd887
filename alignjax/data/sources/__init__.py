"""Readers of preference data files. Each yields ``Record``s and counts what it leaves out.

Every source has the signature ``(report, *, path, ...) -> Iterator[Record]``. ``path`` is a file
or a glob of ``.jsonl``, ``.jsonl.gz``, ``.json`` or ``.json.gz`` files. A config binds the other
keywords with ``functools.partial``. A malformed row (field missing, null, of the wrong type) stops
the run with ``file:line`` and the field; a well-formed row of no use is dropped and counted.
``records.check`` applies the rules that all sources share.

Plain-text prompts and responses are used as they are: prompt + response is the text the model
sees. Where a file holds bare questions and answers, ``chat=True`` makes the prompt a user's
message, and the chat template (or the plain one of ``data.tokenizer.chat``) puts words around it.
"""

from alignjax.data.sources.auto import auto
from alignjax.data.sources.columns import Columns
from alignjax.data.sources.labelled import unpaired
from alignjax.data.sources.pairs import hh, persona, pku
from alignjax.data.sources.scored import lists, rated

# Names that configs have for some of what `auto` reads.
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
