"""Distillation losses on logits.

All take (N, K) student logits, (N, K) teacher logits and a temperature > 0, and return the mean
over the batch as a scalar; `mse` and `l1` take outputs of any shape.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "agreeing_kl",
    "js_divergence",
    "kl_divergence",
    "l1",
    "mse",
    "reverse_kl",
    "soft_cross_entropy",
    "values_divergence",
]


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the forward KL(teacher || student) * temperature^2: Hinton et al. 2015, section 2."""
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    kl = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return kl * temperature**2


def agreeing_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student), 0 where the two name different classes, averaged over N.

    Fang et al. 2021 (CMI) and 2022 (FastDFKD): a generator that maximizes it looks for images that
    the student classifies like the teacher, but with another confidence.
    """
    log_student, log_teacher = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
    kl = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
    return (kl * (student.argmax(1) == teacher.argmax(1))).mean()


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the reverse KL(student || teacher) * temperature^2, which is mode-seeking.

    It penalizes probability that the student gives to classes unlikely for the teacher, but hardly
    classes of the teacher that the student omits.
    """
    return kl_divergence(teacher, student, temperature)


def js_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the Jensen-Shannon divergence in nats, in [0, ln 2]: Yin et al. 2020, equation 7.

    It is the mean of the KLs from both distributions to their average, computed in log space. It is
    not multiplied by temperature^2, because Adaptive DeepInversion's competition loss, 1 minus this
    value, needs a bounded divergence.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    log_mean = torch.logaddexp(log_student, log_teacher) - math.log(2)
    return 0.5 * sum(
        (
            F.kl_div(log_mean, one, reduction="batchmean", log_target=True)
            for one in (log_student, log_teacher)
        ),
        start=student.new_zeros(()),
    )


def values_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the mean squared difference: the KL of normal distributions of variance 1.

    It takes the place of divergences of classes where outputs (N, K) are values.
    """
    return 0.5 * F.mse_loss(student, teacher)


def mse(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean squared error of logits: Ba and Caruana 2014.

    The temperature is ignored; it is accepted so that all losses share one signature.
    """
    return F.mse_loss(student, teacher)


def l1(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the mean absolute error of logits: Fang et al. 2019 (DFAD), equation 3.

    The temperature is ignored; it is accepted so that all losses share one signature.
    """
    return (student - teacher).abs().mean()


def soft_cross_entropy(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the cross-entropy with soft targets (N, K) that sum to 1: Nayak et al. 2019, eq. 4."""
    return -(targets * F.log_softmax(logits / temperature, dim=1)).sum(1).mean()
