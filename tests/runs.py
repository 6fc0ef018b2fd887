"""Whole runs at the smallest size, in this process and in others."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import jax
import numpy as np
import pytest
from absl import flags

from alignjax import cli
from alignjax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
)
from alignjax.config.load import load
from alignjax.errors import UserError
from alignjax.losses import dpo, sft
from alignjax.models.config import ModelConfig
from alignjax.models.transformer import init_params
from alignjax.runtime import checkpoint, faults, sharding, stores
from alignjax.stages import pretrained
from alignjax.training import optim, step
from alignjax.types import TrainState
from alignjax.world import sources as world

ROOT = pathlib.Path(__file__).resolve().parent.parent

TIMED = (
    "prompts_per_second",
    "tokens_per_second",
    "data_wait_seconds",
    "step_seconds",
    "train_seconds",
    "crc32",
)  # what no two runs have alike


# What JAX compiles to make a random key: a moment's work, whatever the model.
OF_KEYS = {"jit(convert_element_type)", "jit(_threefry_seed)", "jit(stage)"}


def get_config(**changes: Any) -> Config:
    """DPO on 200 pairs of the embedded world, one layer, 8 steps; and a supervised stage of 3."""
    parts: dict[str, Any] = dict(
        data=DataConfig(
            source=partial(world.pairs, size=200, seed=0),
            max_prompt_tokens=32,
            max_response_tokens=48,
            eval_fraction=0.1,
            max_drop_fraction=0.1,
            pad_multiple=48,
        ),
        tokenizer=TokenizerConfig(vocab_size=320),
        model=ModelConfig(
            vocab_size=320, width=32, layers=1, heads=2, kv_heads=2, head_dim=16, mlp_width=64
        ),
        sft=SftConfig(loss=sft.loss, learning_rate=3e-3, steps=3, batch_size=8),
        loss=partial(dpo.loss, beta=0.1),
        optim=OptimConfig(learning_rate=1e-3, schedule=optim.cosine),
        train=TrainConfig(steps=8, batch_size=8, log_every=1, save_every=3),
        evaluate=EvaluateConfig(
            judge=world.judge, prompts=2, samples=2, max_new_tokens=4, batch_size=8
        ),
    )
    return Config(**{**parts, **changes})


def changed(*overrides: str) -> Config:
    """That config with ``field=value`` changes."""
    return load(__file__, list(overrides))


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "alignjax", *arguments]


def run_arguments(workdir: pathlib.Path, *overrides: str) -> list[str]:
    sets = [f"--set={override}" for override in overrides]
    return ["run", f"--config={__file__}", f"--workdir={workdir}", *sets]


def redirect(out: str, err: str) -> None:
    """Sends what this process writes into two files; it reads nothing."""
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)


def become(main: Callable[[], None], arguments: list[str]) -> NoReturn:
    """Runs the program in this forked process, and ends it with the program's exit code."""
    sys.argv = ["alignjax", *arguments]
    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def start(
    *arguments: str, cwd: pathlib.Path = ROOT, **env: str
) -> subprocess.CompletedProcess[str]:
    """A program of its own, to its end; ``env`` is added to the environment."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=300,
    )


def here(*arguments: str) -> int:
    """A command in this process: its exit code, or the error that `cli.main` would tell."""
    try:
        return cli.run_verb(cli.FLAGS(["alignjax", *arguments]))
    finally:
        cli.options.reset()


def refused(*arguments: str, code: int = 2) -> str:
    """The line that a command ends with in this process, before anything is compiled."""
    compiled = set()

    def note(event: str, _: float, fun_name: str = "", **rest: str) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.add(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        with pytest.raises((UserError, flags.Error)) as caught:
            here(*arguments)
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert compiled <= OF_KEYS, compiled
    assert getattr(caught.value, "exit_code", 2) == code
    line = str(caught.value)
    assert "\n" not in line or isinstance(caught.value, flags.Error)
    return line


def end_at(place: str, act: Callable[[], object]) -> None:
    """Does what is in this process killed at a place, which it has to come to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNJAX_FAULT", f"{place}=raise")
        with pytest.raises(faults.FaultError):
            act()


def environment(**env: str) -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **env}


def stored(workdir: pathlib.Path, config: Config, at: int | None = None) -> TrainState:
    """The state of a run's checkpoint of a step, by default the newest."""

    def start() -> TrainState:
        params, follows = init_params(config.model, jax.random.key(0)), config.reference.follow
        optimizer, key = optim.make(config.optim, 1), jax.random.key(0)
        return step.init_state(params, optimizer, key, follows=follows is not None)

    shapes = jax.eval_shape(start)
    target = sharding.abstract(shapes, sharding.shard_tree(shapes, sharding.make_mesh(1, 1, 1)))
    with stores.open_store(workdir / "checkpoints", keep=config.train.keep) as store:
        at = stores.latest(store) if at is None else at
        assert at is not None
        return checkpoint.restore(store, at, target)


def supervised(workdir: pathlib.Path, config: Config) -> Any:
    """The parameters that a run's supervised stage ended with."""
    mesh = sharding.make_mesh(1, 1, 1)
    return pretrained.supervised(config.model, workdir, mesh)()


def leaves(state: Any) -> dict[str, bytes]:
    """The bytes of every array of a state, by its path."""
    state = dataclasses.replace(state, key=jax.random.key_data(state.key))
    found = jax.tree_util.tree_flatten_with_path(state)[0]
    return {sharding.path_name(path): np.asarray(x).tobytes() for path, x in found}


def write(path: pathlib.Path, text: str) -> pathlib.Path:
    path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    return path


def stamps(folder: pathlib.Path) -> dict[str, int]:
    """When the checkpoints and samples below a folder were written: what costs, done once a run."""
    costly = ("after.json", "before.json", "samples.json", "lists.jsonl")
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.name in costly
        or (path.parent.name in ("checkpoints", "samples") and not path.name.startswith("."))
    }


def lines(workdir: pathlib.Path) -> list[dict[str, str]]:
    """metrics.jsonl with every number to its last bit, without what depends on the clock."""
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    return [
        {k: float(v).hex() for k, v in json.loads(line).items() if not k.endswith(TIMED)}
        for line in text.splitlines()
    ]
