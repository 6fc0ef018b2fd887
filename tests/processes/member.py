"""One process of a tiny run: as ``python -m alignjax run`` begins and ends, little in between.

What it does is in its environment: ``MEMBER_FOLDER``, ``MEMBER_STUCK_AFTER`` (seconds), and
``MEMBER_TROUBLE``, what happens before which step: ``error-5``, ``hang-5``, ``int-5``, or
``saved-7``, which waits for the checkpoint of step 4.
"""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np

from alignjax import cli as program
from alignjax.errors import UserError
from alignjax.runtime import distributed, sharding
from alignjax.training import loop
from tests.training import loop_test


def verb(argv: list[str]) -> int:
    folder = pathlib.Path(os.environ["MEMBER_FOLDER"])
    distributed.start()
    mesh = sharding.make_mesh(1, jax.device_count(), 1)
    rows: list[list[int]] = []
    real = loop.put_rows

    def put_rows(batch, mesh):
        batch = real(batch, mesh)
        rows.append(distributed.fetch(batch.prompt_id).tolist())
        trouble(len(rows))
        return batch

    loop.put_rows = put_rows
    stuck_after = float(os.environ.get("MEMBER_STUCK_AFTER", "0"))
    job = loop_test.job(folder, mesh=mesh, stuck_after=stuck_after, log_every=1)
    try:
        state, counts = loop_test.fit(job)
        params = distributed.fetch(state.params)
        told = {**counts, "w": np.asarray(params["w"]).tolist()}
    except loop.StoppedError as stopped:
        told = {"stopped": str(stopped)}
        raise
    finally:
        if sys.exc_info()[0] in (None, loop.StoppedError):
            name = f"told-{distributed._state().process_id}.json"
            (folder / name).write_text(json.dumps({**told, "rows": rows}))
    return 0


def trouble(step: int) -> None:
    what, _, when = os.environ.get("MEMBER_TROUBLE", "").partition("-")
    if when != str(step):
        return
    if what == "error":
        raise UserError("wrong in this process alone")
    if what == "hang":
        time.sleep(600)
    if what == "saved":  # the save of step 4 goes on in the background
        while not (pathlib.Path(os.environ["MEMBER_FOLDER"]) / "checkpoints" / "4").is_dir():
            time.sleep(0.01)
    if what == "int":
        os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    program.run_verb = verb
    sys.argv[1:] = ["run"]
    program.main()
