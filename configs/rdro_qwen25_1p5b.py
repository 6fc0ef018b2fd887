"""RDRO with the paper's settings: Qwen2.5 1.5B Instruct on unpaired labels.

The data are JSON lines with ``prompt``, ``completion`` and ``label``, the model and its tokenizer a
folder (docs/models.md). alpha is counted in the data: 0.387 of UltraFeedback's responses, half of
KTO Mix 14K's.

As in the paper the reference is the model itself. The theory wants it to be the mixture that the
responses were drawn from; to fit that first, add an ``sft`` stage (`configs/demo/rdro.py`), which
imitates all responses.

Command:   python -m alignjax run --config=configs/rdro_qwen25_1p5b.py --workdir=runs/rdro_1p5b \
               --set data.path='/data/ultrafeedback/*.jsonl' \
               --set model.path=/models/qwen2.5-1.5b-instruct
Hardware:  1 GPU of 80 GB; not run here
Time:      TODO measure; by plan 1.64 to 2.92 s a step on v5e:2x4 (docs/pods.md)
Expect:    TODO measure; the paper reports an AlpacaEval length-controlled win rate of 5.6
           (UltraFeedback) and 5.3 (MIX-14K)
"""

import dataclasses

from alignjax.config import Config, DataConfig, EvaluateConfig, OptimConfig, TrainConfig
from alignjax.data import sources
from alignjax.losses import rdro
from alignjax.models import presets
from alignjax.training import optim


def get_config() -> Config:
    return Config(
        data=DataConfig(source=sources.trl, max_prompt_tokens=512, max_response_tokens=512),
        model=dataclasses.replace(
            presets.qwen25_1p5b(), dtype="bfloat16", remat="full", logits_chunk=128
        ),
        loss=rdro.loss,  # alpha and the class weights are counted in the data
        optim=OptimConfig(
            learning_rate=5e-7, schedule=optim.cosine, warmup_fraction=0.1, clip_norm=1.0
        ),
        train=TrainConfig(epochs=1.0, batch_size=128, accumulate=8, save_every=50),
        evaluate=EvaluateConfig(prompts=64, samples=1, max_new_tokens=256, batch_size=32),
    )
