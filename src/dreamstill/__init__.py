"""Make a trained network small without its data.

    import dreamstill as ds

    teacher = ds.Teacher(net, ds.InputSpec((3, 32, 32), mean=m, std=s))
    images = ds.synthesize(teacher, num_images=2000)
    student = ds.distill(teacher, small_net, images, ds.DistillConfig(steps=500)).model
    ds.export(student, "small.onnx", teacher.input_spec)

Names are imported when they are first used, so that `import dreamstill` is fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamstill.api import Result as Result
    from dreamstill.api import compress as compress
    from dreamstill.api import distill as distill
    from dreamstill.api import evaluate as evaluate
    from dreamstill.api import export as export
    from dreamstill.api import factorize as factorize
    from dreamstill.api import learn_classes as learn_classes
    from dreamstill.api import list_methods as list_methods
    from dreamstill.api import list_presets as list_presets
    from dreamstill.api import load_teacher as load_teacher
    from dreamstill.api import merge as merge
    from dreamstill.api import pack as pack
    from dreamstill.api import profile as profile
    from dreamstill.api import prune as prune
    from dreamstill.api import quantize as quantize
    from dreamstill.api import register_stage as register_stage
    from dreamstill.api import synthesize as synthesize
    from dreamstill.black_box.black_box import BlackBox as BlackBox
    from dreamstill.black_box.config import BlackBoxConfig as BlackBoxConfig
    from dreamstill.compression.config import FactorizeConfig as FactorizeConfig
    from dreamstill.compression.config import MergeConfig as MergeConfig
    from dreamstill.compression.config import PackConfig as PackConfig
    from dreamstill.compression.config import PruneConfig as PruneConfig
    from dreamstill.compression.config import QuantizeConfig as QuantizeConfig
    from dreamstill.continual.config import LearnClassesConfig as LearnClassesConfig
    from dreamstill.data.config import Augmentation as Augmentation
    from dreamstill.distillation.config import DistillConfig as DistillConfig
    from dreamstill.distillation.config import FinetuneConfig as FinetuneConfig
    from dreamstill.errors import BudgetError as BudgetError
    from dreamstill.errors import ConfigError as ConfigError
    from dreamstill.errors import DataError as DataError
    from dreamstill.errors import DreamstillError as DreamstillError
    from dreamstill.errors import ExportError as ExportError
    from dreamstill.errors import NonFiniteError as NonFiniteError
    from dreamstill.errors import RunError as RunError
    from dreamstill.errors import TeacherError as TeacherError
    from dreamstill.exporters.config import Int8Config as Int8Config
    from dreamstill.exporters.int8 import export_int8 as export_int8
    from dreamstill.input_spec import InputSpec as InputSpec
    from dreamstill.pipelines.config import DistillStage as DistillStage
    from dreamstill.pipelines.config import LearnClassesStage as LearnClassesStage
    from dreamstill.process_group import distributed as distributed
    from dreamstill.synthesis.config import AbdConfig as AbdConfig
    from dreamstill.synthesis.config import DaflConfig as DaflConfig
    from dreamstill.synthesis.config import DeepInversionConfig as DeepInversionConfig
    from dreamstill.synthesis.config import DfadConfig as DfadConfig
    from dreamstill.synthesis.config import FastDfkdConfig as FastDfkdConfig
    from dreamstill.synthesis.config import ImageProgramsConfig as ImageProgramsConfig
    from dreamstill.synthesis.config import KnowledgeWithinConfig as KnowledgeWithinConfig
    from dreamstill.synthesis.config import MetadataConfig as MetadataConfig
    from dreamstill.synthesis.config import NayerConfig as NayerConfig
    from dreamstill.synthesis.config import NoiseConfig as NoiseConfig
    from dreamstill.synthesis.config import RandomShapes as RandomShapes
    from dreamstill.synthesis.config import RdskdConfig as RdskdConfig
    from dreamstill.synthesis.config import StructuredNoiseConfig as StructuredNoiseConfig
    from dreamstill.synthesis.config import ZskdConfig as ZskdConfig
    from dreamstill.synthesis.config import ZsktConfig as ZsktConfig
    from dreamstill.synthesis.programs.registry import register_program as register_program
    from dreamstill.synthesis.registry import register_method as register_method
    from dreamstill.teacher import Teacher as Teacher

_API = (
    *("Result", "compress", "distill", "evaluate", "export", "factorize", "learn_classes"),
    *("list_methods", "list_presets", "load_teacher", "merge", "pack", "profile", "prune"),
    *("quantize", "register_method", "register_stage", "synthesize"),
)
_METHODS = (
    *("Abd", "Dafl", "DeepInversion", "Dfad", "FastDfkd", "ImagePrograms", "KnowledgeWithin"),
    *("Metadata", "Nayer", "Noise", "Rdskd", "StructuredNoise", "Zskd", "Zskt"),
)
_COMPRESSION = ("Factorize", "Merge", "Pack", "Prune", "Quantize")
_ERRORS = ("Budget", "Config", "Data", "Dreamstill", "Export", "NonFinite", "Run", "Teacher")
_HOMES = {
    **dict.fromkeys(_API, "api"),
    **{f"{name}Config": "synthesis.config" for name in _METHODS},
    **{f"{name}Config": "compression.config" for name in _COMPRESSION},
    **{f"{name}Error": "errors" for name in _ERRORS},
    "Augmentation": "data.config",
    "BlackBox": "black_box.black_box",
    "BlackBoxConfig": "black_box.config",
    "distributed": "process_group",
    "DistillConfig": "distillation.config",
    "export_int8": "exporters.int8",
    "DistillStage": "pipelines.config",
    "FinetuneConfig": "distillation.config",
    "InputSpec": "input_spec",
    "Int8Config": "exporters.config",
    "LearnClassesConfig": "continual.config",
    "LearnClassesStage": "pipelines.config",
    "RandomShapes": "synthesis.config",
    "register_program": "synthesis.programs.registry",
    "Teacher": "teacher",
}
"""The module in which each public name lives."""

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dreamstill")
    if name not in _HOMES:
        raise AttributeError(f"module 'dreamstill' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"dreamstill.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
