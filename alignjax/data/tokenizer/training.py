"""Trains a tokenizer on the run's data, for models that are trained from scratch."""

import collections
import io
import itertools
import os
from collections.abc import Iterable, Set

from alignjax.errors import UserError, naming_file

FIXED = 260  # ids before the pieces: pad, EOS, unknown, BOS and 256 bytes


def train_sentencepiece(texts: Iterable[str], *, vocab_size: int, path: str) -> None:
    """Trains a BPE model and writes it to ``path`` atomically.

    The model is lossless: no normalisation, no added space, bytes for unseen characters. Ids: 0
    pad, 1 EOS, 2 unknown, 3 BOS, then 256 bytes, then pieces. The same texts give the same file.
    ``vocab_size`` is an upper limit; few texts give fewer pieces. If it is too small for all
    characters of the texts, rare ones are written as bytes, and half of the pieces are characters.

    Raises:
      UserError: no text, or ``vocab_size`` below 300.
    """
    if vocab_size < 300:
        raise UserError(f"tokenizer: vocab_size: wanted at least 300, found {vocab_size}")
    lines = [line for text in texts for line in _sentences(text)]
    try:
        try:
            model = _train(lines, vocab_size)
        except RuntimeError as error:
            if "required_chars" not in str(error):
                raise
            counts = collections.Counter(itertools.chain.from_iterable(lines))
            common = {character for character, _ in counts.most_common((vocab_size - FIXED) // 2)}
            model = _train((part for line in lines for part in _cut(line, common)), vocab_size)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"tokenizer: sentencepiece could not be trained ({reason})") from None
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    with naming_file(path), open(temporary, "wb") as file:
        file.write(model)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _train(lines: Iterable[str], vocab_size: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=3,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        max_sentence_length=2**16,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _cut(line: str, common: Set[str]) -> list[str]:
    """Splits a line at every character that is not in ``common``."""
    return "".join(x if x in common else "\n" for x in line).split("\n")


def _sentences(text: str) -> list[str]:
    """Splits a text into pieces that the trainer accepts: it skips longer ones."""
    size = 2**14  # characters; at most 4 bytes each
    return [text[start : start + size] for start in range(0, len(text), size)]
