"""Proves that a change of the code changes no result: digests of one tiny run of every recipe.

    python tests/digests.py record OUT.json [--only=NAME,...]
    python tests/digests.py compare OLD.json NEW.json

`record` runs every case in a temporary folder and writes the digests of what it left: of every
array of every checkpoint, every column of the metrics, every key of every JSON file. `compare`
names each case, file and key that differs, and ends with 1 if any does.

Digests say nothing of where functions live: of ``package.module.name`` the name alone counts. Nor
of times, versions and folders; `normal` and `digests_of` say what else is left out, and why.
"""

import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NoReturn

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from alignjax import recipes
from alignjax.commands import finished_run
from alignjax.config import (
    CandidatesConfig,
    Config,
    MeshConfig,
    OptimConfig,
    ReferenceConfig,
    SamplingConfig,
    TrainConfig,
)
from alignjax.data import sources
from alignjax.losses import (
    apo,
    bradley_terry,
    dpo,
    hps,
    kto,
    modpo,
    paretohqd,
    plackett_luce,
    rdro,
    sft,
)
from alignjax.losses import rewards_in_context as ric
from alignjax.models.config import LoraConfig
from alignjax.recipes.multi_objective import mod, morlhf, rewards_in_context, soups, supervised
from alignjax.recipes.multi_objective import modpo as modpo_recipe
from alignjax.recipes.multi_objective import paretohqd as paretohqd_recipe
from alignjax.rewards import scorers
from alignjax.training import optim
from alignjax.world import sources as world
from tests import runs

# A config file of one case, for runs that are programs of their own.
CONFIG_FILE = """
from {module} import CONFIGS


def get_config():
    return CONFIGS[{name!r}]()
"""
# Where cases read and write; programs that are started inherit the variable.
FOLDER = "ALIGNJAX_DIGESTS_FOLDER"
# What was compiled in one record is read in the next one: the key is the program itself.
COMPILED = pathlib.Path(tempfile.gettempdir()) / "alignjax-digests-compiled"
# Little optimisation: the runs compile much more than they compute.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def folder() -> pathlib.Path:
    return pathlib.Path(os.environ[FOLDER])


# --- the configs


def judge(prompt: str, response: str) -> dict[str, float]:
    """Scores that tell responses of a network of few steps apart."""
    del prompt
    return {
        "short": -float(len(response)),
        "varied": float(len(set(response))),
        "first": float(ord(response[:1] or "a")),
    }


def small(source: Callable[..., Any] | None = None, path: str = "", **changes: Any) -> Config:
    """DPO on 60 pairs of the embedded world, 4 steps after a supervised stage of 2."""
    config = runs.get_config()
    source = source or partial(world.pairs, size=60, seed=0)
    judged = None if "reward_loss" in changes and "loss" not in changes else judge
    parts: dict[str, Any] = dict(
        loss=None if judged is None else config.loss,
        data=dataclasses.replace(
            config.data, source=source, path=path, max_drop_fraction=0.3, pad_multiple=8
        ),
        sft=dataclasses.replace(config.sft, steps=2),
        train=dataclasses.replace(config.train, steps=4, save_every=2, eval_every=2),
        evaluate=dataclasses.replace(
            config.evaluate, judge=judged, prompts=2, max_new_tokens=5, during=2
        ),
    )
    return dataclasses.replace(config, **{**parts, **changes})


def of_files(source: Callable[..., Any], name: str, **changes: Any) -> Config:
    """The same on a file of `write_files`, whose texts make a smaller tokenizer."""
    config = small(source, path=str(folder() / name), **changes)
    tokenizer = dataclasses.replace(config.tokenizer, vocab_size=300)
    return dataclasses.replace(config, tokenizer=tokenizer)


def dpo_cached() -> Config:
    return small(reference=ReferenceConfig(mode="cache"))


def dpo_live() -> Config:
    config = small(reference=ReferenceConfig(mode="live"), sft=None)
    return dataclasses.replace(
        config, train=dataclasses.replace(config.train, microbatch_tokens=128)
    )


def two_processes() -> Config:
    config = small(mesh=MeshConfig(fsdp=2), sft=None)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, eval_every=0))


def ranked() -> Config:
    """Plackett-Luce on scored lists of a file, no supervised stage."""
    source = partial(sources.lists, order_seed=0)
    return of_files(source, "lists.jsonl", loss=plackett_luce.loss, sft=None)


def hard_negatives() -> Config:
    """HPS on the world's own lists, with its curriculum."""
    source = partial(world.lists, size=60, seed=0, responses=4)
    select = partial(hps.select, gamma=hps.curriculum())  # type: ignore[arg-type]
    return small(source, loss=partial(hps.loss, beta=0.1), select=select, sft=None)


