"""GKE: launch/gke.sh with a kubectl that records, its JobSet by the published API, the image."""

import copy
import re
import subprocess
import tomllib

import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

from alignjax import errors
from tests.launch.commands import BAD_NAMES, HOSTILE, ROOT, refused, stand_ins

SCRIPT = str(ROOT / "launch" / "gke.sh")
SLICE = {
    "NAME": "dpo-1",
    "IMAGE": "us-docker.pkg.dev/p/images/alignjax:1",
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x4",
    "CLAIM": "shared",
}
CREATE = ["kubectl", "create", "--validate=strict", "-f", "-"]


@pytest.fixture
def cluster(tmp_path):
    return stand_ins(tmp_path, "kubectl", "docker", reading=("kubectl",))


def created(cluster, *arguments: str, **settings: str) -> dict:
    """The JobSet that `run` hands to kubectl."""
    done = cluster.run(SCRIPT, "run", *arguments, **SLICE | settings)
    assert done.returncode == 0, done
    ((argv, text),) = cluster.take()
    assert argv == CREATE
    return yaml.safe_load(text)


def differences(document, known, path: str = "") -> list[str]:
    if isinstance(document, dict) and isinstance(known, dict):
        keys = [*document, *(key for key in known if key not in document)]
        pairs = [(f"{path}.{key}", document.get(key), known.get(key)) for key in keys]
    elif isinstance(document, list) and isinstance(known, list) and len(document) == len(known):
        both = enumerate(zip(document, known, strict=True))
        pairs = [(f"{path}[{i}]", *values) for i, values in both]
    else:
        return [] if document == known else [path]
    return [wrong for place, *values in pairs for wrong in differences(*values, place)]


def check(document: dict) -> list[str]:
    """What the published API refuses, as `kubectl --validate=strict` does.

    A wrong type raises. The paths returned are those of fields that the API's own reading of the
    document drops, because it has none of that name, or fills in, because it cannot do without.
    """
    return differences(document, JobsetV1alpha2JobSet.from_dict(document).to_dict())


def pod(jobset: dict) -> dict:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_the_jobset_is_one_of_the_published_api(cluster):
    assert check(created(cluster, *HOSTILE)) == []
    assert check(created(cluster, "--config=a", SPOT="1")) == []


def test_the_check_finds_what_is_misspelt_missing_or_of_a_wrong_type(cluster):
    good = created(cluster, "--config=a")
    for change, wrong in (
        (lambda d: pod(d)["containers"][0]["securityContext"].update(runAsUsr=0), "runAsUsr"),
        (lambda d: pod(d)["containers"][0].pop("name"), "name"),
    ):
        document = copy.deepcopy(good)
        change(document)
        assert [path.split(".")[-1] for path in check(document)] == [wrong]
    good["spec"]["failurePolicy"].update(maxRestarts="many")
    with pytest.raises(ValueError):
        check(good)


def expanded(argument: str) -> str:
    """Kubernetes' $(NAME) in arguments: $$ is $; a name without a value stays as it is."""
    known = {"JAX_PLATFORMS": "tpu,cpu", "HOME": "/root", "NAME": "wrong"}
    return re.sub(
        r"\$(?:(\$)|\(([^)]*)\))",
        lambda found: "$" if found[1] else known.get(found[2], found[0]),
        argument,
    )


def test_any_argument_arrives_as_it_is(cluster):
    arguments = [*HOSTILE, "$(JAX_PLATFORMS)", "$$(HOME)", "${ARGS}${HOSTS}"]
    args = pod(created(cluster, *arguments))["containers"][0]["args"]
    assert [expanded(argument) for argument in args] == ["run", *arguments]
    assert expanded("$(JAX_PLATFORMS)") == "tpu,cpu"  # what doubling $ is for


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"),
    [("4x4", "4", 4), ("2x4", "8", 1), ("2x2x4", "4", 4), ("16x16", "4", 64), ("8x8x8", "4", 128)],
)
def test_one_process_for_each_host_of_the_slice(cluster, topology, chips, hosts):
    jobset = created(cluster, "--config=a", TOPOLOGY=topology, CHIPS=chips)
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["completionMode"]) == (
        hosts,
        hosts,
        "Indexed",
    )
    (container,) = pod(jobset)["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": int(chips)}
    assert pod(jobset)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": topology,
    }


