"""Cloud TPU: launch/tpu_vm.sh with a gcloud that records, and launch/tpu_worker.sh without a VM."""

import configparser
import pathlib
import shutil
import subprocess

import pytest

from alignjax import errors
from tests.launch.commands import BAD_NAMES, HOSTILE, ROOT, refused, stand_ins

SCRIPT = str(ROOT / "launch" / "tpu_vm.sh")
SLICE = {"NAME": "dpo-1", "ZONE": "us-west4-a", "ACCELERATOR": "v5litepod-16", "POLL_SECONDS": "0"}
TPUS = ["gcloud", "compute", "tpus"]
PLACE = ["dpo-1", "--quiet", "--zone=us-west4-a"]
PROPERTIES = "LoadState,ActiveState,ExecMainStatus,ExecMainStartTimestampMonotonic"
SHOW = rf"sh -c echo\ \$\(systemctl\ show\ alignjax\ --property={PROPERTIES}\)"
SHOW = SHOW.replace(",", r"\,")
STATE = "queued-resources describe"


@pytest.fixture
def cloud(tmp_path):
    return stand_ins(tmp_path, "gcloud", "git", "sudo")


def ssh(command: str, worker: str = "all") -> list[str]:
    return [*TPUS, "tpu-vm", "ssh", *PLACE, f"--worker={worker}", f"--command={command}"]


def create(*flags: str) -> list[str]:
    node = ["--node-id=dpo-1", "--accelerator-type=v5litepod-16"]
    runtime = "--runtime-version=v2-alpha-tpuv5-lite"
    return [*TPUS, "queued-resources", "create", *PLACE, *node, runtime, *flags]


DELETE = [*TPUS, "queued-resources", "delete", *PLACE, "--force"]
DESCRIBE = [*TPUS, "queued-resources", "describe", *PLACE]


def unit(load: str = "loaded", active: str = "active", code: int = 0, started: int = 7):
    main = f"ExecMainStartTimestampMonotonic={started} ExecMainStatus={code}"
    return f"{main} LoadState={load} ActiveState={active}\n", 0


def units(*workers: tuple[str, int]) -> tuple[str, int]:
    """All workers at once, one line each."""
    return "".join(line for line, _ in workers), 0


def test_create(cloud):
    assert cloud.run(SCRIPT, "create", **SLICE).returncode == 0
    assert cloud.calls() == [create()]
    more = {"PROJECT": "my-project", "SPOT": "1", "SERVICE_ACCOUNT": "a@b.iam.gserviceaccount.com"}
    assert cloud.run(SCRIPT, "create", **SLICE, **more, RUNTIME="own").returncode == 0
    (call,) = cloud.calls()
    assert call[6:] == [
        "--quiet",
        "--project=my-project",
        "--zone=us-west4-a",
        "--node-id=dpo-1",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=own",
        "--spot",
        "--service-account=a@b.iam.gserviceaccount.com",
    ]
    cloud.run(SCRIPT, "create", **SLICE | {"ACCELERATOR": "v5p-32"}, RESERVED="1")
    assert cloud.calls()[0][-2:] == ["--runtime-version=v2-alpha-tpuv5", "--reserved"]


def test_setup_copies_the_checkout_to_all_workers(cloud):
    cloud.answer({"git stash": [("0123abc\n", 0)]})
    assert cloud.run(SCRIPT, "setup", **SLICE, SHARED="10.0.0.2:/share").returncode == 0
    stash, archive, scp, *rest = cloud.calls()
    assert stash == ["git", "stash", "create"]
    assert archive[:3] == ["git", "archive", "--format=tar.gz"]
    assert archive[4:] == ["0123abc"]
    path = archive[3].removeprefix("--output=")
    copied = [path, "dpo-1:alignjax.tar.gz", "--quiet", "--zone=us-west4-a", "--worker=all"]
    assert scp == [*TPUS, "tpu-vm", "scp", *copied]
    assert not pathlib.Path(path).exists()
    assert rest == [
        ssh("sudo mkdir -p /opt/alignjax"),
        ssh("sudo tar -xzf alignjax.tar.gz -C /opt/alignjax --no-same-owner"),
        ssh("sudo bash /opt/alignjax/launch/tpu_worker.sh setup 10.0.0.2:/share"),
    ]


