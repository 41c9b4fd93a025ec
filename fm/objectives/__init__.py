"""Losses and the modules they train.

The contract with the engine:

- ``build_student(model, objective, data, vocab_size)`` gives a :class:`~fm.objectives.student.StudentModule`: the
  encoder (``student.fm``, the :class:`fm.models.FmModel` that is exported) and the loss heads. *All* of it is trained:
  hand the whole module to DeepSpeed.
- ``make_teacher(student)`` gives a float32 copy of the same module without gradients, in eval mode. The engine averages
  every parameter of the student into the parameter of the same name. It stays outside the DeepSpeed engine. There are
  no buffers to average: every non-parameter is derived from the configuration.
- ``build_objective(objective)`` gives the objective: no parameters, no buffers, no state, nothing to checkpoint.
- ``objective(student, teacher, batch, gather)`` returns ``(loss, report)`` and never logs. `report` maps names to
  detached scalar tensors. `student` is called as a module (``student(...)``), so a wrapped student works too.
  An objective may leave the teacher unasked (masked autoencoding does); its average goes on all the same.

``gather(x)`` concatenates equal-shaped tensors of all ranks along axis 0, in rank order, for floating and integer
dtypes. Its backward *sums* what the ranks' losses ask of the local rows (all-reduce, then the local slice). The loss of
a rank is scaled such that the **mean** over ranks of loss and gradients is that of one process with the joined batch.
One process passes :func:`local_gather`.
"""

from __future__ import annotations

from fm.objectives.build import build_objective, build_student, make_teacher
from fm.objectives.gathering import Gather, local_gather
from fm.objectives.joint import JointObjective
from fm.objectives.masked_autoencoding import MaeObjective
from fm.objectives.student import JointStudent, StudentModule

__all__ = [
    "Gather",
    "JointObjective",
    "JointStudent",
    "MaeObjective",
    "StudentModule",
    "build_objective",
    "build_student",
    "local_gather",
    "make_teacher",
]
