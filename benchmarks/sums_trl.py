"""Steps of TRL's GRPOTrainer on sums, for `sums_peers.py`, which runs this beside TRL."""

import argparse
import json
import os
import pathlib
import re
import time

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

NUMBER = re.compile(r"-?\d+")


class Timer(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.ends.append(time.perf_counter())

    def on_step_end(self, *_: object, **__: object) -> None:
        self.ends.append(time.perf_counter())


def last_number(completions: list, answer: list[str], **_: object) -> list[float]:
    """Scores 1 where a completion's last number is the answer."""
    texts = [turns[-1]["content"] for turns in completions]
    found = [NUMBER.findall(text) for text in texts]
    return [float(bool(x) and x[-1] == y) for x, y in zip(found, answer, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", help="JSON, as sums_peers.py writes it")
    given = json.loads(parser.parse_args().settings)
    torch.set_num_threads(os.cpu_count() or 1)
    rows = [json.loads(x) for x in pathlib.Path(given["rows"]).read_text().splitlines()]
    prompts = [[{"role": "user", "content": row["question"]}] for row in rows]
    data = Dataset.from_dict({"prompt": prompts, "answer": [row["answer"] for row in rows]})
    timer = Timer()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32),
        reward_funcs=last_number,
        args=GRPOConfig(
            output_dir=given["out"],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=given["recompute"],
            per_device_train_batch_size=given["prompts"] * given["samples"],
            num_generations=given["samples"],
            max_completion_length=given["new_tokens"],
            max_steps=given["steps"],
            learning_rate=given["learning_rate"],
            beta=0.0,
            loss_type="grpo",
            seed=given["seed"],
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(given["model"]),
        peft_config=LoraConfig(
            r=given["rank"],
            lora_alpha=given["alpha"],
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
        callbacks=[timer],
    )
    trainer.train()
    logged = [x for x in trainer.state.log_history if "reward" in x]
    result = {
        "seconds": [b - a for a, b in zip(timer.ends, timer.ends[1:], strict=False)],
        "rewards": [x["reward"] for x in logged],
        "lengths": [x["completions/mean_length"] for x in logged],
    }
    print(f"RESULT {json.dumps(result)}", flush=True)


if __name__ == "__main__":
    main()