def sampled_lists() -> Config:
    """HPS on lists that the run samples and scores itself."""
    scorer = partial(scorers.judged, judge=judge, name=("short", "varied"))
    return small(
        loss=hps.loss,
        select=partial(hps.select, gamma=1.0),
        candidates=CandidatesConfig(
            scorers=(scorer,), samples=3, max_new_tokens=5, batch_size=16, max_drop_fraction=0.5
        ),
    )


def labelled_kto() -> Config:
    return small(
        partial(world.unpaired, size=60, seed=0, desirable_fraction=0.3),
        loss=partial(kto.loss, beta=0.1, desirable_weight=7 / 3, undesirable_weight=1.0),
        select=kto.select,
        baseline=kto.baseline,
    )


def labelled_rdro() -> Config:
    return of_files(sources.trl, "labels.jsonl", loss=rdro.loss, sft=None)


def supervised_only() -> Config:
    return of_files(
        sources.trl,
        "chats.jsonl",
        loss=sft.loss,
        sft=None,
        reference=ReferenceConfig(mode="none"),
    )


def adapters() -> Config:
    return small(lora=LoraConfig(rank=2, alpha=8.0, dropout=0.1))


def quantised() -> Config:
    return small(lora=LoraConfig(rank=2, alpha=8.0, quantize="nf4"))


def adapters_alone() -> Config:
    """To be started with ``--set=model.path``: adapters whose base others have, too."""
    return small(lora=LoraConfig(rank=2), sft=None)


def reward_model() -> Config:
    return small(recipe=recipes.train_reward_model, reward_loss=bradley_terry.reward_loss)


def game(config: Config, **settings: Any) -> Config:
    """With a reward model that answers every second prompt's golden answer."""
    parts: dict[str, Any] = dict(
        golden=partial(world.golden, size=60, seed=0),
        max_drop_fraction=0.5,
        max_empty_fraction=0.9,
    )
    parts |= settings
    if "rounds" in settings:
        recipe = partial(recipes.play_rounds, game=recipes.RoundsConfig(**parts))
    else:
        recipe = partial(recipes.play_steps, game=recipes.StepsConfig(**parts))
    return dataclasses.replace(
        config,
        recipe=recipe,
        reward_loss=partial(apo.reward_loss, sample_weight=0.5),
        train=dataclasses.replace(config.train, steps=3, batch_size=4, eval_every=0),
    )


def game_rounds() -> Config:
    """Two rounds of two and three steps, fine-tuned on the best samples."""
    return game(
        small(loss=sft.loss, select=apo.select_best, reference=ReferenceConfig(mode="none")),
        optim=OptimConfig(learning_rate=1e-2, schedule=optim.constant),
        train=TrainConfig(steps=2, batch_size=8, save_every=1),
        rounds=2,
        sampling=SamplingConfig(samples=3, max_new_tokens=5, batch_size=16),
        learning_rates=(1e-2, 5e-3),
    )


def game_steps() -> Config:
    """Three cycles of two steps of the reward model and one of the policy."""
    return game(
        small(loss=partial(apo.loss, beta=0.1)),
        policy_fraction=0.4,
        sampling=SamplingConfig(samples=2, max_new_tokens=4, batch_size=8),
        optim=OptimConfig(learning_rate=1e-3, schedule=optim.cosine),
        train=TrainConfig(steps=2, batch_size=4),
        reward_steps=2,
        policy_steps=1,
    )


NAMES = ("short", "varied")


def front(
    method: Callable[..., Any], loss: Callable[..., Any], new_tokens: int = 16, **changes: Any
) -> Config:
    """Two objectives and three preferences between them."""
    config = small(partial(world.lists, size=60, seed=0, responses=2, objectives=("helpful",)))
    parts: dict[str, Any] = dict(
        loss=loss,
        train=dataclasses.replace(config.train, steps=2, save_every=1, eval_every=0),
        evaluate=dataclasses.replace(
            config.evaluate, judge=None, max_new_tokens=new_tokens, batch_size=16
        ),
        recipe=partial(
            recipes.trace_front,
            objectives=recipes.ObjectivesConfig(
                method=method,
                scorer=partial(scorers.judged, judge=judge, name=NAMES),
                names=NAMES,
                preferences=((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)),
            ),
        ),
    )
    return dataclasses.replace(config, **{**parts, **changes})


def longer(config: Config, steps: int = 6) -> Config:
    """With a supervised stage that is long enough for responses to end."""
    assert config.sft is not None
    return dataclasses.replace(config, sft=dataclasses.replace(config.sft, steps=steps))


def front_paretohqd(**keywords: Any) -> Config:
    """Two stages, adapters trained side by side."""
    method = partial(paretohqd_recipe.train, size=8, prompts=20, at_once=2, **keywords)
    lora = LoraConfig(rank=2, dropout=0.1)
    config = front(method, paretohqd.loss, 64, lora=lora)
    settings = OptimConfig(learning_rate=0.02, schedule=optim.cosine, eps=1e-3)
    return longer(dataclasses.replace(config, optim=settings))


