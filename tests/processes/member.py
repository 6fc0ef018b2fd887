"""One process of a tiny run: as ``python -m alignjax run`` begins and ends, little in between."""

import json
import os
import pathlib
import sys
import time

import jax
import numpy as np

from alignjax import __main__ as program
from alignjax import checkpoint, distributed, sharding, train
from alignjax.errors import UserError
from tests import train_test

STUCK_AFTER = 4.0


def verb(argv: list[str]) -> int:
    workdir = pathlib.Path(os.environ["MEMBER_WORKDIR"])
    trouble = os.environ.get("MEMBER_TROUBLE", "")
    distributed.start()
    mesh = sharding.make_mesh(1, jax.device_count(), 1)
    seen: list[list[int]] = []
    real = train.put_rows

    def put_rows(batch, mesh):
        seen.append(np.asarray(batch.prompt_id).tolist())
        if trouble == f"error-{len(seen)}":
            raise UserError("this process alone")
        if trouble == f"bug-{len(seen)}":
            raise ZeroDivisionError("this process alone")
        if trouble == f"hangs-{len(seen)}":
            time.sleep(600)
        return real(batch, mesh)

    train.put_rows = put_rows
    stuck_after = STUCK_AFTER if "MEMBER_STUCK" in os.environ else 0.0
    job = train_test.job(workdir, mesh=mesh, stuck_after=stuck_after, log_every=1)
    state, counts = train_test.fit(job)
    digest = checkpoint.tree_digest(distributed.fetch(train_test.bare(state)))
    told = {"counts": counts, "seen": seen, "digest": digest}
    me = distributed._state().process_id
    (workdir / f"told{me}.json").write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    program._verb = verb
    sys.argv[1:] = ["run"]
    program.main()
