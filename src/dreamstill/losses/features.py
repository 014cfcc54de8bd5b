"""Losses on features. Maps are (N, C, H, W), vectors (N, D); all return a scalar."""

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
    """Minus the mean magnitude of the penultimate features (N, D).

    Chen et al. 2019 (DAFL), equation 3: real images excite the teacher's features.
    """
    return -features.abs().mean()


def attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of attention maps: Zagoruyko and Komodakis 2017, equation 2.

    An attention map is the mean over channels of the squares of what the layer puts out, whatever
    its sign, normalized to unit l2 over the pixels; channels may differ, H and W may not.
    """

    def normalized(maps: Tensor) -> Tensor:
        return F.normalize(maps.pow(2).mean(1).flatten(1))

    return (normalized(student) - normalized(teacher)).pow(2).mean()


def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """Squared hinge on the side of zero that the teacher's neurons are on, summed, over N.

    Heo et al. 2019 (AB), equation 5, on features before the ReLU, the student's after its
    connector: (s + m)^2 where the teacher is silent and s > -m, and (s - m)^2 where the teacher
    fires and s <= m.
    """
    silent = (student + margin).clamp_min(0).pow(2) * (teacher <= 0)
    firing = (student - margin).clamp_max(0).pow(2) * (teacher > 0)
    return (silent + firing).sum() / len(student)


def layer_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference over the teacher's variance: 1 where only the mean is right.

    Ours, after Horton et al. 2022 (Layer-Wise Data-Free CNN Compression), who fit each layer by
    itself; here all are fitted at once, in the running network, and count alike.
    """
    return F.mse_loss(student, teacher) / teacher.var().clamp_min(1e-8)


def mimic(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of maps (N, D, H, W), the student's after its 1x1 regressor.

    After Li, Jin and Yan 2017, equation 2, which is half the squared l2 distance of two vectors of
    features, averaged over N of them: times D x H x W of this, which is a mean over features too,
    so that a weight of 1 means the same for maps of any size.
    """
    return 0.5 * F.mse_loss(student, teacher)


def _distances(features: Tensor) -> Tensor:
    """Pairwise distances (N, N), in units of their mean."""
    squares = features.pow(2).sum(1)
    squared = (squares[:, None] + squares - 2 * features @ features.T).clamp_min(1e-12)
    distances = squared.sqrt() * (1 - torch.eye(len(features), device=features.device))
    mean = distances.sum() / (distances > 1e-5).sum().clamp_min(1)
    return distances / mean.clamp_min(1e-12)


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the vectors' pairwise distances, each over its mean.

    Park et al. 2019 (RKD), equation 6; the dimensions may differ.
    """
    return F.smooth_l1_loss(_distances(student), _distances(teacher))


def _angles(features: Tensor) -> Tensor:
    """Cosines of the angles of all triples (N, N, N)."""
    unit = F.normalize(features[None] - features[:, None], dim=2)
    return unit @ unit.transpose(1, 2)


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between the cosines of all triples: Park et al. 2019 (RKD), equation 8.

    Cubic in N: keep batches at a few hundred at most.
    """
    return F.smooth_l1_loss(_angles(student), _angles(teacher))


def relational(student: Tensor, teacher: Tensor) -> Tensor:
    """Sum the losses of distances and angles with RKD's weights, 25 and 50."""
    distance = 25.0 * relational_distance(student, teacher)
    return distance + 50.0 * relational_angle(student, teacher)


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of row-normalized Gram matrices over the batch.

    Tung and Mori 2019 (SP), equation 4: the sum over N^2 entries, over N^2.
    """

    def gram(features: Tensor) -> Tensor:
        flat = features.flatten(1)
        return F.normalize(flat @ flat.T)

    return F.mse_loss(gram(student), gram(teacher))