def test_setup_without_changes_and_without_a_shared_folder(cloud):
    assert cloud.run(SCRIPT, "setup", **SLICE).returncode == 0
    calls = cloud.calls()
    assert calls[1][4:] == ["HEAD"]
    assert calls[-1] == ssh("sudo bash /opt/alignjax/launch/tpu_worker.sh setup")


def test_any_argument_arrives_as_it_is(cloud):
    """Through gcloud, the shell on the worker and the service, to Python's argument list."""
    assert cloud.run(SCRIPT, "run", *HOSTILE, **SLICE).returncode == 0
    (call,) = cloud.calls()
    line = call[-1].removeprefix("--command=")
    assert call == ssh(line)
    assert "\n" not in line
    # gcloud splits the line at single spaces, and ssh joins it.
    done = subprocess.run(["bash", "-c", " ".join(line.split(" "))], env=cloud.environment)
    assert done.returncode == 0
    (call,) = cloud.calls()
    script = "/opt/alignjax/launch/tpu_worker.sh"
    assert call == ["sudo", "bash", script, "start", *HOSTILE]
    assert sorted(file.name for file in cloud.folder.iterdir()) == ["answers.json", "bin"]


def test_logs_status_stop_delete(cloud):
    for command in ("logs", "status", "stop", "delete"):
        assert cloud.run(SCRIPT, command, **SLICE).returncode == 0
    assert cloud.run(SCRIPT, "logs", "--lines=5", **SLICE, WORKER="all").returncode == 0
    journal = "sudo journalctl --unit=alignjax --output=cat"
    assert cloud.calls() == [
        ssh(f"{journal} --lines=100 --follow", "0"),
        DESCRIBE,
        ssh(SHOW),
        ssh("sudo bash /opt/alignjax/launch/tpu_worker.sh stop"),
        DELETE,
        ssh(f"{journal} --lines=5"),
    ]


