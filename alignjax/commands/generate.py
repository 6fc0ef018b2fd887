"""The command ``generate``: samples responses of a finished run's policy or another model.

It writes JSON lines of ``{id, prompt, responses, domain, unfinished}``, which ``score`` reads.
``unfinished`` counts the responses that were cut at the token limit. With ``format="alpaca_eval"``
it writes the JSON array that ``alpaca_eval --model_outputs`` reads.
"""

import dataclasses
import json
import logging
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import jax

from alignjax.commands import finished_run, networks, policies, voices
from alignjax.config import Config, SamplingConfig
from alignjax.config.fields import describe
from alignjax.data import kept
from alignjax.data.files import Row, read_rows
from alignjax.data.records import DataError, DataReport, Prompt, Record
from alignjax.data.sources.auto import read_row
from alignjax.data.sources.messages import read_prompt
from alignjax.data.tokenizer import chat
from alignjax.data.tokenizer.load import Tokenizer
from alignjax.errors import UserError
from alignjax.evaluation import tables
from alignjax.runtime import sharding, storage, workdirs
from alignjax.sampling.generate import Question, Sample, Sampling, ask, respond, take_questions
from alignjax.stages.data import Prepared, load_tokenizer, prepare_data
from alignjax.stages.sample_lists import line as record_line

log = logging.getLogger("alignjax")

FORMATS = {"jsonl": ".jsonl", "alpaca_eval": ".json"}  # format -> ending of its files

Settings = TypeVar("Settings", bound=SamplingConfig)


def run(
    config: Config,
    workdir: str,
    out: str,
    *,
    prompts: str = "",
    samples: int | None = None,
    temperature: float | None = None,
    max_new_tokens: int | None = None,
    preference: str = "",
    overwrite: bool = False,
    checkpoint: str = "last",
    format: str = "jsonl",
) -> None:
    """Samples responses of a run's policy to prompts and writes them.

    Args:
      config: the run's; ``evaluate`` has the sampling settings.
      workdir: the run's folder.
      out: the file to write (``.jsonl``, for alpaca_eval ``.json``), or ``-``: standard output.
      prompts: see `read_prompts`; empty: the first ``evaluate.prompts`` held-out prompts.
      samples, temperature, max_new_tokens: replace those of ``evaluate``; None: the config's.
      preference: in a multi-objective run, see `policies.choose_for`.
      overwrite: replace an existing file.
      checkpoint: last or best, see `finished_run.at_checkpoint`.
      format: jsonl, or alpaca_eval, which has one response per prompt.

    Raises:
      UserError: there is no such run; prompts cannot be read or are empty; the file exists or
        cannot be written; see `policies.choose_for`.
    """
    _check_target(out, overwrite, format, samples)
    samples = 1 if format == "alpaca_eval" else samples
    given = dict(samples=samples, temperature=temperature, max_new_tokens=max_new_tokens)
    settings = changed(config.evaluate, best_of=0, **given)
    config = dataclasses.replace(config, evaluate=settings)  # checks the new values
    folder = pathlib.Path(workdir)
    several = policies.find(folder, describe(config))
    choice = policies.choose_for(several, workdir, preference)
    finished_run.at_checkpoint(finished_run.trained_in(folder, describe(config)), checkpoint)
    with workdirs.owned(folder):
        if prompts:
            tokenizer, known = _kept(config, folder)
            records, questions = read_prompts(prompts, config, tokenizer, known)
        else:
            data = prepare_data(config, folder)
            tokenizer, (records, questions) = data.tokenizer, _held_out(config, data)
        if not questions:
            raise UserError("generate: wanted prompts, found none (evaluate.prompts is 0)")
        _check_records(records, format)
        mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
        sampling = Sampling(
            model=config.model,
            tokenizer=tokenizer,
            settings=settings,
            key=jax.random.key(config.train.seed),
            mesh=mesh,
            title="sampling",
        )
        if several is None or choice is None:
            params = finished_run.load_policy(config, workdir, checkpoint)
            responses = respond(sampling, params, questions)
        else:
            log.info("--preference=%s: %s", preference, choice.description)
            responses = networks.respond(
                sampling,
                networks.source(finished_run.trained_in(folder, describe(config)), several, mesh),
                choice,
                [record.prompt for record in records],
                questions,
                max_prompt_tokens=config.data.max_prompt_tokens,
            )
    _write(out, records, responses, settings.max_new_tokens, format, folder.resolve().name)