def front_linear() -> Config:
    """The ablation: curated by weighted sums, one stage."""
    return front_paretohqd(curate=paretohqd.curate_linear, two_stages=False)


def front_ric() -> Config:
    method = partial(
        rewards_in_context.train,
        max_new_tokens=40,
        limits=ric.data_limits,
        online_rounds=1,
        online_samples=96,
        originals=8,
        quantile=0.8,
        online_steps=2,
        online_learning_rate=1e-3,
        temperature=1.0,
        top_p=1.0,
    )
    config = front(method, ric.loss, 40)
    data = dataclasses.replace(config.data, max_prompt_tokens=112, pad_multiple=56)
    evaluate = dataclasses.replace(config.evaluate, batch_size=48)
    return longer(dataclasses.replace(config, data=data, evaluate=evaluate), 12)


def front_modpo() -> Config:
    return front(partial(modpo_recipe.train, log_odds=2.0), partial(modpo.loss, beta=0.3))


def front_morlhf() -> Config:
    return front(partial(morlhf.train, steps=2, max_new_tokens=16), partial(apo.loss, beta=0.05))


def front_soups() -> Config:
    expert = partial(morlhf.policy, steps=2, max_new_tokens=16)
    return front(partial(soups.train, expert=expert), partial(apo.loss, beta=0.05))


def front_mod() -> Config:
    expert = partial(morlhf.policy, steps=2, max_new_tokens=16)
    return front(partial(mod.train, expert=expert), partial(apo.loss, beta=0.05))


def front_supervised() -> Config:
    return front(supervised.train, sft.loss)


def misspelt() -> Config:
    return small(loss=partial(dpo.loss, label_smothing=0.1))


def wrong_k() -> Config:
    """A loss for pairs on lists of four."""
    return small(partial(world.lists, size=60, seed=0, responses=4), sft=None)


CONFIGS: dict[str, Callable[[], Config]] = {
    "dpo_cached": dpo_cached,
    "dpo_live": dpo_live,
    "ranked": ranked,
    "hard_negatives": hard_negatives,
    "sampled_lists": sampled_lists,
    "labelled_kto": labelled_kto,
    "labelled_rdro": labelled_rdro,
    "supervised_only": supervised_only,
    "adapters": adapters,
    "quantised": quantised,
    "reward_model": reward_model,
    "game_rounds": game_rounds,
    "game_steps": game_steps,
    "front_paretohqd": front_paretohqd,
    "front_linear": front_linear,
    "front_ric": front_ric,
    "front_modpo": front_modpo,
    "front_morlhf": front_morlhf,
    "front_soups": front_soups,
    "front_mod": front_mod,
    "front_supervised": front_supervised,
    "two_processes": two_processes,
    "adapters_alone": adapters_alone,
    "misspelt": misspelt,
    "wrong_k": wrong_k,
}
# Configs of command lines, which are no cases by themselves.
PARTS = ("adapters_alone", "misspelt", "wrong_k")
# Cases that are run again, as a program that gets SIGTERM at this place and is started once more.
STOPPED = {
    "dpo_cached": "step:alignment-3",
    "sampled_lists": "part:train-000001",
    "reward_model": "step:supervised-1",
    "game_rounds": "step:round 2: policy-1",
    "game_steps": "step:game-5",
    "front_modpo": "step:modpo-01-1",
}


def write_files() -> None:
    """The data files that cases read."""
    words = ("red", "green", "blue", "grey", "pink")
    lists, labels, chats, plain = [], [], [], []
    for i in range(40):
        prompt, texts = f"Which colour is {i}?", [f" It is {w}, {i}." for w in words[: 2 + i % 4]]
        scores = [float((i * 7 + j * 3) % 5) + j / 8 for j in range(len(texts))]
        lists.append({"prompt": prompt, "responses": texts, "scores": scores})
        labels.append({"prompt": prompt, "completion": texts[i % 2], "label": i % 3 == 0})
        asked = {"role": "user", "content": prompt}
        chats.append({"messages": [asked, {"role": "assistant", "content": texts[1].strip()}]})
        plain.append({"prompt": prompt, "responses": texts})
    write_lines("lists.jsonl", lists)
    write_lines("labels.jsonl", labels)
    write_lines("chats.jsonl", chats)
    write_lines("plain.jsonl", plain[:6])
    other = [{**row, "scores": [x + (i % 3 - 1) for i, x in enumerate(row["scores"])]}
             for row in lists]  # fmt: skip
    write_lines("other.jsonl", other)
    for name in CONFIGS:
        text = CONFIG_FILE.format(module=__name__, name=name)
        config_file(name).write_text(text, encoding="utf-8")


def write_lines(name: str, rows: Sequence[Any]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder() / name).write_text(text, encoding="utf-8")


def config_file(name: str) -> pathlib.Path:
    return folder() / f"config_{name}.py"


