"""The settings of a run: ``from alignjax.config import Config, DataConfig, ...``."""

from alignjax.config.schema import (
    CandidatesConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    FollowConfig,
    MeshConfig,
    OptimConfig,
    ReferenceConfig,
    SamplingConfig,
    SftConfig,
    TokenizerConfig,
    TrainConfig,
)

__all__ = [
    "CandidatesConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "FollowConfig",
    "MeshConfig",
    "OptimConfig",
    "ReferenceConfig",
    "SamplingConfig",
    "SftConfig",
    "TokenizerConfig",
    "TrainConfig",
]
