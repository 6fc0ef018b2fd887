"""Responses of a finished run's policy to prompts: the verb ``generate``.

It writes ``OUT``, JSON lines of ``{id, prompt, responses, domain, unfinished}``: what ``score``
scores, and with scores what `data.sources.lists` reads. ``unfinished`` counts the responses that
were cut at the token limit.
"""

import dataclasses
import logging
import pathlib

from alignjax.commands import finished_run, networks, policies
from alignjax.config import Config
from alignjax.config.fields import describe
from alignjax.data.files import Row, read_rows
from alignjax.data.records import Prompt, Record
from alignjax.data.sources.messages import read_prompt
from alignjax.errors import UserError
from alignjax.runtime import sharding, storage, workdirs
from alignjax.sampling.generate import Question, Sample, ask, respond, take_questions
from alignjax.stages.data import Prepared, prepare_data
from alignjax.stages.run import Run
from alignjax.stages.sample_lists import line

log = logging.getLogger("alignjax")


def run(
    config: Config,
    workdir: str,
    out: str,
    *,
    prompts: str = "",
    samples: int | None = None,
    temperature: float | None = None,
    preference: str = "",
) -> None:
    """Samples responses of the policy to prompts and writes them.

    Args:
      config: of the run; ``evaluate`` says how to sample.
      workdir: the run's folder.
      out: the file to write, over an older one.
      prompts: a file of rows with ``prompt``, text or messages; empty: the first
        ``evaluate.prompts`` held-out prompts.
      samples: responses per prompt; None: ``evaluate.samples``.
      temperature: None: ``evaluate.temperature``.
      preference: of a run of several objectives, see `policies.choose_for`.

    Raises:
      UserError: no such run, prompts that cannot be read or are empty, or a file that cannot be
        written; or as `policies.choose_for`.
    """
    target = pathlib.Path(out)
    if target.suffix != ".jsonl":
        raise UserError(f"--out: wanted a name that ends in .jsonl, found {out!r}")
    evaluate = config.evaluate
    settings = dataclasses.replace(
        evaluate,
        samples=evaluate.samples if samples is None else samples,
        temperature=evaluate.temperature if temperature is None else temperature,
        best_of=0,
    )
    config = dataclasses.replace(config, evaluate=settings)  # checked once more
    folder = pathlib.Path(workdir)
    made = policies.find(folder, describe(config))
    choice = policies.choose_for(made, workdir, preference)
    with workdirs.owned(folder):
        data = prepare_data(config, folder)
        records, questions = (
            read_prompts(prompts, config, data) if prompts else _held_out(config, data)
        )
        if not questions:
            raise UserError("generate: no prompt to respond to (evaluate.prompts is 0)")
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        sampling = Run(config, folder, data, mesh).sampling(settings, "sampling")
        if made is None or choice is None:
            params = finished_run.load_policy(config, workdir)
            responses = respond(sampling, params, questions)
        else:
            log.info("--preference=%s: %s", preference, choice.said)
            responses = networks.respond(
                sampling,
                networks.source(finished_run.trained_in(folder, describe(config)), made, mesh),
                choice,
                [record.prompt for record in records],
                questions,
                max_prompt_tokens=config.data.max_prompt_tokens,
            )
    _write(target, records, responses)
    unfinished = sum(not r.ended for r in responses)
    log.info(
        "%s: %d responses to %d prompts, %d of them cut for lack of room (%d tokens)",
        *(out, len(responses), len(records), unfinished, settings.max_new_tokens),
    )


def _held_out(config: Config, data: Prepared) -> tuple[list[Record], list[Question]]:
    """Takes the first held-out prompts."""
    questions = take_questions(data.originals, config.evaluate.prompts)
    ids = [data.originals.dataset[q.number].id for q in questions]
    return [dataclasses.replace(data.original_records[i], responses=()) for i in ids], questions


def read_prompts(path: str, config: Config, data: Prepared) -> tuple[list[Record], list[Question]]:
    """Reads the prompts of a file; says so where they are texts and the data's conversations."""
    rows = read_rows(path)
    records = [Record(id=row.id, prompt=_prompt_of(row), responses=()) for row in rows]
    prompts, longest = [record.prompt for record in records], config.data.max_prompt_tokens
    plain = sum(isinstance(prompt, str) for prompt in prompts)
    if plain and all(isinstance(r.prompt, tuple) for r in data.original_records.values()):
        log.warning(
            "--prompts: %d prompts of %s are plain text, which is continued as it is; those of the "
            'run\'s data are conversations: {"prompt": [{"role": "user", "content": "..."}]}',
            plain,
            path,
        )
    return records, ask(prompts, range(len(prompts)), data.tokenizer, longest)


def _write(target: pathlib.Path, records: list[Record], responses: list[Sample]) -> None:
    """Writes one line per prompt, with its responses."""
    texts = [r.response.replace("\0", "\ufffd") for r in responses]  # no text file can hold a NUL
    n = len(texts) // len(records)
    lines = [
        line(
            dataclasses.replace(record, responses=tuple(texts[i * n : (i + 1) * n])),
            unfinished=sum(not r.ended for r in responses[i * n : (i + 1) * n]),
        )
        for i, record in enumerate(records)
    ]
    try:
        storage.write(target, "".join(lines).encode())
    except OSError as error:
        raise UserError(f"--out: {target} cannot be written: {error.strerror}") from error


def _prompt_of(row: Row) -> Prompt:
    """Reads a row's prompt; refuses one without text, which training would drop."""
    prompt = read_prompt(row, "prompt")
    texts = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
    if not any(text.strip() for text in texts):
        raise UserError(f"{row.origin}: field 'prompt' is empty; there is nothing to respond to")
    return prompt