# --- digests

# Numbers of the clock and of the machine.
TIMED = re.compile(r"(^|_)(seconds|second|time|versions|wait|crc32)(_|$)")
# How often XLA compiled depends on which cases this process ran before.
COUNTED = ("compiles",)
# Pictures, pages that hold them, and the number of the process that has the folder.
PRESENT = re.compile(r"\.(png|html)$|^\.lock$")
# Folders of other formats, whose content the metrics and the data's digests tell; or of times.
LIBRARIES = ("tensorboard", "tfds", "rows", "seconds")
MODULE = re.compile(r"\b(?:alignjax|tests|configs|__main__)(?:\.\w+)*\.(\w+)\b")


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def plain(text: str) -> str:
    """Text without the folders of this record and this checkout, and modules of functions."""
    for path, name in ((folder(), "<work>"), (runs.ROOT, "<repo>")):
        text = text.replace(str(path.resolve()), name).replace(str(path), name)
    return MODULE.sub(r"\1", text)


def normal(value: Any) -> Any:
    """JSON data without times, counts of compilations, versions, folders and modules."""
    if isinstance(value, dict):
        return {
            plain(k): "<left out>" if TIMED.search(k) or k in COUNTED else normal(v)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [normal(x) for x in value]
    return plain(value) if isinstance(value, str) else value


def of_json(value: Any) -> str:
    return sha(json.dumps(normal(value), sort_keys=True).encode())


def of_json_file(path: pathlib.Path) -> dict[str, str]:
    """A digest of each top-level key."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return {"": of_json(content)}
    content = {plain(k): v for k, v in content.items()}
    return {k: of_json({k: v}) for k, v in sorted(content.items())} | {
        "order of keys": sha(json.dumps(list(content)).encode())
    }


def of_lines_file(path: pathlib.Path) -> dict[str, str]:
    """Of each field the digest of its values in all lines; and how many lines there are."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = {name: None for row in rows for name in row}
    return {"lines": str(len(rows))} | {
        name: of_json({name: [row.get(name, "<none>") for row in rows]}) for name in sorted(names)
    }


def of_arrays(tree: Any) -> dict[str, str]:
    """A digest of name, dtype, shape and bytes of every array; one for each top-level part."""
    parts: dict[str, list[str]] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        x = np.ascontiguousarray(leaf)
        name = "/".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in path)
        said = f"{name} {x.dtype} {x.shape} {sha(x.tobytes())}"
        parts.setdefault(name.split("/")[0], []).append(said)
    return {name: sha("\n".join(sorted(said)).encode()) for name, said in sorted(parts.items())}


def shapes_on_one_device(metadata: Any) -> Any:
    """What is to be read, on one device, however many wrote it."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), metadata)


def of_checkpoint(path: pathlib.Path) -> dict[str, str]:
    """The arrays of a step of a run's checkpoints, and its record."""
    metadata = ocp.checkpointables_metadata(path).metadata
    arrays = {"state": shapes_on_one_device(metadata["state"])} if "state" in metadata else {}
    found = ocp.load_checkpointables(path, {**arrays, "record": None})
    return of_arrays(found.get("state", {})) | {"record": of_json(found["record"])}


def of_params(path: pathlib.Path) -> dict[str, str]:
    """The arrays that a stage ended with."""
    return of_arrays(ocp.load(path, shapes_on_one_device(ocp.metadata(path).metadata)))


