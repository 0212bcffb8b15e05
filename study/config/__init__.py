"""A study as one YAML file, checked: what changes its results, and how it is run, apart."""

from study.config.evaluation import EvaluationPlan
from study.config.loading import list_builtin, load_config, load_configs
from study.config.schema import Execution, Selection, StageResources, StudyConfig
from study.config.search import Search
from study.config.types import Range

__all__ = [
    "EvaluationPlan",
    "Execution",
    "Range",
    "Search",
    "Selection",
    "StageResources",
    "StudyConfig",
    "list_builtin",
    "load_config",
    "load_configs",
]
