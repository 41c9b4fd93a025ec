"""From configuration to the modules of a training run."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from fm.config.data import DataConfig
from fm.config.errors import ConfigError
from fm.config.model import ModelConfig
from fm.config.objective import JointConfig, MaeConfig, ObjectiveConfig, TextLoss
from fm.models.build import build_model
from fm.objectives.joint import JointObjective
from fm.objectives.masked_autoencoding import MaeObjective, MaeStudent
from fm.objectives.student import JointStudent, StudentModule


def build_student(
    model: ModelConfig,
    objective: ObjectiveConfig,
    data: DataConfig,
    vocab_size: int,
    phrase_shares: Sequence[float] = (),
) -> StudentModule:
    """The freshly initialised student; seed torch before the call.

    Args:
        model: encoder.
        objective: losses.
        data: lattice and series, which the encoder's configuration records.
        vocab_size: entries of the tokenizer.
        phrase_shares: share of the reports that hold each phrase to predict; none where phrases are not asked for.

    Raises:
        ConfigError: a kind of model or objective that this version does not build.
    """
    if isinstance(objective, MaeConfig):
        return MaeStudent(build_model(model, data, vocab_size), objective)
    config = _joint(objective)
    sigmoid = config.image_text is TextLoss.siglip
    encoder = build_model(
        model,
        data,
        vocab_size,
        initial_temperature=0.1 if sigmoid else config.initial_temperature,
        initial_bias=-10.0 if sigmoid else 0.0,
    )
    return JointStudent(encoder, config, phrase_shares)


def make_teacher(student: StudentModule) -> StudentModule:
    """A float32 copy without gradients, in eval mode; bf16 would never move at a momentum near 1."""
    teacher = copy.deepcopy(student).float().requires_grad_(False).eval()
    if student.fm.image.compiled:  # a copy of a compiled module is not compiled
        teacher.fm.image.compile_blocks()
    return teacher


def build_objective(objective: ObjectiveConfig) -> JointObjective | MaeObjective:
    """The objective: forward of student and teacher, and the losses. Holds neither parameters nor state.

    Raises:
        ConfigError: a kind that this version does not build.
    """
    if isinstance(objective, MaeConfig):
        return MaeObjective(objective)
    return JointObjective(_joint(objective))


def _joint(objective: ObjectiveConfig) -> JointConfig:
    if not isinstance(objective, JointConfig):
        raise ConfigError(f"objective.kind={objective.kind!r}: this version builds 'joint' and 'mae'")
    return objective
