"""Arrays of several processes: made of each one's rows, looked at from all, told by process 0."""

import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from alignjax.runtime import checkpoint
from tests import runs
from tests.processes import members

# On a mesh whose order of devices gives process 0 the parts 0 and 3, and process 1 the parts 1, 2.
SCRIPT = """
    import json, pathlib, sys
    import numpy as np
    from alignjax.runtime import artifacts, checkpoint, distributed, sharding
    from alignjax.errors import CheckpointError, UserError

    distributed.start()
    import jax
    from jax.sharding import Mesh

    folder, me = pathlib.Path(sys.argv[1]), distributed.index()
    devices = np.array(jax.devices())[[0, 2, 3, 1]].reshape(2, 2, 1)
    mesh = Mesh(devices, sharding.AXES)
    rows = {"ids": np.arange(24).reshape(8, 3), "weight": np.arange(8.0, dtype=np.float32)}
    own = sharding.own_rows(mesh, 8)
    batch = sharding.put_rows(jax.tree.map(lambda x: x[own], rows), mesh)
    got = distributed.fetch(batch)
    told = {"own": own.tolist(), "same": bool((got["ids"] == rows["ids"]).all())}
    # Both processes hold parts of each row's network: both read all rows.
    across = Mesh(np.array(jax.devices())[[0, 2, 1, 3]].reshape(1, 2, 2), sharding.AXES)
    told["shared"] = sharding.own_rows(across, 8).tolist()

    whole = np.arange(72, dtype=np.float32).reshape(1, 12, 6)
    tree = {"layers": {"up": {"kernel": whole}}, "step": np.int32(3)}
    tree["embed"] = {"embedding": whole[0] + 1}
    layout = sharding.shard_tree(tree, mesh)
    spread = jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]), tree, layout
    )
    told["spread"] = not spread["embed"]["embedding"].is_fully_addressable
    told["digests"] = [checkpoint.tree_digest(spread)]
    checkpoint.PIECE = 100  # bytes: four rows of 24 at a time
    told["digests"].append(checkpoint.tree_digest(spread))

    told["told"] = distributed.broadcast("who", lambda: {"who": me, "nan": [float("nan"), 0.1]})
    told["large"] = len(distributed.broadcast("large", lambda: "x" * 10**6))

    def fail():
        raise CheckpointError(f"seen by {me}")

    try:
        distributed.broadcast("bad", fail)
    except UserError as error:
        told["bad"] = f"{error.exit_code} {error}"

    def make(scratch):
        return {"who": artifacts.part(scratch, "part", lambda: me)}

    artifact = folder / "artifact.json"
    told["made"] = artifacts.reuse_json(artifact, "key", make)
    told["reused"] = artifacts.reuse_json(artifact, "key", fail)
    (folder / f"told{me}.json").write_text(json.dumps(told))
    distributed.leave()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory, whole_run):
    """What each of two processes of two devices found."""
    folder = tmp_path_factory.mktemp("rows")
    script = runs.write(folder / "script.py", SCRIPT)
    command = [sys.executable, str(script), str(folder)]
    codes, said = members.start(folder, [{}, {}], command, JAX_NUM_CPU_DEVICES="2")
    assert codes == [0, 0], said
    return [json.loads((folder / f"told{i}.json").read_text()) for i in range(2)]


def test_rows_need_not_lie_together(told):
    assert [t["own"] for t in told] == [[0, 1, 6, 7], [2, 3, 4, 5]]
    assert [t["same"] for t in told] == [True, True]
    assert [t["shared"] for t in told] == [[*range(8)]] * 2


def test_a_digest_is_that_of_one_process(told):
    whole = jnp.arange(72, dtype=jnp.float32).reshape(1, 12, 6)
    tree = {"embed": {"embedding": whole[0] + 1}, "layers": {"up": {"kernel": whole}}}
    tree["step"] = np.int32(3)
    wanted = checkpoint.tree_digest(tree)
    assert [t["spread"] for t in told] == [True, True]
    assert [t["digests"] for t in told] == [[wanted, wanted]] * 2
    tree["step"] = np.int32(4)
    assert checkpoint.tree_digest(tree) != wanted


def test_all_are_told_what_process_0_found(told):
    for t in told:
        assert t["told"]["who"] == 0
        assert np.isnan(t["told"]["nan"][0])
        assert t["told"]["nan"][1] == 0.1
        assert t["large"] == 10**6
    assert told[0]["bad"] == "3 seen by 0"
    assert told[1]["bad"] == "3 process 0: seen by 0"


def test_an_artifact_is_that_of_process_0(told):
    for t in told:
        assert t["made"] == t["reused"] == {"key": "key", "who": 0}