def of_folder(
    path: str,
    out: str,
    *,
    prompts: str,
    settings: SamplingConfig,
    overwrite: bool = False,
    format: str = "jsonl",
) -> None:
    """Samples responses of a model in a folder or a GGUF file, and writes them as `run` does.

    Args:
      path: see `voices.of_folder`.
      out, overwrite, format: see `run`.
      prompts: see `read_prompts`.
      settings: how to sample.

    Raises:
      UserError: there is no such model, or see `run`.
    """
    _check_target(out, overwrite, format, settings.samples)
    records = [record for row in _rows(prompts) for record in _records(row)]
    _check_records(records, format)
    voice = voices.load(path)
    if voice.tokenizer.chat_template != chat.PLAIN_TEMPLATE:
        _note_plain(
            prompts, [x.prompt for x in records], "messages would go through its chat template"
        )
    questions = ask(
        [x.prompt for x in records], range(len(records)), voice.tokenizer, voices.LONGEST
    )
    sampling = Sampling(
        model=voice.model,
        tokenizer=voice.tokenizer,
        settings=settings,
        key=jax.random.key(0),
        mesh=voice.mesh,
        title="sampling",
    )
    responses = respond(sampling, voice.params, questions)
    name = pathlib.Path(path).resolve().name
    _write(out, records, responses, settings.max_new_tokens, format, name)


def changed(settings: Settings, **changes: Any) -> Settings:
    """Replaces settings, except by None."""
    given = {name: x for name, x in changes.items() if x is not None}
    return dataclasses.replace(settings, **given)


def _check_target(out: str, overwrite: bool, format: str, samples: int | None) -> None:
    """Checks the output file before sampling."""
    if format not in FORMATS:
        raise UserError(f"--format: wanted {' or '.join(FORMATS)}, found {format!r}")
    if format == "alpaca_eval" and samples not in (None, 1):
        raise UserError(f"--samples: wanted 1 for --format=alpaca_eval, found {samples}")
    if out == "-":
        return
    ending = FORMATS[format]
    if pathlib.Path(out).suffix != ending:
        raise UserError(f"--out: wanted - or a name that ends in {ending}, found {out!r}")
    if pathlib.Path(out).exists() and not overwrite:
        raise UserError(f"--out: {out} exists; choose another name, or use --overwrite")


def _check_records(records: list[Record], format: str) -> None:
    """Checks that every prompt is an instruction, for a format that needs one."""
    if format == "alpaca_eval":
        for record in records:
            _instruction(record)


def _instruction(record: Record) -> str:
    """Returns the text of a prompt of one message, by which alpaca_eval finds its prompts."""
    if isinstance(record.prompt, str):
        return record.prompt
    if [turn.role for turn in record.prompt] != ["user"]:
        turns = ", ".join(turn.role for turn in record.prompt)
        raise UserError(
            f"{record.origin or record.id}: --format=alpaca_eval: wanted a prompt of one user's "
            f"message, found {turns}"
        )
    return record.prompt[0].content


def _held_out(config: Config, data: Prepared) -> tuple[list[Record], list[Question]]:
    """Takes the first held-out prompts."""
    questions = take_questions(data.originals, config.evaluate.prompts)
    ids = [data.originals.dataset[q.number].id for q in questions]
    return [dataclasses.replace(data.original_records[i], responses=()) for i in ids], questions


def _kept(config: Config, folder: pathlib.Path) -> tuple[Tokenizer, list[Record]]:
    """Loads a run's tokenizer and its saved held-out records, without reading its data."""
    file = folder / "held_out.jsonl"
    known = kept.read(file.read_bytes()) if file.is_file() else []
    return load_tokenizer(config, folder, []), known


def read_prompts(
    path: str, config: Config, tokenizer: Tokenizer, known: Sequence[Record]
) -> tuple[list[Record], list[Question]]:
    """Reads prompts; warns about plain texts if the run's data are conversations.

    Args:
      path: rows with ``prompt``, text or messages, or of any format that `sources.auto` reads; or a
        ``.txt``, or ``-`` for standard input, whose lines are a user's messages or such rows.
      config, tokenizer: the run's.
      known: some of the run's data.
    """
    records = [record for row in _rows(path) for record in _records(row)]
    prompts, longest = [record.prompt for record in records], config.data.max_prompt_tokens
    if known and all(isinstance(record.prompt, tuple) for record in known):
        _note_plain(path, prompts, "those of the run's data are conversations")
    return records, ask(prompts, range(len(prompts)), tokenizer, longest)