def digests_of(workdir: pathlib.Path) -> dict[str, dict[str, str]]:
    """Digests of all that is in a folder, by file."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(workdir.iterdir()):
        if path.name == ".artifacts":  # digests of files, which are digested here
            continue
        # What names prepared rows and drawn parts is a digest of names of functions, too.
        name = re.sub(r"^[0-9a-f]{16,64}\b", "<key>", path.name)
        if path.name == "checkpoints":
            steps = sorted(int(p.name) for p in path.iterdir() if p.name.isdigit())
            for newest in steps[-1:]:
                found[f"{name}/{newest}"] = of_checkpoint(path / str(newest))
        elif path.is_dir() and (path / "_CHECKPOINT_METADATA").exists():
            found[name] = of_params(path)
        elif path.is_dir() and path.name in LIBRARIES:
            found[name] = {"": "present"}
        elif path.is_dir():
            for inner, parts in digests_of(path).items():
                several_of_a_name(found, f"{name}/{inner}", parts)
        else:
            several_of_a_name(found, name, of_file_or_damage(path))
    return found


def of_file_or_damage(path: pathlib.Path) -> dict[str, str]:
    """As `of_file`; of a JSON file that is none, a digest of its bytes."""
    try:
        return of_file(path)
    except ValueError:
        return {"": sha(path.read_bytes())}


def several_of_a_name(found: dict[str, Any], name: str, parts: dict[str, str]) -> None:
    """Adds a file; those whose names are keys stand under one name, in the order of contents."""
    if name not in found:
        found[name] = parts
    else:
        both = sorted({json.dumps(found[name]), json.dumps(parts)})
        found[name] = {"": sha("".join(both).encode())}


def of_file(path: pathlib.Path) -> dict[str, str]:
    if PRESENT.search(path.name):
        return {"": "present"}
    if path.suffix == ".json":
        return of_json_file(path)
    if path.suffix == ".jsonl":
        return of_lines_file(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return {"": sha(path.read_bytes())}
    return {"": sha(plain(text).encode())}


# --- runs in this process, and programs


def run_here(name: str) -> dict[str, Any]:
    """A case from beginning to end."""
    workdir = folder() / name
    config = CONFIGS[name]()
    recipes.run_config(config, workdir)
    finished_run.note_origin(str(workdir), str(config_file(name)), [])
    return digests_of(workdir)


class Programs:
    """Runs command lines of the program, each in a process of its own.

    They are forked from a process that has imported everything and started nothing: an import
    takes seconds. It has to be made before JAX begins to work here.
    """

    def __init__(self) -> None:
        # Not at the top: config files import this module, also in programs that are started as
        # `python -m`, where the program's flags would be defined twice.
        from alignjax import cli as program

        self._main = program.main
        ask, self._ask = os.pipe()
        self._answer, answer = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._ask)
            os.close(self._answer)
            self._serve(ask, answer)
        os.close(ask)
        os.close(answer)

    def _serve(self, ask: int, answer: int) -> None:
        """Forks for every line that comes, until no more can come."""
        with os.fdopen(ask) as lines:
            for line in lines:
                pid = os.fork()
                if not pid:
                    self._become(**json.loads(line))
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.write(answer, f"{code}\n".encode())
        os._exit(0)

    def _become(self, arguments: list[str], env: dict[str, str], out: str, err: str) -> NoReturn:
        """This process as the program with those arguments."""
        os.environ.update(env)
        runs.redirect(out, err)
        os.chdir(folder())
        runs.become(self._main, arguments)

    def run(self, *arguments: str, **env: str) -> tuple[int, str, str]:
        """Exit code, standard output and error of the program."""
        out, err = (folder() / f"program.{name}" for name in ("out", "err"))
        asked = {"arguments": arguments, "env": env, "out": str(out), "err": str(err)}
        os.write(self._ask, (json.dumps(asked) + "\n").encode())
        code = b""
        while not code.endswith(b"\n"):
            code += os.read(self._answer, 1) or b"\n"
        read = partial(pathlib.Path.read_text, encoding="utf-8", errors="replace")
        return int(code), read(out), read(err)

    def close(self) -> None:
        os.close(self._ask)
        os.waitpid(self._pid, 0)


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return plain(lines[-1]) if lines else ""


def told(done: tuple[int, str, str]) -> dict[str, str]:
    """Exit code, a digest of standard output without times, the last line of standard error.

    That line is kept as it is where it tells of an error, to be read in a comparison.
    """
    code, out, err = done
    out = re.sub(r"^kept in .*\n", "", out, flags=re.MULTILINE)  # sizes of what has times in it
    # A table of fronts has a column of seconds, which makes it as wide as they are long.
    timed = re.search(r"\bseconds\b", out)
    return {
        "exit code": str(code),
        "stdout": "present" if timed else sha(plain(out).encode()),
        **({"stderr": last_line(err)} if code else {}),
    }


def run_resumed(programs: Programs, name: str) -> dict[str, Any]:
    """A case that is ended by SIGTERM at its place, and then goes on to its end."""
    workdir = folder() / "resumed" / name
    arguments = ("run", f"--config={config_file(name)}", f"--workdir={workdir}")
    place = STOPPED[name]
    code, _, err = programs.run(*arguments, ALIGNJAX_FAULT=f"{place}=term")
    if not code:
        raise AssertionError(f"{name} never came to {place}")
    found = {f"stopped at {place}": {"exit code": str(code), "stderr": last_line(err)}}
    code, _, err = programs.run(*arguments)
    if code:
        raise AssertionError(f"{name} did not go on: {err[-2000:]}")
    return found | digests_of(workdir)


def run_two_processes() -> dict[str, Any]:
    """A case by two processes; of its arrays and files the digests of what they left."""
    name = "two_processes"
    arguments = ["run", f"--config={config_file(name)}", f"--workdir={folder() / name}"]
    launcher = str(runs.ROOT / "launch" / "local.py")
    done = subprocess.run(
        [sys.executable, launcher, "--processes=2", "--devices=1", "--", *arguments],
        cwd=runs.ROOT,
        env=runs.environment(**compiled()),
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise AssertionError(done.stderr[-2000:])
    return digests_of(folder() / name)


# What tells that a run was started twice.
ONCE = re.compile(r"(^|/)summary\.json: resumed_from:")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Each file and key at which two cases differ."""
    out = []
    for file in sorted(old.keys() | new.keys()):
        mine, theirs = old.get(file), new.get(file)
        if mine is None or theirs is None:
            out.append(f"{file}: only in the {'new' if mine is None else 'old'} one")
            continue
        for key in sorted(mine.keys() | theirs.keys()):
            a, b = mine.get(key, "<none>"), theirs.get(key, "<none>")
            if a != b:
                out.append(f"{file}: {key}: {a} -> {b}" if key else f"{file}: {a} -> {b}")
    return out


