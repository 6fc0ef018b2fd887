"""RDRO with the paper's settings: Llama 3.1 8B Instruct on UltraFeedback's unpaired labels.

The data are ``trl-lib/ultrafeedback-gpt-3.5-turbo-helpfulness`` as JSON lines with ``prompt``,
``completion`` and ``label`` (6,088 preferred and 9,644 other responses in the paper), the model and
its tokenizer a folder (docs/models.md). alpha, 0.387 there, is counted in the data.

As in the paper the reference is the model itself. The theory wants it to be the mixture that the
responses were drawn from; to fit that first, add an ``sft`` stage (`configs/demo/rdro.py`), which
imitates all responses.

Command:   python -m alignjax run --config=configs/rdro_ultrafeedback_llama3_8b.py \
               --workdir=runs/rdro_8b --set data.path='/data/ultrafeedback/*.jsonl' \
               --set model.path=/models/llama-3.1-8b-instruct
Hardware:  8 GPUs of 80 GB; not run here
Time:      TODO measure; by plan 1.01 to 2.02 s a step on v5p:2x2x4 (docs/pods.md)
Expect:    TODO measure; the paper reports an AlpacaEval length-controlled win rate of 17.3
"""

import dataclasses

from alignjax.config import Config, DataConfig, EvaluateConfig, MeshConfig, OptimConfig, TrainConfig
from alignjax.data import sources
from alignjax.losses import rdro
from alignjax.models import presets
from alignjax.training import optim


def get_config() -> Config:
    return Config(
        data=DataConfig(source=sources.trl, max_prompt_tokens=512, max_response_tokens=512),
        model=dataclasses.replace(
            presets.llama31_8b(), dtype="bfloat16", remat="full", logits_chunk=128
        ),
        loss=rdro.loss,  # alpha and the class weights are counted in the data
        optim=OptimConfig(
            learning_rate=5e-7, schedule=optim.cosine, warmup_fraction=0.1, clip_norm=1.0
        ),
        train=TrainConfig(epochs=1.0, batch_size=128, accumulate=4, save_every=50),
        mesh=MeshConfig(fsdp=8),
        evaluate=EvaluateConfig(prompts=64, samples=1, max_new_tokens=256, batch_size=32),
    )
