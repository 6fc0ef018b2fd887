"""Scores of responses: from a trained reward model, or from a judge that is a plain function.

A `Scorer` takes records and returns one array per record. Configs bind one with
`functools.partial`:

    scorer=partial(score.reward_model, path="runs/rm")
    scorer=partial(score.judged, judge=world.judge, name="true_score")
"""

from collections.abc import Callable, Sequence

import numpy as np

from alignjax.data.records import DataError, Record
from alignjax.errors import did_you_mean

Scorer = Callable[[Sequence[Record]], list[np.ndarray]]  # for each record [k] or [k, M] float32
Judge = Callable[[str, str], dict[str, float]]  # (prompt, response) -> {name: score}


def judged(
    records: Sequence[Record], *, judge: Judge, name: str | tuple[str, ...]
) -> list[np.ndarray]:
    """Scores by a function of the texts, such as the embedded world's truth.

    Args:
      records: their prompts are plain text.
      judge: ``(prompt, response) -> {name: score}``.
      name: which of its scores, larger is better; a tuple of M names for M objectives.

    Returns:
      For each record ``[k]`` float32, or ``[k, M]`` where ``name`` is a tuple.

    Raises:
      DataError: a prompt is a conversation, or the judge has no such score.
    """
    names = (name,) if isinstance(name, str) else name
    found = []
    for record in records:
        if not isinstance(record.prompt, str):
            raise DataError(
                f"{record.origin or record.id}: the prompt is a conversation, and a judge reads "
                "plain text"
            )
        rows = [judge(record.prompt, response) for response in record.responses]
        for row in rows:
            for wanted in names:
                if wanted not in row:
                    raise DataError(
                        f"name: the judge gives no score {wanted!r}{did_you_mean(wanted, row)}; "
                        f"it gives {', '.join(row)}"
                    )
        scores = np.array([[row[n] for n in names] for row in rows], np.float32)
        scores = scores.reshape(len(rows), len(names))
        found.append(scores[:, 0] if isinstance(name, str) else scores)
    return found