def against_undisturbed(found: dict[str, Any], whole: dict[str, Any]) -> dict[str, str]:
    """Where a resumed run ended with something else than the run that nobody stopped."""
    mine = {k: v for k, v in found.items() if not k.startswith("stopped at")}
    theirs = {k: v for k, v in whole.items() if k != f"{finished_run.ORIGIN}"}
    mine.pop(finished_run.ORIGIN, None)
    return {line: "differs" for line in differences(theirs, mine) if not ONCE.search(line)}


# --- what is done with finished runs, and mistakes


def verbs(programs: Programs) -> dict[str, Any]:
    """The commands for finished runs: exit code, what they print, what they write."""
    here, out = folder(), folder() / "verbs"
    out.mkdir()
    shutil.copytree(here / "dpo_cached", out / "again")
    dpo, lora = f"--workdir={here / 'dpo_cached'}", f"--workdir={here / 'adapters'}"
    coded = f"--workdir={here / 'quantised'}"
    scored = (f"--records={here / 'lists.jsonl'}", f"--against={here / 'other.jsonl'}")
    trained = f"--reward_model={here / 'reward_model'}"
    compared = f"--runs={here / 'dpo_cached'},{here / 'adapters'}"
    fronts = f"--runs={here / 'front_modpo'},{here / 'front_morlhf'}"
    config = f"--config={config_file('dpo_cached')}"
    commands: dict[str, tuple[str, ...]] = {
        "help": ("--help",),
        "generate": ("generate", dpo, f"--out={out / 'said.jsonl'}"),
        "generate greedily": (
            *("generate", dpo, f"--prompts={here / 'plain.jsonl'}", "--temperature=0"),
            *("--samples=1", f"--out={out / 'greedy.jsonl'}"),
        ),
        "generate of adapters": ("generate", lora, f"--out={out / 'adapters.jsonl'}"),
        "generate of a quantised base": ("generate", coded, f"--out={out / 'coded.jsonl'}"),
        "evaluate a run": ("evaluate", f"--workdir={out / 'again'}", "--set=evaluate.best_of=1"),
        "evaluate files": ("evaluate", *scored, "--tie=0.5", f"--out={out / 'rates.json'}"),
        "score": (
            *("score", f"--records={here / 'plain.jsonl'}", trained),
            f"--out={out / 'scored.jsonl'}",
        ),
        "compare": ("compare", compared, f"--out={out / 'compared.png'}"),
        "front": ("front", fronts, f"--out={out / 'front.png'}"),
        "export": ("export", dpo, f"--to={out / 'exported'}"),
        "export bfloat16": ("export", dpo, f"--to={out / 'thin'}", "--dtype=bfloat16"),
        "export merged": ("export", lora, f"--to={out / 'merged'}"),
        "run on an exported model": (
            *("run", f"--config={config_file('adapters_alone')}", f"--workdir={out / 'beside'}"),
            f"--set=model.path={out / 'exported'}",
        ),
        "export an adapter": (
            *("export", f"--workdir={out / 'beside'}", f"--to={out / 'adapter'}", "--adapter"),
        ),
        "export of a quantised base": ("export", coded, f"--to={out / 'decoded'}"),
        "import": ("import", f"--from={out / 'exported'}", f"--to={out / 'imported'}"),
        "describe": ("describe", config, "--set=loss.beta=0.25"),
        "data": ("data", config),
    }
    found = {}
    for name, arguments in commands.items():
        done = programs.run(*arguments)
        found[name] = told(done)
        if done[0]:
            say(f"    {name}: {found[name]}")
    return found | digests_of(out)