def test_the_look_at_the_run_is_one_line_for_a_worker(worker):
    worker.answer({"show": [("LoadState=loaded\nActiveState=active\n", 0)]})
    done = subprocess.run(
        ["/bin/bash", "-c", SHOW.replace("sh -c", "/bin/sh -c")],
        env=worker.environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "LoadState=loaded ActiveState=active\n"
    assert worker.calls() == [["systemctl", "show", "alignjax", f"--property={PROPERTIES}"]]


def test_bad_names_are_refused_before_any_call(cloud):
    for name in BAD_NAMES:
        refused(cloud.run(SCRIPT, "create", **SLICE | {"NAME": name}), "tpu_vm.sh: NAME: wanted")
    for setting in ("ZONE", "PROJECT", "SHARED", "SERVICE_ACCOUNT", "ACCELERATOR", "WORKER"):
        for value in ("$(touch x)", "a\nb", "-a", "a b@c"):
            done = cloud.run(SCRIPT, "create", **SLICE | {setting: value})
            refused(done, f"tpu_vm.sh: {setting}: wanted")
    refused(cloud.run(SCRIPT, **SLICE), "tpu_vm.sh: all, create")
    refused(cloud.run(SCRIPT, "crate", **SLICE), "tpu_vm.sh: all, create")
    refused(cloud.run(SCRIPT, "delete", "dpo-2", **SLICE), "tpu_vm.sh: delete takes no arguments")
    for command in ("run", "all"):
        refused(cloud.run(SCRIPT, command, **SLICE), f"tpu_vm.sh: {command}: what to run?")
    assert cloud.calls() == []


def test_a_dry_run_calls_nothing_and_prints_what_would_be_called(cloud):
    settings = SLICE | {"SHARED": "gs://bucket", "SPOT": "1"}
    printed = cloud.run(SCRIPT, "all", *HOSTILE, **settings, DRY_RUN="1")
    assert printed.returncode == 0
    assert cloud.calls() == [["git", "stash", "create"]]  # reads the checkout
    lines = printed.stdout.splitlines()
    assert len(lines) == 9
    done = subprocess.run(["bash", "-euc", printed.stdout], env=cloud.environment)
    assert done.returncode == 0
    described = cloud.calls()
    assert len(described) == 9
    for command, arguments in [("create", ()), ("setup", ()), ("run", HOSTILE)]:
        assert cloud.run(SCRIPT, command, *arguments, **settings).returncode == 0
    real = [call for call in cloud.calls() if call[1] != "stash"]
    assert real[1][:3] == described[1][:3] == ["git", "archive", "--format=tar.gz"]
    real[1:3] = described[1:3]  # the name of the archive is new each time
    assert described == [*real, ssh(SHOW), DELETE]


def test_what_gcloud_fails_with_is_what_the_script_ends_with(cloud):
    said = ("ERROR: no quota\n", 7)
    cloud.answer({"compute": [said]})
    for command in (["create"], ["status"], ["delete"], ["stop"], ["logs"], ["run", "--a"]):
        done = cloud.run(SCRIPT, *command, **SLICE)
        assert (done.returncode, done.stderr) == (7, said[0])
        assert len(cloud.calls()) == 1
    cloud.answer({"scp": [said]})
    assert cloud.run(SCRIPT, "setup", **SLICE).returncode == 7
    assert [call[4] for call in cloud.calls() if call[0] == "gcloud"] == ["scp"]


def verbs(calls: list[list[str]]) -> list[str]:
    """What was done, without the looks at the slice and the run."""
    done = []
    for call in calls:
        if call[0] != "gcloud" or "describe" in call or call[-1] == f"--command={SHOW}":
            continue
        what = call[-1].split("tpu_worker.sh ")[-1].split()[0] if call[4] == "ssh" else call[4]
        done.append(what)
    return [what for what in done if not what.startswith("--command")]


def test_all_creates_again_what_was_preempted_until_the_run_ends(cloud):
    missing = ("ERROR: (gcloud) NOT_FOUND: Resource was not found\n", 1)
    states = ["CREATING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDING"]
    states += ["SUSPENDED", "DELETING", None, "ACTIVE", "ACTIVE", "ACTIVE"]
    said = [(f"{state}\n", 0) if state else missing for state in states]
    new = unit(load="not-found", active="inactive", started=0)
    waits = unit(active="activating", code=143)
    cloud.answer(
        {
            STATE: [missing, *said],
            "systemctl": [new, unit(), new, waits, unit(active="inactive")],
        }
    )
    done = cloud.run(SCRIPT, "all", "--config=a b", **SLICE)
    assert done.returncode == 0, done
    calls = cloud.calls()
    once = ["create", "scp", "setup", "start"]
    assert verbs(calls) == [*once, "delete", *once, "delete"]
    before = calls[: calls.index(DELETE)]  # not before it is gone
    looks = [call for call in before if "--format=value(state.state)" in call]
    assert len(looks) == 1 + len(states[: states.index("SUSPENDED") + 1])
    starts = [call for call in calls if " start " in call[-1]]
    expected = ssh("sudo bash /opt/alignjax/launch/tpu_worker.sh start --config=a\\ b")
    assert starts == [expected, expected]
    assert done.stdout.count("dpo-1: ACTIVE running") == 2


well, up = unit(active="inactive"), unit()
restarting = unit(active="activating", code=5)


@pytest.mark.parametrize(
    ("workers", "code"),
    [
        ([well, well], 0),
        ([restarting, unit(active="failed", code=2)], 2),  # the others would wait for ever
        ([unit(active="failed", code=143), up], 143),
        ([unit(active="failed", code=0), up], 1),  # too many starts
    ],
)
def test_all_gives_the_slice_back_whatever_the_end(cloud, workers, code):
    cloud.answer({STATE: [("ACTIVE\n", 0)], "systemctl": [units(*workers)]})
    assert cloud.run(SCRIPT, "all", "--config=a", **SLICE).returncode == code
    assert cloud.calls() == [[*DESCRIBE, "--format=value(state.state)"], ssh(SHOW), DELETE]


@pytest.mark.parametrize("workers", [[up, well], [well, restarting], [well, up, well]])
def test_all_waits_for_the_last_worker(cloud, workers):
    said = [units(*workers), units(*workers), units(*[well] * len(workers))]
    cloud.answer({STATE: [("ACTIVE\n", 0)], "systemctl": said})
    done = cloud.run(SCRIPT, "all", "--config=a", **SLICE)
    assert (done.returncode, verbs(cloud.calls())) == (0, ["delete"])
    assert "ACTIVE running\n" in done.stdout
    assert "ACTIVE ended 0\n" in done.stdout


def test_all_starts_on_the_workers_where_it_does_not_run(cloud):
    new = unit(active="inactive", started=0)
    said = [units(up, new), units(new, up), units(well, well)]
    cloud.answer({STATE: [("ACTIVE\n", 0)], "systemctl": said})
    assert cloud.run(SCRIPT, "all", "--config=a", **SLICE).returncode == 0
    assert verbs(cloud.calls()) == ["scp", "setup", "start"] * 2 + ["delete"]


def test_a_slice_can_be_gone_while_its_request_is_active(cloud):
    cloud.answer(
        {
            STATE: [("ACTIVE\n", 0)],
            "systemctl": [("", 255), well],
            "tpu-vm describe": [("PREEMPTED\n", 0)],
        }
    )
    assert cloud.run(SCRIPT, "all", "--config=a", **SLICE).returncode == 0
    assert verbs(cloud.calls()) == ["delete", "delete"]


def test_all_ends_when_no_slice_can_be_had(cloud):
    cloud.answer({STATE: [("FAILED\n", 0)]})
    done = cloud.run(SCRIPT, "all", "--config=a", **SLICE)
    assert (done.returncode, verbs(cloud.calls())) == (1, [])
    assert "status' says why" in done.stderr


def test_all_goes_on_after_failures_but_not_for_ever(cloud):
    lost = ("ERROR: connection lost\n", 255)
    new, ended = unit(active="inactive", started=0), unit(active="inactive")
    cloud.answer(
        {
            STATE: [lost, ("ACTIVE\n", 0)],
            "systemctl": [lost, new, new, ended],
            "scp": [lost, ("", 0)],
        }
    )
    assert cloud.run(SCRIPT, "all", "--config=a", **SLICE).returncode == 0
    assert verbs(cloud.calls()) == ["scp", "scp", "setup", "start", "delete"]
    cloud.answer({STATE: [lost]})
    done = cloud.run(SCRIPT, "all", "--config=a", **SLICE)
    assert done.returncode == 1
    assert done.stderr.endswith("the slice, if there is one, is still there\n")
    assert cloud.calls() == [[*DESCRIBE, "--format=value(state.state)"]] * 20


def test_all_ends_at_once_on_bad_input(cloud):
    missing = ("NOT_FOUND\n", 1)
    cloud.answer({STATE: [missing], "create": [("ERROR: unrecognized arguments\n", 2)]})
    assert cloud.run(SCRIPT, "all", "--config=a", **SLICE).returncode == 2
    assert verbs(cloud.calls()) == ["create"]


@pytest.fixture
def worker(tmp_path):
    """The worker's script in a folder of its own, as if that were /opt/alignjax."""
    programs = ["apt-get", "cp", "curl", "env", "gcsfuse", "lsb_release", "mkdir", "mount"]
    programs += ["mountpoint", "sh", "systemctl", "tee", "uv"]
    made = stand_ins(tmp_path, *programs, reading=("tee",))
    place = tmp_path / "launch" / "tpu_worker.sh"
    place.parent.mkdir()
    shutil.copy(ROOT / "launch" / "tpu_worker.sh", place)
    made.answer({"mountpoint": [("", 1)], "is-active": [("", 3)]})
    return made


WORKER = "launch/tpu_worker.sh"
SYNC = ["uv", "sync", "--frozen", "--extra", "tpu", "--python", "3.12"]


def test_worker_mounts_nfs(worker):
    assert worker.run(WORKER, "setup", "10.0.0.2:/share").returncode == 0
    calls = [call for call in worker.take() if call[0][0] != "apt-get"]
    copy = ["cp", "launch/alignjax.service", "/etc/systemd/system/"]
    line = "10.0.0.2:/share /mnt/shared nfs defaults,_netdev 0 0\n"
    assert calls == [
        (["mkdir", "-p", "/mnt/shared"], ""),
        (["tee", "-a", "/etc/fstab"], line),
        (["mountpoint", "--quiet", "/mnt/shared"], ""),
        (["mount", "/mnt/shared"], ""),
        (SYNC, ""),
        (copy, ""),
    ]


def test_worker_mounts_a_bucket_and_does_without_a_shared_folder(worker):
    worker.answer({})  # it is mounted by now
    assert worker.run(WORKER, "setup", "gs://my-bucket").returncode == 0
    line = "my-bucket /mnt/shared gcsfuse rw,_netdev,allow_other,implicit_dirs 0 0\n"
    calls = worker.take()
    assert (["tee", "-a", "/etc/fstab"], line) in calls
    assert [argv for argv, _ in calls if argv[0] in ("mount", "apt-get")] == []
    assert worker.run(WORKER, "setup").returncode == 0
    assert worker.calls()[0] == SYNC


def test_worker_runs_exactly_the_arguments(worker):
    assert worker.run(WORKER, "start", *HOSTILE).returncode == 0
    assert [call[1:] for call in worker.calls()] == [
        ["is-active", "--quiet", "alignjax"],
        ["daemon-reload"],
        ["reset-failed", "alignjax"],
        ["enable", "--now", "alignjax"],
    ]
    python = worker.folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    shutil.copy(worker.folder / "bin" / "uv", python)
    shutil.copy(worker.folder / "answers.json", python.parent.parent)
    assert worker.run(WORKER, "exec").returncode == 0
    worker.folder.joinpath(".venv", "calls.jsonl").rename(worker.folder / "calls.jsonl")
    assert worker.calls() == [["python", "-m", "alignjax", "run", *HOSTILE]]


def test_worker_refuses_a_second_run_and_stops_the_first(worker):
    assert worker.run(WORKER, "start", "--config=a").returncode == 0
    worker.answer({})  # from now on is-active says yes
    worker.take()
    done = worker.run(WORKER, "start", "--config=a")
    assert (done.returncode, done.stdout.count("under way already")) == (0, 1)
    assert worker.calls() == [["systemctl", "is-active", "--quiet", "alignjax"]]
    refused(worker.run(WORKER, "start", "--config=b"), "tpu_worker.sh: another run is under way")
    refused(worker.run(WORKER, "start"), "tpu_worker.sh: start: the arguments")
    refused(worker.run(WORKER), "tpu_worker.sh: setup, start, stop or exec")
    worker.take()
    assert worker.run(WORKER, "stop").returncode == 0
    assert worker.calls() == [["systemctl", "disable", "--now", "alignjax"]]


def test_service_restarts_all_but_what_another_start_would_not_change():
    service = configparser.ConfigParser(interpolation=None)
    service.optionxform = str
    service.read(ROOT / "launch" / "alignjax.service")
    assert service["Service"]["Restart"] == "on-failure"
    user = (errors.UserError, errors.CheckpointError, errors.NumericalError)
    kept_down = [int(code) for code in service["Service"]["RestartPreventExitStatus"].split()]
    assert kept_down == [error.exit_code for error in user]
    assert "SuccessExitStatus" not in service["Service"]  # 143 would be a success, and the end
    assert service["Service"]["KillMode"] == "mixed"
    assert service["Service"]["WorkingDirectory"] == "/opt/alignjax"
    assert service["Service"]["ExecStart"] == f"/bin/bash {WORKER} exec"
