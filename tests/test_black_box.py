"""Black boxes: what is asked, how often, and what comes of answers that are none."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dreamstill as ds
import toys
from dreamstill.black_box.black_box import BlackBox
from dreamstill.black_box.config import Answers, BlackBoxConfig, ImageFormat
from dreamstill.distillation.config import DistillConfig, FinetuneConfig
from dreamstill.distillation.suiting import suited
from dreamstill.errors import BudgetError, ConfigError, DreamstillError, RunError, TeacherError
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from
from dreamstill.pipelines.config import DistillJob
from dreamstill.synthesis.config import DfadConfig, ImageProgramsConfig
from dreamstill.synthesis.registry import missing_capabilities, open_synthesizer
from dreamstill.synthesis.validation_set import validation_set

SPEC = toys.SPEC
EXAMINATION = 3


class Service:
    """Quadrants behind an interface, which notes what it is sent."""

    def __init__(self, answers: str = "logits", faults: list[BaseException] | None = None) -> None:
        self.network, self.answers = toys.quadrants(), answers
        self.faults, self.sent = faults or [], list[np.ndarray[Any, Any]]()

    @property
    def num_sent(self) -> int:
        return sum(map(len, self.sent))

    def __call__(self, images: np.ndarray[Any, Any]) -> Tensor:
        self.sent.append(images)
        if self.faults:
            raise self.faults.pop(0)
        pixels = torch.from_numpy(images)
        with torch.no_grad():
            logits: Tensor = self.network(
                SPEC.encode(pixels) if images.dtype == np.uint8 else pixels
            )
        kinds = {"logits": logits, "probabilities": logits.softmax(1), "labels": logits.argmax(1)}
        return kinds[self.answers]


def opened(service: Any, **settings: Any) -> BlackBox:
    return BlackBox(service, SPEC, BlackBoxConfig(**settings), num_classes=4)


def inputs(num: int, seed: int = 0) -> Tensor:
    pixels = torch.randint(
        0, 256, (num, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return SPEC.encode(pixels)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited."""
    seconds: list[float] = []
    monkeypatch.setattr("dreamstill.black_box.interface.time.sleep", seconds.append)
    return seconds


def test_logits_are_those_of_the_network_and_probabilities_and_labels_agree_with_them() -> None:
    images, network = inputs(20), toys.quadrants()
    wanted = network(images).detach()
    assert torch.allclose(opened(Service())(images), wanted, atol=1e-5)
    service = Service("probabilities")
    logits = opened(service, answers="probabilities")(images)
    assert torch.allclose(logits.softmax(1), wanted.softmax(1), atol=1e-5)
    assert torch.allclose(logits, wanted - wanted.mean(1, keepdim=True), atol=1e-3)
    labels = opened(Service("labels"), answers="labels")(images)
    assert labels.argmax(1).equal(wanted.argmax(1))
    assert torch.allclose(labels.softmax(1).amax(1), torch.ones(20), atol=1e-6)


def test_a_probability_of_zero_has_a_finite_logarithm() -> None:
    teacher = opened(lambda x: np.eye(4)[[0] * len(x)], answers="probabilities")
    assert teacher(inputs(1)).softmax(1)[0, 0] == pytest.approx(1, abs=1e-6)
    assert teacher(inputs(1)).isfinite().all()


def test_what_is_sent_is_inputs_or_pixels() -> None:
    images = inputs(3)
    floats, pixels = Service(), Service()
    opened(floats)(images)
    opened(pixels, images="pixels")(images)
    assert floats.sent[-1].dtype == np.float32
    assert np.allclose(floats.sent[-1], images.numpy(), atol=1e-6)
    assert pixels.sent[-1].dtype == np.uint8
    assert np.array_equal(pixels.sent[-1], SPEC.decode(images).numpy())


def test_lists_and_arrays_serve_as_answers() -> None:
    for form in (np.asarray, lambda a: a.tolist(), lambda a: a.numpy().astype(np.float16)):
        service = Service()
        teacher = opened(lambda x, form=form, service=service: form(service(x)))
        wanted = toys.quadrants()(inputs(4)).detach()
        assert torch.allclose(teacher(inputs(4)), wanted, atol=1e-2)


