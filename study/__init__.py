"""Running a study: its configuration, its trials, and everything that it writes down.

Each command of `cf-study` is one call here:

| Command | Call |
|---|---|
| `ingest` | `ingest(source, output)`, with `mapper=processes(4)` or one of `ray_tasks(address)` |
| `run` | `run_studies(load_configs("quickstart"), Reporter())`, and `plan_study(config)` |
| `status` | `list_jobs(open("results/quickstart"))`, and `list_failures(store, trial)` |
| `query` | `open("results/quickstart").sql("SELECT * FROM metrics")` |
| `compact` | `open("results/quickstart").compact()` |
| `frontier` | `draw_figures(open("results/quickstart"))`, and `list_findings(...)` |
| `select` | `select_bundle(store)`, or with a rule `Selection(maximise=..., where=[...])` |
| `publish` | `publish_studies([open("results/quickstart")], Path("published"))` |
| `page` | `write_page(open("results/quickstart"))` |
| `listening` | `count_answers(paths)` |
| `fuse` | `fuse_files(left, right, load_bundle())`, `write_midi(...)`, `write_wav(...)` |
| `export` | `export_bundle(load_bundle(), Path("onnx"))` |
| `serve` | `serve_bundle(None, "127.0.0.1", 8000, workers=1)` |

Each raises `UserError` for bad input. They are imported when first used: `import study` is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cf_core.bundle import load_bundle
    from cf_core.errors import UserError
    from cf_core.export import export_bundle
    from cf_core.files import place
    from cf_core.fuse import fuse_files
    from cf_core.ingest import ingest
    from cf_core.isolation import processes
    from cf_core.render import write_midi, write_wav
    from study.config import Selection, load_config, load_configs
    from study.findings import draw as draw_figures
    from study.findings import list_findings
    from study.ledger import list_failures
    from study.page import write_page
    from study.page.listening import count_answers
    from study.parts import QuarantineWarning
    from study.progress import Reporter
    from study.publish import publish as publish_studies
    from study.reading import ray_tasks
    from study.run import plan as plan_study
    from study.run import run as run_study
    from study.run import run_all as run_studies
    from study.select import list_jobs, read_rule
    from study.select import select as select_bundle
    from study.serve import serve as serve_bundle
    from study.store import open  # noqa: A004

__all__ = [
    "QuarantineWarning",
    "Reporter",
    "Selection",
    "UserError",
    "count_answers",
    "draw_figures",
    "export_bundle",
    "fuse_files",
    "ingest",
    "list_failures",
    "list_findings",
    "list_jobs",
    "load_bundle",
    "load_config",
    "load_configs",
    "open",
    "place",
    "plan_study",
    "processes",
    "publish_studies",
    "ray_tasks",
    "read_rule",
    "run_studies",
    "run_study",
    "select_bundle",
    "serve_bundle",
    "write_midi",
    "write_page",
    "write_wav",
]

_HOMES = {
    "QuarantineWarning": "study.parts:QuarantineWarning",
    "Reporter": "study.progress:Reporter",
    "Selection": "study.config:Selection",
    "UserError": "cf_core.errors:UserError",
    "count_answers": "study.page.listening:count_answers",
    "draw_figures": "study.findings:draw",
    "export_bundle": "cf_core.export:export_bundle",
    "fuse_files": "cf_core.fuse:fuse_files",
    "ingest": "cf_core.ingest:ingest",
    "list_failures": "study.ledger:list_failures",
    "list_findings": "study.findings:list_findings",
    "list_jobs": "study.select:list_jobs",
    "load_bundle": "cf_core.bundle:load_bundle",
    "load_config": "study.config:load_config",
    "load_configs": "study.config:load_configs",
    "open": "study.store:open",
    "place": "cf_core.files:place",
    "plan_study": "study.run:plan",
    "processes": "cf_core.isolation:processes",
    "publish_studies": "study.publish:publish",
    "ray_tasks": "study.reading:ray_tasks",
    "read_rule": "study.select:read_rule",
    "run_studies": "study.run:run_all",
    "run_study": "study.run:run",
    "select_bundle": "study.select:select",
    "serve_bundle": "study.serve:serve",
    "write_midi": "cf_core.render:write_midi",
    "write_page": "study.page:write_page",
    "write_wav": "cf_core.render:write_wav",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute)
