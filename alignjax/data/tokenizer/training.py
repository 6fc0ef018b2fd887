"""Trains a tokenizer on one's own data, for runs that start from nothing."""

import io
import os
from collections.abc import Iterable

from alignjax.errors import UserError


def train_sentencepiece(texts: Iterable[str], *, vocab_size: int, path: str) -> None:
    """Trains a BPE model and writes it to ``path``, all or nothing.

    The model is lossless: no normalisation, no added space, bytes for characters it has not seen.
    Ids: 0 pad, 1 EOS, 2 unknown, 3 BOS, then 256 bytes, then pieces. The same texts give the same
    bytes. ``vocab_size`` is an upper limit; few texts give fewer pieces.

    Raises:
      UserError: no text, or ``vocab_size`` too small for the bytes and characters of the texts.
    """
    import sentencepiece

    if vocab_size < 300:
        raise UserError(f"tokenizer: vocab_size is {vocab_size}, expected at least 300")
    model = io.BytesIO()
    lines = (line for text in texts for line in _sentences(text))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
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
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"tokenizer: sentencepiece could not be trained ({reason})") from None
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        file.write(model.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sentences(text: str) -> list[str]:
    """Cuts a text into pieces short enough for the trainer, which would skip a longer one."""
    size = 2**14  # characters; at most 4 bytes each
    return [text[start : start + size] for start in range(0, len(text), size)]
