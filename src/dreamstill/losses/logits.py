"""Transfer losses on logits: what the student pays for differing from the teacher.

All take (N, K) student logits, (N, K) teacher logits and a temperature, and return a scalar that
is the mean over the batch.
"""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["kl_divergence", "l1", "soft_cross_entropy"]


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Forward KL(teacher || student) times temperature^2: Hinton et al. 2015, section 2.

    At temperature 1 it is the plain forward KL.
    """
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    kl = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return kl * temperature**2


def l1(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean absolute difference of logits: Fang et al. 2019 (DFAD), equation 3.

    The temperature has no part in it; it stands there so that every loss is called alike.
    """
    return (student - teacher).abs().mean()


def soft_cross_entropy(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with soft targets (N, K) that sum to 1: Nayak et al. 2019 (ZSKD), eq. 4."""
    return -(targets * F.log_softmax(logits / temperature, dim=1)).sum(1).mean()
