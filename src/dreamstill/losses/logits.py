"""Distillation losses on logits.

All take (N, K) student logits, (N, K) teacher logits and a temperature, and return a scalar that
is the mean over the batch.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["js_divergence", "kl_divergence", "l1", "mse", "reverse_kl", "soft_cross_entropy"]


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Forward KL(teacher || student) times temperature^2: Hinton et al. 2015, section 2.

    At temperature 1 it is the plain forward KL.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    kl = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return kl * temperature**2


def reverse_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Backward KL(student || teacher) times temperature^2: seeks the teacher's modes.

    It grows where the student names what the teacher does not, not where it leaves a class of the
    teacher's out.
    """
    return kl_divergence(teacher, student, temperature)


def js_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Jensen-Shannon divergence in nats, in [0, ln 2]: Yin et al. 2020, equation 7.

    Half the KL from each distribution to their mean; taken in log space, so that it needs no
    clamp. Not multiplied by temperature^2: it is bounded, and the competition of Adaptive
    DeepInversion is 1 minus it.
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


def mse(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean squared difference of logits: Ba and Caruana 2014.

    The temperature has no part in it; it stands there so that every loss is called alike.
    """
    return F.mse_loss(student, teacher)


def l1(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean absolute difference of logits: Fang et al. 2019 (DFAD), equation 3.

    The temperature has no part in it; it stands there so that every loss is called alike.
    """
    return (student - teacher).abs().mean()


def soft_cross_entropy(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with soft targets (N, K) that sum to 1: Nayak et al. 2019 (ZSKD), eq. 4."""
    return -(targets * F.log_softmax(logits / temperature, dim=1)).sum(1).mean()
