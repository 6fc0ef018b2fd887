"""DPO steps written by hand in torch, for `peers.py`: rows packed, and each prompt once.

Run by `peers.py` in the peers' environment. Groups (a prompt, its chosen and its rejected response)
lie end to end in rows as long as the longest group; a mask lets a token see its prompt and its own
response. Only the states of scored positions are projected to the vocabulary.
"""

import copy
import dataclasses
import os

import numpy as np
import torch
from peers_steps import BETA, LEARNING_RATE, SMALL, Row, arguments, run
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM


@dataclasses.dataclass
class Packed:
    """A batch in rows, and its scored positions."""

    ids: torch.Tensor  # [rows, length]
    position: torch.Tensor  # [rows, length]
    mask: torch.Tensor  # [rows, 1, length, length], who sees whom
    at: tuple[torch.Tensor, torch.Tensor]  # row and place of each state that predicts a token
    target: torch.Tensor  # that token
    response: torch.Tensor  # whose it is: i chosen, PAIRS + i rejected


def pack(batch: list[Row]) -> Packed:
    """Lays groups into rows, the longest first, each where it first fits."""
    size = [sum(map(len, row.values())) for row in batch]
    longest, used, place = max(size), [], {}
    for i in sorted(range(len(batch)), key=lambda i: -size[i]):
        row = next((r for r, n in enumerate(used) if n + size[i] <= longest), len(used))
        used += [0] * (row == len(used))
        place[i] = (row, used[row])
        used[row] += size[i]
    shape = (len(used), longest)
    ids, position = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    group, branch = np.full(shape, -1), np.zeros(shape, np.int64)
    scored: list[np.ndarray] = []  # row, place, target, response
    for i, (row, start) in place.items():
        prompt, *responses = batch[i].values()
        end, p = start, len(prompt)
        for number, part in enumerate((prompt, *responses)):
            n, first = len(part), end
            where = slice(first, first + n)
            ids[row, where], group[row, where], branch[row, where] = part, i, number
            position[row, where] = (p if number else 0) + np.arange(n)
            end += n
            if number:
                before = np.concatenate([[start + p - 1], np.arange(first, first + n - 1)])
                whose = np.full(n, i + (number - 1) * len(batch))
                scored.append(np.stack([np.full(n, row), before, part, whose]))
    same = group[:, :, None] == group[:, None]
    sees = same & ((branch[:, None] == 0) | (branch[:, :, None] == branch[:, None]))
    sees &= np.tril(np.ones((longest, longest), bool))
    row, before, target, whose = map(torch.from_numpy, np.concatenate(scored, axis=1))
    return Packed(
        ids=torch.from_numpy(ids),
        position=torch.from_numpy(position),
        mask=torch.from_numpy(sees)[:, None],
        at=(row, before),
        target=target,
        response=whose,
    )


def logps(model: torch.nn.Module, packed: Packed, count: int) -> torch.Tensor:
    """Sums the log-probability of each of ``count`` responses."""
    states = model.model(
        input_ids=packed.ids,
        attention_mask=packed.mask,
        position_ids=packed.position,
        use_cache=False,
    ).last_hidden_state[packed.at]
    logits = torch.nn.functional.linear(states, model.lm_head.weight)
    token = -torch.nn.functional.cross_entropy(logits, packed.target, reduction="none")
    return torch.zeros(count).index_add(0, packed.response, token)


def load(folder: str) -> torch.nn.Module:
    """Loads a model, or makes the small network."""
    if folder:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **SMALL)).float()


def main() -> None:
    args = arguments()
    torch.set_num_threads(os.cpu_count() or 1)
    model = load(args.model)
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    count = 2 * len(args.batches[0])

    def of_reference(number: int) -> torch.Tensor:
        with torch.no_grad():
            return logps(reference, pack(args.batches[number]), count)

    kept = None if args.live else [of_reference(i) for i in range(len(args.batches))]

    def step(number: int) -> float:
        before = of_reference(number) if kept is None else kept[number]
        chosen, rejected = (logps(model, pack(args.batches[number]), count) - before).chunk(2)
        loss = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    run(step, args)


if __name__ == "__main__":
    main()
