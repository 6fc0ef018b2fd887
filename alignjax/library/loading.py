"""Loads a model to use from Python, for log-probabilities and samples."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from alignjax import gguf_files
from alignjax.commands import export, finished_run, policies
from alignjax.config import SamplingConfig
from alignjax.data import store
from alignjax.data.batching import bucket
from alignjax.data.encode import encode_all
from alignjax.data.files import Row
from alignjax.data.records import DataReport, Prompt, Record
from alignjax.data.sources.messages import read_prompt
from alignjax.data.tokenizer import load as tokenizers
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.errors import UserError
from alignjax.models.config import ModelConfig
from alignjax.models.hf import load as hf
from alignjax.models.logps import score_responses
from alignjax.runtime import logs, map_rows, sharding, storage, workdirs
from alignjax.sampling.generate import Sampling, ask, respond
from alignjax.stages import pretrained
from alignjax.types import Params

LONGEST = 10**6  # tokens: nothing is cut
Prompts = Sequence[str | Sequence[dict[str, Any]]]  # texts, or conversations as lists of messages


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """A language model on one device: parameters, shape and tokenizer."""

    params: Params = dataclasses.field(repr=False)
    config: ModelConfig
    tokenizer: Tokenizer
    source: str  # the folder, run or GGUF file that it was loaded from

    def logps(
        self,
        prompts: Prompts,
        responses: Sequence[str] | Sequence[Sequence[str]],
        *,
        batch_size: int = 8,
    ) -> np.ndarray:
        """Computes the log-probability of every response to its prompt.

        Args:
          prompts: N texts, or conversations (lists of ``{"role": ..., "content": ...}``), for the
            chat template. Nothing is cut.
          responses: for each prompt one text, or a list of K texts; K may differ.
          batch_size: prompts at a time.

        Returns:
          ``[N]`` or ``[N, K]`` nats, summed over the tokens of the response with its end; 0 after
          the end of shorter lists.

        Raises:
          UserError: the numbers of prompts and responses differ, or one of them is malformed.
        """
        if len(prompts) != len(responses):
            raise UserError(
                f"logps: wanted responses for {len(prompts)} prompts, found {len(responses)}"
            )
        single = all(isinstance(response, str) for response in responses)
        records = [
            Record(
                id=str(i),
                prompt=prompt,
                responses=(texts,) if isinstance(texts, str) else tuple(texts),
                origin=f"responses[{i}]",
            )
            for i, (prompt, texts) in enumerate(zip(read_prompts(prompts), responses, strict=True))
        ]
        rows = encode_all(
            records,
            self.tokenizer,
            max_prompt_tokens=LONGEST,
            max_response_tokens=LONGEST,
            report=DataReport(),
        )
        data = bucket(store.in_memory(rows), count=4, multiple=16)
        table = map_rows.map_rows(
            lambda batch: score_responses(self.params, batch, config=self.config),
            data,
            batch_size=batch_size,
            mesh=sharding.make_mesh(1, 1, 1),
            title="log-probabilities",
        )
        return table[:, 0] if single else table

    def generate(
        self,
        prompts: Prompts,
        *,
        samples: int = 1,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        batch_size: int = 8,
        seed: int = 0,
    ) -> list[list[str]]:
        """Samples responses to prompts; ``temperature=0`` takes the likeliest token each time.

        Args:
          prompts: as in `logps`.
          samples: responses per prompt.
          max_new_tokens, temperature, top_k, top_p: see `config.SamplingConfig`.
          batch_size: prompts at a time.
          seed: the same seed gives the same responses.

        Returns:
          ``samples`` texts for every prompt, in order.
        """
        settings = SamplingConfig(
            samples=samples,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            batch_size=batch_size,
        )
        sampling = Sampling(
            model=self.config,
            tokenizer=self.tokenizer,
            settings=settings,
            key=jax.random.key(seed),
            mesh=sharding.make_mesh(1, 1, 1),
            title="sampling",
        )
        questions = ask(read_prompts(prompts), range(len(prompts)), self.tokenizer, LONGEST)
        drawn = respond(sampling, self.params, questions)
        texts = [sample.response for sample in drawn]
        return [texts[i * samples : (i + 1) * samples] for i in range(len(questions))]


def read_prompts(prompts: Prompts) -> list[Prompt]:
    """Reads prompts in the same forms as in rows of a file.

    Raises:
      UserError: a prompt is neither a text nor a conversation, or ``prompts`` is one text.
    """
    if isinstance(prompts, str):
        raise UserError("prompts: wanted a list of prompts, found one text: [text]")
    rows = [Row({"prompt": p}, f"prompts[{i}]", str(i), "") for i, p in enumerate(prompts)]
    return [read_prompt(row, "prompt") for row in rows]


def load(
    path: str | pathlib.Path,
    *,
    dtype: str = "float32",
    preference: str = "",
    checkpoint: str = "last",
) -> Policy:
    """Loads a policy onto the first device.

    Args:
      path: a folder saved by transformers, an imported one, a GGUF file, or a run's workdir.
      dtype: of matrix products, float32 or bfloat16; a run has its own.
      preference: of a run of several objectives, such as ``"0.3,0.7"``.
      checkpoint: of a run: ``"last"``, or ``"best"`` (saved with ``train.keep_best``).

    Raises:
      UserError: the path has no such model, or its run trained a reward model or nothing yet.
    """
    logs.show_lines()
    folder = pathlib.Path(path)
    if is_run(folder):
        return _load_run(folder, preference, checkpoint)
    if checkpoint != "last":
        raise UserError(f"checkpoint={checkpoint!r}: wanted a run, found {path}")
    if preference:
        raise UserError(f"preference: wanted a run of several objectives, found {path}")
    config = hf.resolve(ModelConfig(path=str(path), dtype=dtype))
    tokenizer = tokenizers.load(str(path), model=str(path))
    tokenizers.check_ids(str(path), tokenizer.vocab_size, config.vocab_size)
    params = pretrained.load(config, sharding.make_mesh(1, 1, 1))
    return Policy(params, config, tokenizer, str(path))


def is_run(folder: pathlib.Path) -> bool:
    """Tells whether a path is the folder of a run."""
    if gguf_files.is_gguf(folder) or not (folder / "config.json").is_file():
        return False
    return "train" in storage.read_json(folder / "config.json")


def _load_run(folder: pathlib.Path, preference: str, checkpoint: str) -> Policy:
    """Loads a run's policy; of an unfinished run the newest checkpoint."""
    description = storage.read_json(folder / "config.json")
    if description["loss"] is None:
        raise UserError(f"{folder}: wanted a policy, found a reward model")
    trained, made = finished_run.trained_in(folder, description), policies.find(folder, description)
    choice = policies.choose_for(made, str(folder), preference)
    with workdirs.owned(folder):
        if made is not None and choice is not None:
            policies.require_single(choice, adapter=False)
            network = export.chosen(trained, made, choice, merged=True)
        else:
            trained = finished_run.at_checkpoint(trained, checkpoint)
            network = export.newest(trained, 0, merged=True)
    tokenizer = export.tokenizer_of(description["tokenizer"], folder)
    return Policy(network.params, trained.model, tokenizer, str(folder))