def test_no_image_is_asked_about_twice() -> None:
    service = Service()
    teacher = opened(service, batch_size=4)
    assert service.num_sent == teacher.queries == EXAMINATION
    images = inputs(10)
    answers = teacher(torch.cat([images, images[:5]]))
    assert teacher.queries == service.num_sent == EXAMINATION + 10
    assert [len(sent) for sent in service.sent[2:]] == [4, 4, 2]
    assert answers[10:].equal(answers[:5])
    teacher(images + 1e-4)  # rounded to the same 8 bits
    assert service.num_sent == EXAMINATION + 10


def test_the_budget_is_kept_to_the_query() -> None:
    service = Service()
    teacher = opened(service, budget=20)
    teacher(inputs(17))
    assert teacher.queries == service.num_sent == 20
    teacher(inputs(17))  # known
    with pytest.raises(BudgetError, match=r"1 more queries .* 20 of 20 are spent"):
        teacher(inputs(1, seed=1))
    assert service.num_sent == 20


def test_nothing_is_sent_where_the_budget_does_not_pay_for_all() -> None:
    service = Service()
    teacher = opened(service, budget=20, batch_size=5)
    with pytest.raises(BudgetError, match="18 more queries"):
        teacher(inputs(18))
    assert service.num_sent == EXAMINATION


def test_a_failed_request_is_sent_again_later_and_counts_again(slept: list[float]) -> None:
    service = Service()
    teacher = opened(service, wait=0.5, retries=3)
    service.faults = [TimeoutError("slow"), ConnectionResetError("gone"), ConnectionError("503")]
    teacher(inputs(7))
    assert slept == [0.5, 1, 2]
    assert teacher.queries == service.num_sent == EXAMINATION + 4 * 7


def test_retries_stop_at_their_number_and_at_the_budget(slept: list[float]) -> None:
    service = Service()
    teacher = opened(service, retries=2)
    service.faults = [TimeoutError("slow")] * 3
    with pytest.raises(TeacherError, match="failed 3 times, the last with: slow"):
        teacher(inputs(1))
    assert len(slept) == 2
    service = Service()
    teacher = opened(service, budget=20)
    service.faults = [TimeoutError("slow")] * 3
    with pytest.raises(BudgetError, match="17 of 20"):
        teacher(inputs(7))
    assert service.num_sent == 17


def test_the_rate_is_kept() -> None:
    teacher = opened(Service(), rate=50, batch_size=1)
    begun = time.monotonic()
    teacher(inputs(6))
    assert time.monotonic() - begun > 0.1


