"""Whole runs at the smallest size, in this process and in others."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap
from functools import partial
from typing import Any

from alignjax import optim
from alignjax.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    OptimConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
)
from alignjax.configfile import load
from alignjax.data import world
from alignjax.models.config import ModelConfig
from alignjax.objectives import dpo, sft

ROOT = pathlib.Path(__file__).resolve().parent.parent

TIMED = ("prompts_per_second", "tokens_per_second")  # what no two runs have alike


def get_config(**changes: Any) -> Config:
    """DPO on 200 pairs of the embedded world, one layer, 8 steps; and a supervised stage of 3."""
    parts: dict[str, Any] = dict(
        data=DataConfig(
            source=partial(world.pairs, size=200, seed=0),
            max_prompt_tokens=32,
            max_response_tokens=48,
            eval_fraction=0.1,
            max_drop_fraction=0.1,
            buckets=1,
            pad_multiple=8,
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


def environment(**env: str) -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", **env}


def write(path: pathlib.Path, text: str) -> pathlib.Path:
    path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    return path


def lines(workdir: pathlib.Path) -> list[dict[str, str]]:
    """metrics.jsonl with every number to its last bit, without what depends on the clock."""
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    return [
        {k: float(v).hex() for k, v in json.loads(line).items() if k not in TIMED}
        for line in text.splitlines()
    ]
