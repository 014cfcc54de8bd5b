"""Losses on feature maps (N, C, H, W) or feature vectors (N, D), which return a scalar."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "activation",
    "activation_boundary",
    "attention",
    "layer_error",
    "mimic",
    "relational",
    "relational_angle",
    "relational_distance",
    "similarity_preserving",
]


def activation(features: Tensor) -> Tensor:
    """Return the negative mean magnitude of the teacher's penultimate features (N, D).

    Chen et al. 2019 (DAFL), equation 3: real images cause high activations.
    """
    return -features.abs().mean()


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error of attention maps: Zagoruyko and Komodakis 2017, equation 2.

    An attention map is the mean of the squared features over channels, normalized to unit l2 norm
    over the pixels. The numbers of channels may differ; H and W must be equal.
    """

    def normalized(maps: Tensor) -> Tensor:
        return F.normalize(maps.pow(2).mean(1).flatten(1))

    return (normalized(student) - normalized(teacher)).pow(2).mean()


def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Return the squared hinge loss on the signs of the teacher's pre-activations, averaged over N.

    Heo et al. 2019 (AB), equation 5, on features before the ReLU, the student's after its
    connector: the sum of (s + m)^2 where t <= 0 and s > -m, and of (s - m)^2 where t > 0 and
    s <= m.
    """
    silent = (student + margin).clamp_min(0).pow(2) * (teacher <= 0)
    firing = (student - margin).clamp_max(0).pow(2) * (teacher > 0)
    return (silent + firing).sum() / len(student)


def layer_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error over the teacher's variance; predicting the mean gives 1.

    Adapted from Horton et al. 2022 (Layer-Wise Data-Free CNN Compression), who fit each layer
    separately; here all layers are fitted jointly and have equal weight.
    """
    return F.mse_loss(student, teacher) / teacher.var().clamp_min(1e-8)


def mimic(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the mean squared error of maps (N, D, H, W), the student's after a 1x1 regressor.

    Li, Jin and Yan 2017, equation 2, divided by D * H * W so that the weight of the loss does not
    depend on the size of the maps.
    """
    return 0.5 * F.mse_loss(student, teacher)


def _distances(features: Tensor) -> Tensor:
    """Return the pairwise distances (N, N), divided by their mean."""
    squares = features.pow(2).sum(1)
    squared = (squares[:, None] + squares - 2 * features @ features.T).clamp_min(1e-12)
    distances = squared.sqrt() * (1 - torch.eye(len(features), device=features.device))
    mean = distances.sum() / (distances > 1e-5).sum().clamp_min(1)
    return distances / mean.clamp_min(1e-12)


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber loss between the pairwise distances of vectors, divided by their mean.

    Park et al. 2019 (RKD), equation 6. Student and teacher may have different dimensions D.
    """
    return F.smooth_l1_loss(_distances(student), _distances(teacher))


def _angles(features: Tensor) -> Tensor:
    """Return the cosines of the angles of all triples of vectors (N, N, N)."""
    unit = F.normalize(features[None] - features[:, None], dim=2)
    return unit @ unit.transpose(1, 2)


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the Huber loss between the angle cosines of all triples: Park et al. 2019, equation 8.

    Time and memory grow with N^3; use batches of at most a few hundred.
    """
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


def relational(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the sum of distance and angle losses with RKD's weights 25 and 50."""
    distance = 25.0 * relational_distance(student, teacher)
    return distance + 50.0 * relational_angle(student, teacher)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error of row-normalized Gram matrices (N, N) of the batch.

    Tung and Mori 2019 (SP), equation 4.
    """

    def gram(features: Tensor) -> Tensor:
        flat = features.flatten(1)
        return F.normalize(flat @ flat.T)

    return F.mse_loss(gram(student), gram(teacher))