LIES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "fewer rows": ("logits", lambda x: np.zeros((1, 4)), r"must answer with \(2, 4\) logits"),
    "other classes": ("logits", lambda x: np.zeros((len(x), 5)), r"got shape \(2, 5\)"),
    "a row": ("logits", lambda x: np.zeros(4), r"got shape \(4,\)"),
    "not a number": ("logits", lambda x: np.full((len(x), 4), np.nan), "not finite"),
    "html": ("logits", lambda x: "<html>Sign in</html>" * 50, "got '<html>Sign in"),
    "nothing": ("logits", lambda x: None, "must answer with"),
    "ragged": ("logits", lambda x: [[1, 2, 3, 4], [1]], "must answer with"),
    "probabilities": ("logits", lambda x: np.full((len(x), 4), 0.25), "set answers to them"),
    "percent": ("probabilities", lambda x: np.full((len(x), 4), 25), "which sum to 100"),
    "negative": ("probabilities", lambda x: np.tile([2, -1, 0, 0], (len(x), 1)), "at least 0"),
    "label of no class": ("labels", lambda x: np.full(len(x), 4), "0 to 3; got 4"),
    "half a label": ("labels", lambda x: np.full(len(x), 0.5), "0 to 3; got 0.5"),
    "scores": ("labels", lambda x: np.zeros((len(x), 4)), "must answer with 2 labels"),
    "a crash": ("labels", lambda x: 1 / 0, "failed: division by zero"),
    "the batch": ("labels", lambda x: np.full(len(x), len(x)), "on its image alone"),
    "chance": ("logits", lambda x: np.random.default_rng().normal(size=(len(x), 4)), "asked again"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_answer_that_is_none_gets_one_line(lie: str) -> None:
    answers, service, message = LIES[lie]
    with pytest.raises(TeacherError, match=message) as caught:
        opened(service, answers=answers)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_a_later_run_takes_answers_from_the_cache(tmp_path: Path) -> None:
    cache, service = tmp_path / "answers.sqlite", Service()
    first = opened(service, cache=cache, budget=20)
    wanted = first(inputs(10))
    later = Service()
    second = opened(later, cache=cache, budget=20)
    assert second(inputs(10)).equal(wanted)
    assert later.num_sent == 0
    assert second.queries == EXAMINATION + 10
    with pytest.raises(BudgetError, match="13 of 20"):
        second(inputs(8, seed=1))


def test_a_cache_is_of_one_teacher(tmp_path: Path) -> None:
    cache = tmp_path / "answers.sqlite"
    opened(Service(), cache=cache)
    with pytest.raises(RunError, match="give another cache"):
        opened(Service(), cache=cache, images="pixels")
    with pytest.raises(TeacherError, match="has 4 classes, not 5"):
        BlackBox(Service(), SPEC, BlackBoxConfig(cache=str(cache)), num_classes=5)
    (tmp_path / "notes.txt").write_text("these are notes, and long ones at that" * 20)
    with pytest.raises(RunError, match="no usable cache"):
        opened(Service(), cache=tmp_path / "notes.txt")
    with pytest.raises(RunError, match="not a regular file"):
        opened(Service(), cache=tmp_path)


def _ask_slowly(cache: Path, log: Path) -> None:
    def answer(images: np.ndarray[Any, Any]) -> Any:
        with log.open("a") as file:
            file.writelines(f"{image.tobytes().hex()}\n" for image in images)
        return Service()(images)

    opened(answer, cache=cache, rate=4, batch_size=8)(inputs(40))


def test_a_run_that_is_killed_and_resumed_repeats_no_query(tmp_path: Path) -> None:
    cache, log = tmp_path / "answers.sqlite", tmp_path / "log.txt"
    process = multiprocessing.get_context("fork").Process(target=_ask_slowly, args=(cache, log))
    process.start()
    deadline = time.monotonic() + 20
    while len(log.read_text().splitlines() if log.exists() else ()) < EXAMINATION + 16:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)  # it waits for its turn
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    killed_after = len(log.read_text().splitlines())
    assert killed_after == EXAMINATION + 16
    _ask_slowly(cache, log)
    lines = log.read_text().splitlines()
    assert len(lines) == EXAMINATION + 40
    assert len(set(lines)) == len(lines) - 1  # of the examination, which asks about one again


def linear(width: int = 8) -> tuple[Callable[[Any], Tensor], Tensor]:
    weights = torch.randn(width * width, 3, generator=torch.Generator().manual_seed(1))
    return lambda x: torch.as_tensor(x).flatten(1) @ weights, weights


def test_the_gradient_of_a_linear_network_is_exact_in_expectation() -> None:
    answer, weights = linear()
    config = BlackBoxConfig(gradient_directions=1000, budget=10**6)
    teacher = BlackBox(answer, SPEC, config)
    assert teacher.capabilities.gradient
    images = inputs(2).requires_grad_()
    toward = torch.tensor([1.0, -2.0, 0.5])
    logits = teacher(images)
    assert teacher.queries == EXAMINATION + 2 * 1001
    (estimate,) = torch.autograd.grad((logits * toward).sum(), images)
    true = (weights @ toward).view(1, 1, 8, 8)
    # each value is the mean of m draws, of about the variance of the whole gradient
    spread = true.norm() / 1000**0.5
    error = (estimate - true).abs()
    assert error.max() < 4.5 * spread
    assert error.mean() < spread
    assert torch.nn.functional.cosine_similarity(estimate[0].ravel(), true.ravel(), 0) > 0.95


def test_the_gradient_of_one_pixel_is_exact() -> None:
    spec = ds.InputSpec((1, 1, 1), mean=(0.5,), std=(0.25,))
    config = BlackBoxConfig(gradient_directions=3, images=ImageFormat.PIXELS)
    teacher = BlackBox(lambda x: x[:, 0, 0] / 255 * np.array([2, -3]), spec, config)
    images = spec.encode(torch.tensor([0, 77, 255], dtype=torch.uint8).view(3, 1, 1, 1))
    images.requires_grad_()
    (slope,) = torch.autograd.grad(teacher(images)[:, 1].sum(), images)
    assert torch.allclose(slope.ravel(), torch.full((3,), -3 * 0.25), atol=1e-4)


