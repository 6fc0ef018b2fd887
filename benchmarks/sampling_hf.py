"""Samples with transformers' `generate`, for `sampling_peers.py`: prints seconds of two calls."""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    settings = json.loads(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32).eval()
    prompts, size, new = settings["prompts"], settings["batch"], settings["new_tokens"]

    def batch(rows: list[list[int]]) -> dict[str, torch.Tensor]:
        longest = max(map(len, rows))
        ids = [[0] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}

    seconds = []
    for turn in range(2):
        torch.manual_seed(turn)
        since = time.perf_counter()
        for first in range(0, len(prompts), size):
            with torch.inference_mode():
                model.generate(
                    **batch(prompts[first : first + size]),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    num_return_sequences=settings["samples"],
                    max_new_tokens=new,
                    min_new_tokens=new,
                    pad_token_id=0,
                )
        seconds.append(time.perf_counter() - since)
    print("RESULT " + json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
