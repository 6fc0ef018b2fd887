"""Runs the command ``data``: reads and checks the data of a config, without training."""

import os
import pathlib
import sys
import tempfile

from alignjax.config import Config
from alignjax.data import shown
from alignjax.errors import UserError
from alignjax.evaluation import tables
from alignjax.stages import pretrained
from alignjax.stages.data import survey


def show_data(config: Config, show: str = "text") -> None:
    """Reads and checks the data, prints the data report and the first rows.

    Args:
      config: of a run.
      show: ``text``, or ``tokens`` as in `shown.tokens`.

    Raises:
      UserError: the data are bad, or ``show`` is neither.
    """
    if show not in ("text", "tokens"):
        raise UserError(f"--show: wanted text or tokens, found {show!r}")
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    config = pretrained.resolve(config, runs=False)
    with tempfile.TemporaryDirectory() as folder:
        examples, names, tokenizer = survey(config, pathlib.Path(folder))
        if show == "tokens":
            tables.say("\n[trained][tokens], not|trained")
        for example in examples:
            tables.say(f"\n--- {example.id}" + (f"\n{example.prompt}" if show == "text" else ""))
            for i, response in enumerate(example.responses):
                notes = [] if example.desirable is None else [f" desirable={example.desirable[i]}"]
                if example.scores is not None:
                    scores = zip(names, example.scores[i], strict=True)
                    notes += [f" {name}={score:.7g}" for name, score in scores]
                if show == "tokens":
                    ids = example.prompt_ids, example.response_ids[i]
                    response = " " + shown.tokens(tokenizer, *ids, colour=colour)
                tables.say(f"  [{i}{','.join(notes)}]{response}")