def test_a_generator_trains_on_the_estimate_and_every_query_counts() -> None:
    service = Service()
    teacher = opened(service, gradient_directions=2)
    config = DfadConfig(batch_size=8, latent=4, widths=(8, 8))
    method = open_synthesizer("dfad", teacher, config, rng=torch.Generator().manual_seed(0))
    before = [p.clone() for p in method.generator.module.parameters()]  # type: ignore[attr-defined]
    method.next_batch(toys.seeded_student().eval())
    after = method.generator.module.parameters()  # type: ignore[attr-defined]
    assert any(not a.equal(b) for a, b in zip(after, before, strict=True))
    assert teacher.queries == service.num_sent == EXAMINATION + 8 * 3 + 8
    assert missing_capabilities("dfad", opened(Service())) == ["gradient"]


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="has no effect on labels"):
        BlackBoxConfig(answers=Answers.LABELS, gradient_directions=1)
    with pytest.raises(ConfigError, match="give num_classes"):
        BlackBox(Service("labels"), SPEC, BlackBoxConfig(answers=Answers.LABELS))
    teacher = opened(Service())
    rng = torch.Generator()
    with pytest.raises(ConfigError, match="oversample 3 has no effect on a black box"):
        open_synthesizer("image_programs", teacher, ImageProgramsConfig(oversample=3), rng=rng)
    with pytest.raises(ConfigError, match=r"augment .* has no effect on a black box"):
        ds.distill(teacher, toys.student, config=DistillConfig(augment=ds.Augmentation(rotate=9)))
    with pytest.raises(ConfigError, match="share the budget"):
        ds.distill(teacher, toys.student, baselines=True)
    with pytest.raises(TeacherError, match="distill a student from it first"):
        ds.prune(teacher, SPEC.noise(20))


def test_labels_alone_are_learned_by_cross_entropy() -> None:
    teacher = opened(Service("labels"), answers=Answers.LABELS)
    config = suited(teacher, FinetuneConfig())
    assert (config.losses, config.temperature) == (("kl",), 1.0)
    assert suited(opened(Service()), FinetuneConfig()).losses == ("kl", "l1")
    with pytest.raises(ConfigError, match="mse compares scores"):
        suited(teacher, FinetuneConfig(losses=("mse",), temperature=4.0))


@pytest.mark.parametrize("answers", ["logits", "labels"])
def test_a_student_learns_within_the_budget(answers: str) -> None:
    service = Service(answers)
    teacher = opened(service, answers=answers, budget=1200)
    config = DistillConfig(steps=150, batch_size=64, num_validation=64)
    images = ImageProgramsConfig(batch_size=64, programs=("smooth_noise", "gradients", "blobs"))
    result = ds.distill(teacher, toys.seeded_student(), images, config)
    assert service.num_sent == teacher.queries <= 1200
    assert teacher.queries > 1000
    assert "Of the budget of 1,200 queries 67 are spent" in result.details["plan"][0]
    assert result.details["validation_agreement"] > 0.5  # of four classes


def test_a_run_goes_on_with_its_images_when_the_budget_is_spent() -> None:
    service = Service()
    teacher = opened(service, budget=500)
    config = DistillConfig(steps=30, num_validation=64, fresh_every=1)
    result = ds.distill(teacher, toys.seeded_student(), ImageProgramsConfig(batch_size=64), config)
    assert len(result.history) == 30
    assert 400 < teacher.queries == service.num_sent <= 500