def _note_plain(path: str, prompts: list[Prompt], why: str) -> None:
    """Warns that prompts are plain text, and shows the format of messages."""
    plain = sum(isinstance(prompt, str) for prompt in prompts)
    if plain:
        log.warning(
            "--prompts: %d prompts of %s are plain text and use no chat template; %s: "
            '{"prompt": [{"role": "user", "content": "..."}]}',
            *(plain, path, why),
        )


def _rows(path: str) -> list[Row]:
    """Reads rows, or lines of text as a user's messages."""
    if path != "-" and not path.endswith(".txt"):
        return list(read_rows(path))
    name = "standard input" if path == "-" else path
    try:
        text = sys.stdin.read() if path == "-" else pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts: {name} cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        origin = f"{name}:{number}"
        if line:
            rows.append(Row(_fields(line, origin), origin, f"{number}", name))
    if not rows:
        raise UserError(f"--prompts: {name} holds no prompt")
    return rows


def _fields(line: str, origin: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {"prompt": [{"role": "user", "content": line}]}
    try:
        fields: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise UserError(f"{origin}: not valid JSON ({error})") from None
    return fields


def _write(
    out: str, records: list[Record], responses: list[Sample], limit: int, format: str, name: str
) -> None:
    """Writes the responses; ``name`` is the model's name."""
    texts = [r.response.replace("\0", "\ufffd") for r in responses]  # sources refuse NULs
    cut = [not r.ended for r in responses]
    content = (
        _alpaca_eval(records, texts, name)
        if format == "alpaca_eval"
        else _jsonl(records, texts, cut)
    )
    if out == "-":
        tables.say(content.removesuffix("\n"))
    else:
        try:
            storage.write(pathlib.Path(out), content.encode())
        except OSError as error:
            raise UserError(f"--out: {out} cannot be written: {error.strerror}") from error
    log.info(
        "%s: %d responses to %d prompts, %d of them cut at the token limit (%d)",
        *("standard output" if out == "-" else out, len(responses), len(records)),
        *(sum(cut), limit),
    )


def _jsonl(records: list[Record], texts: list[str], cut: list[bool]) -> str:
    """Formats one JSON line per prompt, with its responses."""
    n = len(texts) // len(records)
    lines = [
        record_line(
            dataclasses.replace(record, responses=tuple(texts[i * n : (i + 1) * n])),
            unfinished=sum(cut[i * n : (i + 1) * n]),
        )
        for i, record in enumerate(records)
    ]
    return "".join(lines)


def _alpaca_eval(records: list[Record], texts: list[str], name: str) -> str:
    """Formats a JSON array of ``{instruction, output, generator, dataset}``, one per prompt."""
    rows = [
        {
            "instruction": _instruction(record),
            "output": text.strip(),
            "generator": name,
            "dataset": record.domain,
        }
        for record, text in zip(records, texts, strict=True)
    ]
    return json.dumps(rows, ensure_ascii=False, indent=2) + "\n"


def _records(row: Row) -> list[Record]:
    """Makes a record of a row's ``prompt``, or of its ``instruction`` as a user's message.

    AlpacaEval's rows have an ``instruction`` and a ``dataset``, which becomes the domain. From
    other rows, such as pairs of dialogues, it takes the prompt that their responses answer.
    """
    if not {"prompt", "instruction"} & set(row.fields):
        try:
            _, records = read_row(DataReport(), row)
        except DataError:
            row.get("prompt")  # raises an error that names the missing field
            raise
        return [dataclasses.replace(r, responses=(), more=()) for r in records]
    dataset = row.fields.get("dataset")
    return [
        Record(
            id=row.id,
            prompt=_prompt_of(row),
            responses=(),
            domain=dataset if isinstance(dataset, str) else "",
            origin=row.origin,
        )
    ]


def _prompt_of(row: Row) -> Prompt:
    """Reads a row's prompt; refuses an empty one, which training would drop."""
    is_instruction = "instruction" in row.fields and "prompt" not in row.fields
    name = "instruction" if is_instruction else "prompt"
    if is_instruction and row.fields.get("input"):
        raise UserError(
            f"{row.origin}: field 'input' beside 'instruction' is not read; write both as 'prompt'"
        )
    prompt = read_prompt(row, name, chat=is_instruction)
    texts = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
    if not any(text.strip() for text in texts):
        raise UserError(f"{row.origin}: field {name!r} is empty")
    return prompt