def test_spot_nodes_and_the_shared_folder(cluster):
    jobset = created(cluster, "--config=a", SPOT="1", NAME="true", CLAIM="null", IMAGE="1:30")
    assert pod(jobset)["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    tolerated = [each["key"] for each in pod(jobset)["tolerations"]]
    assert tolerated == ["google.com/tpu", "cloud.google.com/gke-spot"]
    # Letters that YAML could take for something else.
    assert jobset["metadata"]["name"] == "true"
    (container,) = pod(jobset)["containers"]
    assert container["image"] == "1:30"
    (volume,) = pod(jobset)["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "null"}
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/mnt/shared"}]


def after(jobset: dict, code: int = 0, condition: str = "") -> str:
    """What JobSet does after a pod ended so, by the two policies as their documents put them."""
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        exits = rule.get("onExitCodes", {"values": []})
        wanted = [each["type"] for each in rule.get("onPodConditions", [])]
        if code in exits["values"] or condition in wanted:
            what = f"has condition {condition}" if condition else f"failed with exit code {code}"
            reason = "PodFailurePolicy"
            message = f"Pod default/dpo-1 {what} matching {rule['action']} rule at index {index}"
            break
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


def test_what_restarts(cluster):
    jobset = created(cluster, "--config=a")
    user = [errors.UserError, errors.CheckpointError, errors.NumericalError]
    assert {after(jobset, error.exit_code) for error in user} == {"FailJobSet"}
    assert after(jobset, 143) == "RestartJobSetAndIgnoreMaxRestarts"
    assert after(jobset, 137, "DisruptionTarget") == "RestartJobSetAndIgnoreMaxRestarts"
    assert {after(jobset, code) for code in (1, 5, 134, 137)} == {"RestartJobSet"}  # counted
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 20
    assert pod(jobset)["restartPolicy"] == "Never"  # what a pod failure policy needs
    assert pod(jobset)["terminationGracePeriodSeconds"] == 600


def test_image_logs_status_delete(cluster):
    for command in ("image", "logs", "status", "delete"):
        assert cluster.run(SCRIPT, command, **SLICE).returncode == 0
    assert cluster.run(SCRIPT, "logs", "-p", **SLICE, NAMESPACE="ml", WORKER="3").returncode == 0
    pods = "--selector=jobset.sigs.k8s.io/jobset-name=dpo-1"
    host = f"{pods},batch.kubernetes.io/job-completion-index="
    build = ["--file=launch/Dockerfile", "--build-arg=EXTRA=tpu", f"--tag={SLICE['IMAGE']}", "."]
    logs = ["logs", "--container=alignjax"]
    assert cluster.calls() == [
        ["docker", "build", *build],
        ["docker", "push", SLICE["IMAGE"]],
        ["kubectl", *logs, f"{host}0", "--tail=100", "--follow"],
        ["kubectl", "get", "jobset", "dpo-1"],
        ["kubectl", "get", "pods", pods, "--output=wide"],
        ["kubectl", "delete", "jobset", "dpo-1"],
        ["kubectl", "--namespace=ml", *logs, f"{host}3", "-p"],
    ]


def test_a_dry_run_calls_nothing_and_prints_the_jobset(cluster):
    done = cluster.run(SCRIPT, "run", *HOSTILE, **SLICE, DRY_RUN="1")
    assert (cluster.calls(), done.returncode) == ([], 0)
    command, text = done.stdout.split("\n", 1)
    assert command.split() == CREATE
    assert yaml.safe_load(text) == created(cluster, *HOSTILE)
    for other in ("image", "logs", "status", "delete"):
        printed = cluster.run(SCRIPT, other, **SLICE, DRY_RUN="1").stdout
        assert cluster.calls() == []
        subprocess.run(["bash", "-euc", printed], env=cluster.environment, check=True, input="")
        described = cluster.calls()
        cluster.run(SCRIPT, other, **SLICE)
        assert described == cluster.calls() != []


def test_bad_input_is_refused_before_any_call(cluster):
    for name in [*BAD_NAMES, "a" * 41]:
        refused(cluster.run(SCRIPT, "delete", **SLICE | {"NAME": name}), "gke.sh: NAME: wanted")
    for setting in ("IMAGE", "ACCELERATOR", "TOPOLOGY", "CLAIM", "CHIPS", "NAMESPACE", "WORKER"):
        for value in ("$(touch x)", '4x4"\n- a', "-a"):
            done = cluster.run(SCRIPT, "run", "--config=a", **SLICE | {setting: value})
            refused(done, f"gke.sh: {setting}: wanted")
    done = cluster.run(SCRIPT, "run", "--config=a", **SLICE | {"TOPOLOGY": "2x2x1", "CHIPS": "8"})
    refused(done, "gke.sh: CHIPS: wanted a divisor of the 4 chips of 2x2x1, found 8")
    refused(cluster.run(SCRIPT, "run", **SLICE), "gke.sh: run: what to run?")
    refused(cluster.run(SCRIPT, "status", "dpo-2", **SLICE), "gke.sh: status takes no arguments")
    refused(cluster.run(SCRIPT, **SLICE), "gke.sh: image, run")
    assert cluster.calls() == []


def test_what_a_program_fails_with_is_what_the_script_ends_with(cluster):
    cluster.answer({"kubectl": [("", 5)], "docker": [("", 6)]})
    for command, code in [("run", 5), ("status", 5), ("delete", 5), ("logs", 5), ("image", 6)]:
        arguments = ["--config=a"] if command == "run" else []
        assert cluster.run(SCRIPT, command, *arguments, **SLICE).returncode == code
        assert len(cluster.calls()) == 1


def instructions() -> list[list[str]]:
    text = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line and not line.startswith("#")]


def test_the_image_copies_files_that_exist_and_that_docker_may_see():
    lines = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
    ignore = [line for line in lines if not line.startswith("#")]
    assert ignore[0] == "*"
    seen = {line[1:] for line in ignore if line.startswith("!")}
    copied = [name for word, *names in instructions() if word == "COPY" for name in names[:-1]]
    assert sorted(copied) == sorted(seen)
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    built_from = {"pyproject.toml", "uv.lock", project["readme"], *project["license-files"]}
    assert {*built_from, "alignjax", "configs"} == set(copied)


def test_the_image_is_pinned_and_does_not_run_as_root():
    told = instructions()
    assert {words[0] for words in told} == {
        *("FROM", "ARG", "WORKDIR", "RUN", "COPY", "USER", "ENV", "ENTRYPOINT"),
    }
    ((_, base),) = [words for words in told if words[0] == "FROM"]
    assert re.fullmatch(r"python:3\.\d+-slim-[a-z]+", base)
    users = [words[1] for words in told if words[0] == "USER"]
    assert users == ["alignjax"]
    assert told.index(["USER", "alignjax"]) > max(
        place for place, words in enumerate(told) if words[0] in ("RUN", "COPY")
    )
    (entry,) = [words for words in told if words[0] == "ENTRYPOINT"]
    assert entry[1].startswith("[")  # without a shell in between, SIGTERM reaches Python
    installs = [words for words in told if "sync" in words]
    assert len(installs) == 2
    assert all("--frozen" in words for words in installs)
    worker = (ROOT / "launch" / "tpu_worker.sh").read_text()
    ((version),) = [word for words in told for word in words if word.startswith("uv==")]
    assert f"uv_version={version.removeprefix('uv==')}\n" in worker
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ["ARG", "EXTRA=tpu"] in told
    assert {"tpu", "cuda"} <= set(extras["optional-dependencies"])
