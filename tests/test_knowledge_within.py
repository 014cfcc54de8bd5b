"""BNS: what a teacher with BatchNorm knows of how alike a batch is to what it was trained on."""

import dataclasses
from importlib.resources import as_file, files
from pathlib import Path

import pytest
import torch

import toys
from dreamstill.data.images import load_images
from dreamstill.errors import TeacherError
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.synthesis.config import (
    DeepInversionConfig,
    KnowledgeWithinConfig,
    NoiseConfig,
    Scheme,
)
from dreamstill.synthesis.methods.knowledge_within import KnowledgeWithin, data_similarity
from dreamstill.synthesis.registry import open_synthesizer
from dreamstill.teacher import Teacher

TEACHERS = Path(__file__).parents[1] / "benchmarks" / "teachers"


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return open_from(TeacherFile(weights=str(TEACHERS / "lenet5_bn_mnist.safetensors")))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_real_images_are_nearer_than_inverted_ones_and_those_nearer_than_noise(
    teacher: Teacher,
) -> None:
    with as_file(files("dreamstill") / "assets" / "digits.npz") as path:
        real, _ = load_images(path, teacher.input_spec, 10)
    inverted = open_synthesizer(
        "deepinversion", teacher, DeepInversionConfig(batch_size=256, steps=40), rng=rng()
    )
    noise = open_synthesizer("noise", teacher, NoiseConfig(), rng=rng())
    real_bns, inverted_bns, noise_bns = (
        data_similarity(teacher, images)
        for images in (
            teacher.input_spec.encode(real[::7]),
            inverted.next_batch().images,
            noise.next_batch().images,
        )
    )
    assert real_bns < 0.05
    assert 2 * real_bns < inverted_bns < 0.5 * noise_bns


def test_each_scheme_is_best_at_what_it_optimizes(teacher: Teacher) -> None:
    bns, logit = {}, {}
    for scheme in Scheme:
        config = KnowledgeWithinConfig(batch_size=64, steps=25, scheme=scheme)
        batch = open_synthesizer("knowledge_within", teacher, config, rng=rng()).next_batch()
        bns[scheme] = data_similarity(teacher, batch.images)
        own = torch.arange(64)[:, None] % 10
        logit[scheme] = batch.logits.gather(1, own).mean().item()
    assert bns[Scheme.BNS] < bns[Scheme.INCEPTION]
    assert bns[Scheme.BNS_INCEPTION] < bns[Scheme.INCEPTION]
    assert logit[Scheme.INCEPTION] > logit[Scheme.BNS_INCEPTION] > logit[Scheme.BNS] + 0.5


def test_inception_alone_can_do_without_batch_norm() -> None:
    teacher = toys.quadrant_teacher()
    config = KnowledgeWithinConfig(batch_size=8, steps=40, inception=1.0, prior=0.01)
    with pytest.raises(TeacherError, match=r"bns\+i needs batch_norm.*; inception can do without"):
        KnowledgeWithin(teacher, config, rng=torch.Generator())
    config = dataclasses.replace(config, scheme=Scheme.INCEPTION)
    batch = KnowledgeWithin(teacher, config, rng=torch.Generator()).next_batch()
    assert batch.logits.argmax(1).tolist() == [0, 1, 2, 3] * 2


def test_a_teacher_without_batch_norm_cannot_tell() -> None:
    with pytest.raises(TeacherError, match="needs BatchNorm"):
        data_similarity(toys.quadrant_teacher(), torch.zeros(4, 1, 8, 8))
