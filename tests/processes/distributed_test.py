"""Processes that wait for each other, exchange and agree; and what an environment announces."""

import json
import signal
import subprocess
import sys

import pytest

from alignjax.errors import UserError
from alignjax.runtime import cluster, consistency, distributed
from tests import runs
from tests.processes import members

SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}
PLAIN = {
    "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}

SCRIPT = """
    import json, pathlib, sys
    from alignjax.runtime import consistency, distributed
    from alignjax.errors import CheckpointError, UserError

    folder, me = pathlib.Path(sys.argv[1]), None
    distributed.start()
    me = distributed._state().process_id
    told = {"main": distributed.is_main(), "several": distributed.several()}

    def caught(act, *arguments):
        try:
            act(*arguments)
        except UserError as error:
            return f"{error.exit_code} {error}"
        return "fine"

    def bad():
        raise CheckpointError("no such step")

    distributed.run_on_main("file", lambda: (folder / "made").write_text("by 0"))
    told["made"] = (folder / "made").read_text()
    told["bad"] = caught(distributed.run_on_main, "bad", bad)
    told["exchange"] = distributed.exchange("x", f"from {me}")
    same = {"code": "c0de", "seed": "1"}
    told["same"] = caught(consistency.check_same, same)
    told["other"] = caught(consistency.check_same, {**same, "data": f"d{min(me, 1)}"})
    told["missing"] = caught(consistency.check_same, same if me else {**same, "lora": "yes"})
    told["shared"] = caught(consistency.check_shared_folder, folder / "new", "--workdir")
    told["apart"] = caught(consistency.check_shared_folder, folder / f"own{me % 2}", "--workdir")
    told["left"] = sorted(p.name for p in folder.rglob(".process*"))

    import jax, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    mesh = Mesh(jax.devices(), "data")
    whole = np.arange(jax.device_count() * 2.0)
    def spread(spec):
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(whole.shape, sharding, lambda i: whole[i])
    tree = {"split": spread(P("data")), "copied": spread(P()), "host": whole}
    got = distributed.fetch(tree)
    told["fetch"] = all(type(x) is np.ndarray and (x == whole).all() for x in got.values())
    try:
        np.asarray(tree["split"])
    except RuntimeError:
        told["spread"] = True
    distributed.barrier("end")
    (folder / f"told{me}.json").write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory, whole_run):
    """What three processes found out, in order; they find each other as tasks of Slurm."""
    folder = tmp_path_factory.mktemp("processes")
    script = runs.write(folder / "script.py", SCRIPT)
    port = members.free_port()
    started = []
    for i in range(3):
        env = runs.environment(
            SLURM_JOB_ID="17",
            SLURM_STEP_NODELIST="localhost",
            SLURM_STEP_NUM_NODES="1",
            SLURM_STEP_NUM_TASKS="3",
            SLURM_PROCID=str(i),
            SLURM_LOCALID=str(i),
            JAX_COORDINATOR_PORT=str(port),
        )
        command = [sys.executable, str(script), str(folder)]
        with (folder / f"output{i}").open("w") as output:
            started.append(subprocess.Popen(command, env=env, stdout=output, stderr=output))
    try:
        codes = [process.wait(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    said = [(folder / f"output{i}").read_text() for i in range(3)]
    assert codes == [0, 0, 0], said
    return [json.loads((folder / f"told{i}.json").read_text()) for i in range(3)]


def test_processes_know_their_place(told):
    assert [(t["main"], t["several"]) for t in told] == [
        (True, True),
        (False, True),
        (False, True),
    ]
    assert [t["exchange"] for t in told] == [["from 0", "from 1", "from 2"]] * 3


def test_process_0_makes_and_its_error_is_everyones(told):
    assert [t["made"] for t in told] == ["by 0"] * 3
    assert [t["bad"] for t in told] == ["3 no such step", *["3 process 0: no such step"] * 2]


def test_disagreement_names_the_odd_process_everywhere(told):
    assert [t["same"] for t in told] == ["fine"] * 3
    host = distributed.platform.node()
    assert [t["other"] for t in told] == [
        f"2 the processes disagree on data: process 0 ({host}) has d0, the others have d1"
    ] * 3
    assert [t["missing"] for t in told] == [
        f"2 the processes disagree on lora: process 0 ({host}) has yes, the others have nothing"
    ] * 3


def test_a_workdir_that_is_not_shared_is_refused_everywhere(told):
    assert [t["shared"] for t in told] == ["fine"] * 3
    for t in told:
        assert t["apart"].startswith("2 --workdir: ")
        assert "process 1" in t["apart"]
        assert "does not see" in t["apart"]
        assert not t["left"]


def test_fetched_arrays_are_whole(told):
    assert all(t["fetch"] for t in told)
    assert all(t["spread"] for t in told)  # and without it they cannot be read


def test_without_an_announcement_nothing_waits(tmp_path):
    assert cluster.detect_cluster({}, on_tpu=False) is None
    assert distributed.is_main()
    assert not distributed.several()
    distributed.barrier("alone")
    consistency.check_same({"data": "one"})
    consistency.check_shared_folder(tmp_path / "not made", "--workdir")
    assert not (tmp_path / "not made").exists()
    made = []
    distributed.run_on_main("alone", lambda: made.append(1))
    assert made == [1]
    with pytest.raises(UserError, match=r"^own$"):
        distributed.run_on_main("alone", _raise)


def _raise() -> None:
    raise UserError("own")


def test_plain_addresses():
    assert cluster.detect_cluster(PLAIN, on_tpu=True) == cluster.Cluster(
        "deactivate", "10.0.0.1:1234", 2, 1
    )
    alone = {**PLAIN, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    assert cluster.detect_cluster(alone, on_tpu=False) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": ""}, "but not JAX_COORDINATOR_ADDRESS"),
        ({"JAX_PROCESS_ID": ""}, "but not JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID: wanted 0 to JAX_NUM_PROCESSES - 1 = 1, found 2"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES: wanted a number, found 'two'"),
        ({"JAX_COORDINATOR_ADDRESS": "node"}, "wanted host:port of process 0, found 'node'"),
    ],
)
def test_half_an_announcement_is_refused(change, message):
    with pytest.raises(UserError) as error:
        cluster.detect_cluster({**PLAIN, **change}, on_tpu=False)
    assert message in str(error.value)


def test_half_an_announcement_ends_the_program_at_once(tmp_path):
    done = runs.start(
        *runs.run_arguments(tmp_path / "run"), JAX_PLATFORMS="cpu", JAX_NUM_PROCESSES="2"
    )
    assert done.returncode == 2
    assert done.stderr.startswith("alignjax: the environment has JAX_NUM_PROCESSES, but not")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "devices"),
    [
        ({}, None),  # two tasks on each machine: JAX gives each the GPU of its local number
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "1"}, (0,)),  # Slurm gave it one
        ({"SLURM_STEP_NUM_NODES": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (0, 1, 2, 3)),
    ],
)
def test_slurm_step(change, devices):
    found = cluster.detect_cluster({**SLURM, **change}, on_tpu=False)
    assert found == cluster.Cluster("slurm", None, 4, 3, devices)


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_STEP_NUM_TASKS": "1"},  # srun with one task; the shell of salloc
        {"SLURM_STEP_NUM_TASKS": None, "SLURM_STEP_NODELIST": None},  # the script of sbatch
    ],
)
def test_no_slurm_step_of_several_tasks_runs_alone(change):
    env = {k: v for k, v in {**SLURM, **change}.items() if v is not None}
    assert cluster.detect_cluster(env, on_tpu=False) is None


def test_slurm_step_without_a_number_is_refused():
    env = {k: v for k, v in SLURM.items() if k != "SLURM_PROCID"}
    with pytest.raises(UserError, match="without SLURM_PROCID"):
        cluster.detect_cluster(env, on_tpu=False)


def test_tpus_ask_jax_and_only_there():
    assert cluster.detect_cluster({}, on_tpu=True) == cluster.Cluster("gcetpu")
    gke = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}
    assert cluster.detect_cluster(gke, on_tpu=True) == cluster.Cluster("gketpu")
    assert cluster.detect_cluster(gke, on_tpu=False) is None


def test_tpus_without_a_cluster_run_alone(monkeypatch, caplog):
    import jax

    def initialize(**how):
        assert how["cluster_detection_method"] == "gcetpu"
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(distributed, "_on_tpu", lambda: True)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    distributed.start()
    assert not distributed.several()
    assert "this process runs alone" in caplog.text
    assert signal.getsignal(signal.SIGABRT) == signal.SIG_DFL
    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", _raise_value)
    with pytest.raises(UserError, match="of the environment cannot be joined: such an id"):
        distributed.start()


def _raise_value(**how: object) -> None:
    raise ValueError("such an id")


def test_jax_still_reads_what_is_relied_on(monkeypatch):
    """The methods are named, and Slurm's address found, by JAX."""
    from jax._src import clusters

    names = {kind.name: kind for kind in clusters.ClusterEnv._cluster_types}
    assert {"slurm", "gcetpu", "gketpu"} <= set(names)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert names["slurm"].is_env_present()
    address = names["slurm"].get_coordinator_address(
        timeout_secs=1, override_coordinator_port="1234"
    )
    assert address == "gpu03:1234"
    monkeypatch.delenv("JAX_PLATFORMS")
    assert distributed._on_tpu() is False  # no TPU where tests run; the attribute is there
