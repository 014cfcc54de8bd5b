"""Configuration of jobs: the teacher, the images and the task."""

from dataclasses import MISSING, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from dreamstill.black_box.config import check_pays
from dreamstill.compression.config import (
    FactorizeConfig,
    Importance,
    MergeConfig,
    PackConfig,
    PruneConfig,
    QuantizeConfig,
)
from dreamstill.config import (
    Bool,
    Float,
    Int,
    Precision,
    Seed,
    Text,
    at_least,
    config_class,
    did_you_mean,
    from_plain,
    no_effect,
)
from dreamstill.continual.config import LearnClassesConfig
from dreamstill.distillation.config import DistillConfig
from dreamstill.errors import ConfigError, quoted
from dreamstill.exporters.config import MOST_SEEN, Int8Config
from dreamstill.graph.config import kept_share
from dreamstill.loaders.config import NO_TEACHER, TeacherFile
from dreamstill.synthesis.presets import method_config, student_config
from dreamstill.synthesis.registry import DEFAULT_METHOD, METHODS, needs_student

__all__ = [
    "CompressJob",
    "DistillJob",
    "DistillStage",
    "ImagesJob",
    "JobConfig",
    "LearnClassesStage",
    "STAGE_CONFIGS",
    "StageConfig",
    "SynthesizeJob",
    "read_job",
]

MOST_IMAGES = 10**15
"""Upper bound of a number of images; `check_room` checks whether they fit."""


@config_class
class JobConfig:
    """Base of the configuration of all jobs."""

    teacher: TeacherFile
    method: Text | None = None
    """Method that synthesizes images; see `list_methods`. Default: image_programs, and fastdfkd
    after it where a student learns more from that."""
    synthesis: Any = None
    """Configuration of the method. Default: the method's own."""
    seed: Seed = 0
    """Seed of all random numbers; in [0, 2^63)."""
    device: Text = "cpu"
    """Device on which images are synthesized and networks trained, such as cpu or cuda."""
    precision: Precision = Precision.AUTO
    """float32, bfloat16, or auto: bfloat16 where the processor has it and most layers are wide,
    which makes it two to eight times faster."""
    checkpoint_every: Annotated[Float, at_least(0)] = 20.0
    """Seconds between checkpoints; at least 0. It does not change the result."""
    plugin: tuple[Text, ...] | None = None
    """Files or modules that register methods, losses or tasks, and are imported first."""

    def __post_init__(self) -> None:
        method = self.first_method
        if method not in METHODS:
            raise ConfigError(
                f"unknown method {method!r}{did_you_mean(method, METHODS)}; known: "
                f"{', '.join(METHODS)}"
            )
        object.__setattr__(self, "synthesis", method_config(method, self.synthesis))

    @property
    def first_method(self) -> str:
        """The method that `synthesis` configures: the default, which another may follow, or the
        one that was asked for.
        """
        return DEFAULT_METHOD if self.method is None else self.method

    @property
    def needs_student(self) -> bool:
        """Whether the method, as configured, needs a live student."""
        return needs_student(self.first_method, self.synthesis)