def mistakes(programs: Programs) -> dict[str, Any]:
    """Exit code and last line of standard error of command lines that are wrong."""
    here = folder()
    bad = write_mistakes()
    config = f"--config={config_file('dpo_live')}"
    lists, labels = (f"--config={config_file(n)}" for n in ("ranked", "labelled_rdro"))
    new, dpo = f"--workdir={here / 'none'}", f"--workdir={here / 'dpo_cached'}"
    run = ("run", config, new)
    old = ("run", f"--config={config_file('dpo_cached')}", dpo)
    commands: list[tuple[str, ...]] = [
        ("rnu",),
        ("run", "demo"),
        ("run",),
        ("run", config),
        ("run", "--confg=x.py"),
        ("run", "--config=configs/none.py", new),
        ("run", f"--config={bad / 'syntax.py'}", new),
        ("run", f"--config={config_file('misspelt')}", new),
        ("run", f"--config={bad / 'nothing.py'}", new),
        (*run, "--set=loss.betta=1"),
        (*run, "--set=trian.steps=1"),
        (*run, "--set=train.steps=1.5"),
        (*run, "--set=train.steps"),
        (*run, "--set=train.microbatch_tokens=-1"),
        (*run, "--set=reference.mode=cahce"),
        (*run, "--set=reference.mode=none"),
        (*run, "--set=data.eval_fraction=2"),
        (*run, "--set=data.path=x.jsonl"),
        (*run, "--set=mesh.fsdp=64"),
        (*run, "--set=mesh.tensor=2"),
        (*run, "--set=model.heads=3"),
        (*run, "--set=model.vocab_size=16"),
        (*run, "--set=evaluate.top_p=0"),
        (*run, "--runs=x"),
        ("run", f"--config={config_file('wrong_k')}", new),
        ("run", lists, new, f"--set=data.path={bad / 'none.jsonl'}"),
        ("run", lists, new, f"--set=data.path={bad / 'early.jsonl'}"),
        ("run", lists, new, f"--set=data.path={bad / 'field.jsonl'}"),
        ("run", lists, new, f"--set=data.path={bad / 'count.jsonl'}"),
        ("run", lists, new, f"--set=data.path={bad / 'bytes.jsonl'}"),
        ("run", labels, new, f"--set=data.path={bad / 'same.jsonl'}"),
        ("run", lists, new, f"--set=data.path={bad / 'ties.jsonl'}"),
        ("run", lists, new, f"--set=tokenizer.path={bad / 'early.jsonl'}"),
        (*old, "--set=loss.beta=0.3", "--set=train.steps=5"),
        ("run", config, f"--workdir={bad / 'early.jsonl'}"),
        (*old[:2], f"--workdir={bad / 'damaged'}"),
        (*old[:2], f"--workdir={bad / 'unread'}"),
        ("generate", f"--workdir={bad / 'damaged'}", f"--out={bad / 'x.jsonl'}"),
        ("generate", dpo, f"--out={bad / 'x.txt'}"),
        ("generate", f"--workdir={here / 'front_modpo'}", f"--out={bad / 'x.jsonl'}"),
        ("generate", new, f"--out={bad / 'x.jsonl'}"),
        ("evaluate",),
        ("score", f"--records={here / 'lists.jsonl'}"),
        (
            *("score", f"--records={here / 'plain.jsonl'}", f"--out={bad / 'x.jsonl'}"),
            f"--reward_model={here / 'dpo_cached'}",
        ),
        ("compare", f"--runs={here / 'dpo_cached'}", f"--out={bad / 'x.png'}"),
        ("front", f"--runs={here / 'dpo_cached'}", f"--out={bad / 'x.png'}"),
        ("export", f"--workdir={here / 'dpo_cached'}", f"--to={bad / 'x'}", "--adapter"),
        ("export", f"--workdir={here / 'adapters'}", f"--to={bad / 'x'}", "--adapter"),
        ("export", f"--workdir={here / 'dpo_cached'}", f"--to={here}"),
        ("import", f"--from={bad}", f"--to={bad / 'x'}"),
        ("plan", config),
        ("describe",),
    ]
    found = {}
    for arguments in commands:
        code, _, err = programs.run(*arguments)
        name = plain(" ".join(arguments))
        found[name] = {"exit code": str(code), "stderr": last_line(err)}
        if not code:
            say(f"    is no mistake: {name}")
        shutil.rmtree(here / "none", ignore_errors=True)
    return found


