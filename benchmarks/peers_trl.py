"""Steps of TRL's DPOTrainer, for `peers.py`, which runs this in the peers' environment.

The rows are token ids already, so that both read the same: the trainer's own tokenisation is
skipped. A step lasts from one `on_step_end` to the next.
"""

import copy
import os
import tempfile

import torch
from datasets import Dataset
from peers_steps import BETA, END, LEARNING_RATE, PAIRS, VOCABULARY, Clock, arguments, report
from peers_torch import load
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer


class Timer(TrainerCallback):
    """Ticks a clock at every step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.clock.start()

    def on_step_end(self, *_: object, **__: object) -> None:
        self.clock.tick()


class OnIds(DPOTrainer):
    """The trainer on rows that are token ids."""

    def _prepare_dataset(self, dataset: Dataset, *_: object) -> Dataset:
        return dataset


def tokenizer(folder: str) -> PreTrainedTokenizerFast:
    """Loads the model's tokenizer, or makes one for the small network, which only pads."""
    if folder:
        return AutoTokenizer.from_pretrained(folder)
    words = {"<pad>": 0, "<end>": END} | {f"w{i}": i for i in range(2, VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


def main() -> None:
    args = arguments()
    torch.set_num_threads(os.cpu_count() or 1)
    model = load(args.model)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = DPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=PAIRS,
            max_steps=args.passes * len(args.batches),
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            beta=BETA,
            max_length=None,
            precompute_ref_log_probs=not args.live,
            precompute_ref_batch_size=PAIRS,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
        )
        trainer = OnIds(
            model=model,
            ref_model=copy.deepcopy(model) if args.live else None,
            args=settings,
            train_dataset=Dataset.from_list([row for batch in args.batches for row in batch]),
            processing_class=tokenizer(args.model),
            callbacks=[Timer(clock)],
        )
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    report(clock, losses, args.batches)


if __name__ == "__main__":
    main()