@config_class
class DistillJob(JobConfig):
    """Configuration of the distillation of a student on images that a method synthesizes."""

    student: Text
    """module:function that builds the student, or auto:SHARE for a copy of the teacher with a share
    of every width, such as auto:0.5."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """Configuration of the training."""
    images: Text | None = None
    """Images to learn from, in the place of a method's: .npz with x or x_train, uint8
    (N, C, H, W), or a directory of pictures."""
    baselines: Bool = False
    """Train the same student in the same way on clipped noise too, the noise baseline, and on the
    images of `bound`, the real-data bound."""
    bound: Text | None = None
    """Real images for the real-data bound: .npz with x or x_train, or a directory of pictures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kept_share(self.student)  # raises
        if (box := self.teacher.black_box) is not None:  # before a query is spent
            check_pays(box.budget, self.distill.num_validation)
            no_effect(self.distill, "on a black box, whose answers cost: give steps", "minutes")
        if not self.baselines:
            no_effect(self, "without baselines", "bound")
        if self.images is not None:
            no_effect(self, "beside images", "method")
            plain = METHODS[self.first_method].config(batch_size=self.synthesis.batch_size)
            if self.synthesis != plain:
                raise ConfigError("beside images synthesis has no effect, except its batch_size")
        period = self.distill.fresh_period(self.fresh_every)
        asked, fresh = self.distill.batch_size, self.synthesis.batch_size
        if period == 1 and asked not in (DistillConfig().batch_size, fresh):
            raise ConfigError(
                f"distill.batch_size {asked} is of replayed images, and with a fresh batch of "
                f"{fresh} at every step none is: set synthesis.batch_size, or distill.fresh_every"
            )
        if period == 1 and self.distill.prefill:
            raise ConfigError(
                f"distill.prefill {self.distill.prefill} makes images to replay, and with a fresh "
                "batch at every step none is: set distill.fresh_every too"
            )

    @property
    def fresh_every(self) -> int:
        """Default of `distill.fresh_every`, which the source of the images has."""
        return 1 if self.images else int(METHODS[self.first_method].synthesizer.fresh_every)

    @property
    def source(self) -> str:
        """The method, or the name of the file of images."""
        return Path(self.images).name if self.images else self.first_method

    def baseline_jobs(self) -> dict[str, "DistillJob"]:
        """Return the jobs of the baselines by name: they differ in the source of the images."""
        if not self.baselines:
            return {}
        size, distill = self.synthesis.batch_size, self.distill.spelled_out(self.fresh_every)
        same = replace(self, distill=distill, images=None, baselines=False, bound=None)
        drawn = METHODS[DEFAULT_METHOD].config(batch_size=size)
        noise = METHODS["noise"].config(batch_size=size)
        jobs = {"noise_baseline": replace(same, method="noise", synthesis=noise)}
        if self.bound is not None:
            real = replace(same, method=None, synthesis=drawn, images=self.bound)
            jobs["real_data_bound"] = real
        return jobs


@config_class
class SynthesizeJob(JobConfig):
    """Configuration of synthesizing images."""

    num_images: Annotated[Int, at_least(1, most=MOST_IMAGES)] = 1000
    """Number of images to make; at least 1."""


@config_class
class ImagesJob(JobConfig):
    """Configuration of a job on images that are given or synthesized first."""

    images: Text | None = None
    """.npz with x, uint8 (N, C, H, W). Default: synthesize them."""
    num_images: Annotated[Int, at_least(8, most=MOST_IMAGES)] | None = None
    """Number of images to synthesize; at least 8. Default: 4000; the 1024 that int8 looks at if it
    is the only task; none if no task reads images."""

    def __post_init__(self) -> None:
        if self.images is not None:
            self._refuse_synthesis("beside images", "num_images")
        super().__post_init__()
        if self.needs_student:
            raise ConfigError(f"there is no student for {self.first_method} to play against here")

    def _refuse_synthesis(self, where: str, *names: str) -> None:
        """Raise ConfigError if a method or one of the named fields is set."""
        no_effect(self, where, "method", *names)
        if self.synthesis not in (None, METHODS[self.first_method].config()):
            raise ConfigError(f"synthesis has no effect {where}: leave it out")


@config_class
class DistillStage(DistillConfig):
    """Configuration of the distillation stage of a pipeline."""

    student: Text
    """module:function that builds the student, or auto:SHARE for a copy of the teacher with a share
    of every width, such as auto:0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kept_share(self.student)  # raises
        no_effect(self, "on images that are there", "prefill", "fresh_every", "buffer_size")
        no_effect(self, "in a pipeline, where steps say how long it takes", "minutes", "visits")


@config_class
class LearnClassesStage(LearnClassesConfig):
    """Configuration of learning new classes in a pipeline."""

    new: Text
    """.npz with x, uint8 (N, C, H, W), and y, from the number of old classes on; or a directory
    with one directory of pictures per class, named by its number or numbered by sorted names."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Paths of the files that the stage reads."""
        return (self.new,)


STAGE_CONFIGS: dict[str, Any] = {
    "distill": DistillStage,
    "prune": PruneConfig,
    "merge": MergeConfig,
    "factorize": FactorizeConfig,
    "quantize": QuantizeConfig,
    "int8": Int8Config,
    "pack": PackConfig,
    "learn_classes": LearnClassesStage,
}
"""Configuration classes of the tasks of a compression pipeline."""