def write_mistakes() -> pathlib.Path:
    """Files and folders that are wrong, each in its own way."""
    bad = folder() / "bad"
    bad.mkdir()
    rows = (folder() / "lists.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    first = json.loads(rows[0])

    def changed(name: str, **changes: Any) -> None:
        row = {k: v for k, v in {**first, **changes}.items() if v != "gone"}
        lines = [*rows[:4], json.dumps(row) + "\n", *rows[4:]]
        (bad / name).write_text("".join(lines), encoding="utf-8")

    (bad / "early.jsonl").write_text("".join(rows)[:-9], encoding="utf-8")
    changed("field.jsonl", scores="gone")
    changed("count.jsonl", scores=[1.0])
    (bad / "bytes.jsonl").write_bytes("".join(rows[:2]).encode() + b'{"prompt": "\xff"}\n')
    ties = [json.dumps({**json.loads(x), "scores": [1.0] * x.count("It is")}) for x in rows]
    (bad / "ties.jsonl").write_text("\n".join(ties) + "\n", encoding="utf-8")
    labels = (folder() / "labels.jsonl").read_text(encoding="utf-8")
    (bad / "same.jsonl").write_text(labels.replace("false", "true"), encoding="utf-8")
    own = config_file("dpo_live").read_text(encoding="utf-8")
    (bad / "syntax.py").write_text(own.replace("():", "(:"), encoding="utf-8")
    (bad / "nothing.py").write_text(own.replace("get_config", "config"), encoding="utf-8")
    shutil.copytree(folder() / "dpo_cached", bad / "damaged")
    newest = max((bad / "damaged" / "checkpoints").iterdir(), key=lambda p: int(p.name))
    for path in (newest / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[:8])
    shutil.copytree(folder() / "dpo_cached", bad / "unread")
    (bad / "unread" / "config.json").write_text("{", encoding="utf-8")
    return bad


# --- the program


def compiled() -> dict[str, str]:
    """Environment of programs that share what was compiled."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(COMPILED),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def set_up(work: str) -> None:
    """The same for this process, in which JAX has not begun to work."""
    os.environ.update(
        {FOLDER: work, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": XLA_FLAGS, "COLUMNS": "200"}
    )
    gc.set_threshold(200_000, 20, 100)  # tracing makes many objects, and most of them stay
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(COMPILED))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_disable_most_optimizations", True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What runs here print goes to a file; `say` still reaches the terminal."""
    sys.stdout.flush()
    kept = [os.dup(number) for number in (1, 2)]
    log = os.open(folder() / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    TERMINAL.append(kept[0])
    for number in (1, 2):
        os.dup2(log, number)
    try:
        yield
    finally:
        TERMINAL.clear()
        for number, own in zip((1, 2), kept, strict=True):
            os.dup2(own, number)


TERMINAL: list[int] = []


def say(line: str) -> None:
    if TERMINAL:
        os.write(TERMINAL[0], f"{line}\n".encode())
    else:
        print(line, flush=True)


def cases(programs: Programs, found: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    """Every case by its name, in the order in which they can run."""
    out: dict[str, Callable[[], dict[str, Any]]] = {}
    for name in (n for n in CONFIGS if n not in PARTS):
        here = partial(run_here, name)
        out[name] = run_two_processes if name == "two_processes" else here
    for name in STOPPED:
        out[f"{name}, resumed"] = partial(run_resumed, programs, name)
        out[f"{name}, resumed against undisturbed"] = partial(_compared, found, name)
    out["verbs"] = partial(verbs, programs)
    out["mistakes"] = partial(mistakes, programs)
    return out


def _compared(found: dict[str, Any], name: str) -> dict[str, Any]:
    mine, whole = found.get(f"{name}, resumed"), found.get(name)
    if mine is None or whole is None:
        return {}
    lines = against_undisturbed(mine, whole)
    for line in lines:
        say(f"    {line}")
    return {"differences": lines}


def record(out: str, only: Sequence[str] = ()) -> int:
    """Runs the cases, all or those named, and writes their digests.

    Returns:
      1 if a case failed; the others are written.
    """
    begin, failed, found = time.monotonic(), 0, {}
    with tempfile.TemporaryDirectory(prefix="alignjax-digests-") as work:
        set_up(work)
        write_files()
        programs = Programs()
        with quiet():
            for name, run in cases(programs, found).items():
                if only and name not in only:
                    continue
                start = time.monotonic()
                try:
                    found[name] = run()
                except Exception:
                    failed = 1
                    say(f"{name} failed: {traceback.format_exc()}")
                    found[name] = {"failed": {"": "yes"}}
                say(f"{time.monotonic() - start:6.1f} s  {name}")
        programs.close()
    pathlib.Path(out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    used = sum(os.times()[:4])  # of this process and of those that it waited for
    say(f"{time.monotonic() - begin:6.1f} s  in all ({used:.0f} s of a core), {len(found)} cases")
    return failed


def compare(old: str, new: str) -> int:
    """Prints each difference by case, file and key; 1 if there is any."""
    mine, theirs = (json.loads(pathlib.Path(p).read_text(encoding="utf-8")) for p in (old, new))
    count = 0
    for case in sorted(mine.keys() | theirs.keys()):
        if case not in mine or case not in theirs:
            lines = [f"only in {old if case in mine else new}"]
        else:
            lines = differences(mine[case], theirs[case])
        for line in lines:
            say(f"{case}: {line}")
        count += len(lines)
    say(f"{count} differences in {len(mine.keys() | theirs.keys())} cases")
    return int(count > 0)


def main(arguments: Sequence[str]) -> int:
    options = [x for x in arguments if x.startswith("--only=")]
    verb, *files = [x for x in arguments if x not in options] or [""]
    if verb == "record" and len(files) == 1:
        only = [name for x in options for name in x.removeprefix("--only=").split(",")]
        return record(files[0], only)
    if verb == "compare" and len(files) == 2 and not options:
        return compare(*files)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    from tests import digests  # one module, of the name that config files import

    raise SystemExit(digests.main(sys.argv[1:]))