def test_a_budget_that_pays_for_no_image_is_refused_before_a_query() -> None:
    message = "black_box.budget 1,000 pays for no image to learn from: 1,027 queries are of the"
    file = TeacherFile(weights="function:toys:answer", black_box=BlackBoxConfig(budget=1000))
    with pytest.raises(ConfigError, match=message):
        DistillJob(teacher=file, student="toys:student")
    timed = DistillConfig(minutes=5.0)
    file = TeacherFile(weights="function:toys:answer", black_box=BlackBoxConfig())
    with pytest.raises(ConfigError, match=r"minutes 5\.0 has no effect on a black box"):
        DistillJob(teacher=file, student="toys:student", distill=timed)
    service = Service()
    teacher = opened(service, budget=2000)
    for images in (SPEC.noise(64), "noise"):
        with pytest.raises(ConfigError, match="minutes would spend queries of the black box"):
            ds.distill(teacher, toys.seeded_student(), images, timed)
    assert service.num_sent == EXAMINATION
    service = Service()
    teacher = opened(service, budget=1000)
    with pytest.raises(ConfigError, match=message):
        ds.distill(teacher, toys.seeded_student(), config=DistillConfig())
    assert service.num_sent == EXAMINATION


def test_images_that_are_given_are_asked_about_once() -> None:
    service = Service("labels")
    teacher = opened(service, answers="labels", budget=300)
    config = DistillConfig(steps=20, batch_size=32, num_validation=64)
    ds.distill(teacher, toys.seeded_student(), SPEC.noise(100), config)
    assert service.num_sent == EXAMINATION + 64 + 100
    with pytest.raises(BudgetError, match="more queries"):
        ds.distill(teacher, toys.seeded_student(), SPEC.noise(500), config)


def test_the_validation_set_costs_a_query_an_image() -> None:
    teacher = opened(Service())
    found = validation_set(teacher, 64)
    assert teacher.queries == EXAMINATION + 64
    assert torch.allclose(
        found.logits, toys.quadrants()(SPEC.encode(found.images)).detach(), atol=1e-5
    )


def test_the_count_of_queries_never_falls() -> None:
    teacher = opened(Service(), budget=100)
    teacher.queries = 50  # of the run that is resumed
    assert teacher.queries == 50
    teacher.queries = 10
    assert teacher.queries == 50
    with pytest.raises(BudgetError, match="50 of 100"):
        teacher(inputs(51))


def answer(images: np.ndarray[Any, Any]) -> Any:
    return Service()(images)


def test_a_function_opens_by_name(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"shape": (1, 8, 8), "mean": (0.5,), "std": (0.25,)}
    cache = BlackBoxConfig(cache=str(tmp_path / "answers.sqlite"))
    file = TeacherFile(weights="function:test_black_box:answer", black_box=cache, **settings)
    teacher = open_from(file)
    assert teacher.num_classes == 4
    assert teacher.fingerprint == open_from(file).fingerprint
    assert teacher.queries == EXAMINATION
    wrong = {
        "cache FILE": TeacherFile(weights="function:test_black_box:answer", **settings),
        "cannot import": TeacherFile(weights="function:no_module:f", black_box=cache, **settings),
        "no factory": TeacherFile(
            weights="http://127.0.0.1/", factory="a:b", black_box=cache, **settings
        ),
    }
    for message, given in wrong.items():
        with pytest.raises(DreamstillError, match=message):
            open_from(given)


def test_settings_of_a_black_box_are_refused_on_weights(tmp_path: Path) -> None:
    torch.save(toys.small_cnn().state_dict(), tmp_path / "w.pt")
    settings: dict[str, Any] = {"shape": (1, 8, 8), "mean": (0.5,), "std": (0.25,)}
    weights, factory = str(tmp_path / "w.pt"), "toys:small_cnn"
    file = TeacherFile(weights=weights, factory=factory, black_box=BlackBoxConfig(), **settings)
    with pytest.raises(ConfigError, match="black_box has no effect"):
        open_from(file)


@pytest.mark.parametrize("size", ["N", 3])
def test_onnxruntime_serves(tmp_path: Path, size: Any) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    answer, weights = linear()
    helper, path = onnx.helper, tmp_path / "net.onnx"
    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["y"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", kind, [size, 1, 8, 8])],
        [helper.make_tensor_value_info("y", kind, [size, 3])],
        [onnx.numpy_helper.from_array(weights.numpy(), "w")],
    )
    imports = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    teacher = BlackBox.from_onnx(path, SPEC)
    assert torch.allclose(teacher(inputs(5)), answer(inputs(5)), atol=1e-4)
    assert teacher.queries == EXAMINATION + 5
    with pytest.raises(TeacherError, match="no network at"):
        BlackBox.from_onnx(tmp_path / "absent.onnx", SPEC)
