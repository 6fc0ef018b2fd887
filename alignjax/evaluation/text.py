"""Computes BLEU of sampled responses against preferred ones, with 95% intervals over prompts."""

from collections.abc import Sequence

import numpy as np

from alignjax.evaluation.statistics import Interval, bootstrap, resample

DRAWS = 1000  # of the bootstrap
_BLANK = "\u2581"  # replaces a blank where characters are tokens, so that it is a token too


def bleu(responses: Sequence[str], references: Sequence[str]) -> Interval:
    """Computes corpus BLEU over words as sacrebleu does: 13a tokens, 1- to 4-grams, 0 to 100.

    Matches are added up over all prompts before dividing. The interval is from `DRAWS` draws of
    prompts with replacement.

    Args:
      responses: one per prompt.
      references: the preferred response of each prompt.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU()
    # [prompts, 10]: matches and candidates of each order, and the two lengths.
    counts = np.array(
        [
            [*part.counts, *part.totals, part.sys_len, part.ref_len]
            for x, y in zip(responses, references, strict=True)
            for part in (metric.corpus_score([x], [[y]]),)
        ]
    )

    def score(rows: np.ndarray) -> float:
        total = [int(x) for x in counts[rows].sum(axis=0)]
        return BLEU.compute_bleu(
            total[:4], total[4:8], total[8], total[9], smooth_method=metric.smooth_method
        ).score

    n = len(counts)
    low, high = bootstrap(score, resample(n, draws=DRAWS))
    return Interval(score(np.arange(n)), float(high - low) / 2, n)


def bleu_char(responses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Computes BLEU-4 over characters for each response, 0 to 1, as the HPS authors' code does.

    That code passes strings instead of lists of words, so every character, also a blank, is a
    token. There is no smoothing. A response without a common 4-gram scores 0; in the authors' code
    nltk returns a number below 1e-70 and warns.

    Returns:
      ``[N]``; the published number is their mean.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none", smooth_method="none")

    def characters(text: str) -> str:
        return " ".join(_BLANK if c.isspace() else c for c in text)

    return np.array(
        [
            metric.corpus_score([characters(x)], [[characters(y)]]).score / 100
            for x, y in zip(responses, references, strict=True)
        ]
    )