@config_class
class StageConfig:
    """Task of a compression pipeline with its configuration."""

    task: Text
    config: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", from_plain(_stage(self.task), self.config, self.task))

    @property
    def reads_images(self) -> bool:
        """Whether the stage reads images; otherwise it needs the weights alone."""
        return bool(getattr(self.config, "reads_images", True))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Paths of the files that the stage reads besides the images of the pipeline."""
        return tuple(getattr(self.config, "inputs", ()))


def _stage(task: Any) -> Any:
    """Return the configuration class of a task; raise ConfigError if it is unknown."""
    if not isinstance(task, str) or task not in STAGE_CONFIGS:
        close = did_you_mean(task, STAGE_CONFIGS) if isinstance(task, str) else ""
        raise ConfigError(f"unknown task {quoted(task)}{close}; known: {', '.join(STAGE_CONFIGS)}")
    return STAGE_CONFIGS[task]


@config_class
class CompressJob(ImagesJob):
    """Configuration of a compression pipeline."""

    FOLLOW_QUANTIZE: ClassVar[tuple[str, ...]] = ("int8", "pack")

    stages: tuple[StageConfig, ...]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError("a pipeline needs at least one [[stage]]")
        if not self.reads_images and self.num_images is None:
            where = "on tasks that look at no image, unless num_images says how many to make"
            self._refuse_synthesis(where)
        super().__post_init__()
        self._check_order()
        alone = {stage.task for stage in self.stages} == {"int8"}
        if alone and self.images is None and self.num_images is None:
            object.__setattr__(self, "num_images", MOST_SEEN)

    def _check_order(self) -> None:
        """Raise ConfigError if a stage cannot follow an earlier one."""
        tasks = [stage.task for stage in self.stages]
        if "distill" in tasks[1:]:
            raise ConfigError("distill starts a student afresh: it can only be the first stage")
        if "learn_classes" in tasks[1 + (tasks[0] == "distill") :]:
            raise ConfigError("learn_classes can only be the first stage, or the one after distill")
        after = tasks[tasks.index("quantize") + 1 :] if "quantize" in tasks else []
        if odd := [task for task in after if task not in self.FOLLOW_QUANTIZE]:
            raise ConfigError(f"only int8 and pack can follow quantize; got {odd[0]}")
        merged = self.stages[tasks.index("merge") + 1 :] if "merge" in tasks else ()
        for stage in merged:
            if stage.task == "prune" and stage.config.importance is Importance.BATCH_NORM:
                raise ConfigError("importance batch-norm cannot follow merge, which folds it")

    @property
    def reads_images(self) -> bool:
        """Whether a stage reads images, or `num_images` asks for some to measure agreement."""
        return self.num_images is not None or any(stage.reads_images for stage in self.stages)


def read_job(kind: Any, plain: dict[str, Any]) -> Any:
    """Build a job from the plain values of a TOML file and flags.

    Args:
        kind: class of the job.
        plain: its fields; `preset` names defaults of the method and the student, and `stage` lists
            the stages of a pipeline, each with its `task`.

    Raises:
        ConfigError: a name is unknown, or a value has the wrong type, is out of range or has no
            effect.

    """
    plain, names = dict(plain), [part.name for part in fields(kind)]
    for name in plain:
        if name not in (*names, "preset", "stage"):
            close = did_you_mean(name, names)
            raise ConfigError(
                f"unknown setting {quoted(name)[1:-1]}{close}; known: {', '.join(names)}"
            )
    table = plain.get("teacher", {})
    if not isinstance(table, dict):
        raise ConfigError(f"teacher must be a table of settings; got {quoted(table)}")
    if "weights" not in table:
        raise ConfigError(NO_TEACHER)
    preset, method = plain.pop("preset", None), plain.get("method")
    if method in (None, "none"):
        method = DEFAULT_METHOD
    if isinstance(method, str) and method in METHODS:
        if preset is not None or "synthesis" in plain:
            plain["synthesis"] = method_config(method, plain.get("synthesis"), preset)
        if "distill" in names:
            plain["distill"] = student_config(method, plain.get("distill"), preset)
    if "stage" in plain:
        stages = plain.pop("stage")
        if not isinstance(stages, list) or not all(isinstance(one, dict) for one in stages):
            raise ConfigError("every stage is a table of its own: write [[stage]]")
        plain["stages"] = [
            {"task": one.get("task", ""), "config": {k: v for k, v in one.items() if k != "task"}}
            for one in stages
        ]
    needed = [part.name for part in fields(kind) if part.default is MISSING]
    if "student" in needed and "student" not in plain:
        raise ConfigError("no student: give --student module:function, or auto:0.5")
    return from_plain(kind, plain)
