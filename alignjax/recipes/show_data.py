"""What the verb ``data`` does: reads and checks the data of a config, and trains nothing."""

import pathlib
import tempfile

from alignjax.config import Config
from alignjax.evaluation import tables
from alignjax.stages import pretrained
from alignjax.stages.data import survey


def show_data(config: Config) -> None:
    """Reads, checks and prints the receipt of the data, and the first rows; trains nothing."""
    config = pretrained.resolve(config, runs=False)
    with tempfile.TemporaryDirectory() as folder:
        examples, names = survey(config, pathlib.Path(folder))
        for example in examples:
            tables.say(f"\n--- {example.id}\n{example.prompt}")
            for i, response in enumerate(example.responses):
                told = [] if example.desirable is None else [f" desirable={example.desirable[i]}"]
                if example.scores is not None:
                    scores = zip(names, example.scores[i], strict=True)
                    told += [f" {name}={score:.7g}" for name, score in scores]
                tables.say(f"  [{i}{','.join(told)}]{response}")
