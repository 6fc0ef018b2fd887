"""How training sees the reference: log-probabilities from a table on disk, or in every step."""

import logging

import numpy as np

from alignjax.data.batching import Bucketed
from alignjax.stages import reference
from alignjax.stages.check import drawn_responses, keeps_cache
from alignjax.stages.data import cache_dir
from alignjax.stages.run import Run
from alignjax.types import Params

log = logging.getLogger("alignjax")


def table(run: Run, rows: Bucketed, params: Params, digest: str, title: str) -> np.ndarray:
    """``[N, K]`` nats of every response under the reference, from the run's cache if it is there.

    Args:
      params: the reference's; ``digest`` is theirs.
      title: of the progress bar.
    """
    config = run.config
    return reference.cached_logps(
        cache_dir(config, run.workdir),
        reference.table_key(digest, rows, config.model),
        rows.dataset.response_length.shape,
        lambda: reference.dataset_logps(
            params,
            rows,
            config=config.model,
            batch_size=config.evaluate.batch_size,
            mesh=run.mesh,
            title=title,
        ),
    )


def attach(
    run: Run, params: Params, digest: str, title: str, *, trained_rows: int
) -> tuple[np.ndarray | None, reference.Choice]:
    """Chooses how steps see the reference: in the cheaper way, or as ``reference.mode`` says.

    Args:
      params: the reference's; ``digest`` is theirs.
      title: of the progress bar, where there is a table to fill.
      trained_rows: rows over all steps.

    Returns:
      ``[N, K]`` nats where steps read them from a table; and how, and why.
    """
    config, rows = run.config, run.data.train
    count, responses = rows.dataset.response_length.shape
    choice = reference.choose(
        config.reference.mode,
        rows=count,
        responses=responses,
        trained_rows=trained_rows,
        drawn=drawn_responses(config, rows),
        cacheable=keeps_cache(config, rows),
        cached=reference.is_cached(
            cache_dir(config, run.workdir), reference.table_key(digest, rows, config.model)
        ),
    )
    log.info("reference: %s (%s)", choice.mode, choice.reason)
    cached = None
    if choice.mode == "cache":
        cached = table(run, rows, params, digest, title)
    return cached, choice
