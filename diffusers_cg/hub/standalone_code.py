"""One file of source that holds what a class of this package needs, for those who have not installed the package.

diffusers runs code from a repository (`trust_remote_code=True`) a file at a time, and knows no packages there. So the
definitions that a class depends on are gathered from our modules, word for word, into one file that people can read.
"""

import ast
import importlib
import inspect
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from diffusers.pipelines.pipeline_loading_utils import CUSTOM_PIPELINE_FILE_NAME

from diffusers_cg import __version__
from diffusers_cg.errors import InputError
from diffusers_cg.pipelines.pipeline_classifier_guided import ClassifierGuidedPipeline


PACKAGE = "diffusers_cg"
CODE_MODULE = "diffusers_cg_code"
HOST = "diffusers"

CODE_HEADER = f'''"""What a pipeline of diffusers-cg {__version__} needs to be loaded and called, gathered from its modules.

Written by `diffusers-cg push --with_code`. Apache-2.0, as the package.
"""
'''

PIPELINE_FILE = '''"""{pipeline} for those who have not installed diffusers-cg.

DiffusionPipeline.from_pretrained(REPOSITORY, custom_pipeline=REPOSITORY, trust_remote_code=True) runs this file.
"""

import sys

import diffusers

from .{module} import {names}


if "{package}" in sys.modules:  # the package itself is in use: it goes before its copy
    {pipeline} = sys.modules["{package}"].{pipeline}
else:  # where diffusers looks for the classes that model_index.json names
    {registrations}
'''


@dataclass
class Definitions:
    """The source of a module by the names that it defines, and where its other names come from.

    Args:
        statements (`dict[str, str]`): Source of the definition of a name, with the comments above it.
        used (`dict[str, set[str]]`): Names that occur in that source.
        ours (`dict[str, tuple[str, str]]`): Module of this package, and name in it, of an imported name.
        others (`dict[str, tuple[str, str]]`): The same of a name from elsewhere, with its `as`; of a module that is
            imported whole, nothing and the module.
    """

    statements: dict[str, str] = field(default_factory=dict)
    used: dict[str, set[str]] = field(default_factory=dict)
    ours: dict[str, tuple[str, str]] = field(default_factory=dict)
    others: dict[str, tuple[str, str]] = field(default_factory=dict)


def standalone_files(pipeline_class: type[ClassifierGuidedPipeline], components: list[type]) -> dict[str, str]:
    """Source files by name: `pipeline.py`, which diffusers runs, and the code that it imports.

    Args:
        pipeline_class (`type`): One of our pipelines.
        components (list of `type`): Those classes of its components that are ours.
    """
    names = sorted(cls.__name__ for cls in (pipeline_class, *components))
    return {
        CUSTOM_PIPELINE_FILE_NAME: PIPELINE_FILE.format(
            pipeline=pipeline_class.__name__,
            module=CODE_MODULE,
            names=", ".join(names),
            package=PACKAGE,
            registrations="\n    ".join(
                f"{HOST}.{name} = {name}" for name in names if name != pipeline_class.__name__
            ),
        ),
        f"{CODE_MODULE}.py": gather_code([pipeline_class, *components]),
    }


def gather_code(classes: list[type]) -> str:
    """Source of the classes and of everything of this package that they depend on, in an order that runs.

    Raises:
        ValueError: if two modules define different things of one name.
    """
    modules: dict[str, Definitions] = {}
    imports, code, origins = set(), {}, {}

    def add(module: str, name: str) -> None:
        if module not in modules:
            modules[module] = read_definitions(importlib.import_module(module))
        definitions = modules[module]
        if name in definitions.ours:
            add(*definitions.ours[name])
        elif name in definitions.others:
            imports.add(definitions.others[name])
        elif name in definitions.statements and origins.get(name) != module:
            if name in origins:
                raise InputError(f"{origins[name]} and {module} both define {name}: code of both cannot share a file.")
            origins[name] = module
            for used in sorted(definitions.used[name] - {name}):
                add(module, used)
            code[name] = definitions.statements[name]

    for cls in classes:
        add(cls.__module__, cls.__name__)
    import_lines = [
        f"from {module} import {', '.join(names)}" if module else "\n".join(f"import {name}" for name in names)
        for module, names in _grouped(imports).items()
    ]
    return "\n\n\n".join([CODE_HEADER + "\n" + "\n".join(import_lines), *code.values()]) + "\n"


def read_definitions(module: ModuleType) -> Definitions:
    """What a module defines and imports at its top level."""
    source = Path(inspect.getsourcefile(module)).read_text()
    lines = source.splitlines()
    definitions, end = Definitions(), 0
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ImportFrom | ast.Import):
            module_name = getattr(statement, "module", "")
            for alias in statement.names:
                name = alias.asname or alias.name.split(".")[0]
                if module_name.split(".")[0] == PACKAGE:
                    definitions.ours[name] = (module_name, alias.name)
                else:
                    definitions.others[name] = (module_name, ast.unparse(alias))
        dropped = set()
        if isinstance(statement, ast.ClassDef):
            late = [member for member in statement.body if _imports_the_package(member)]
            dropped = {line for method in late for line in range(_first_line(method), method.end_lineno + 1)}
            statement.body = [member for member in statement.body if member not in late]
        numbers = [number for number in range(end + 1, statement.end_lineno + 1) if number not in dropped]
        used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
        for name in _defined_names(statement):
            definitions.statements[name] = "\n".join(lines[number - 1] for number in numbers).strip()
            definitions.used[name] = used
        end = statement.end_lineno
    return definitions


def _defined_names(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.AnnAssign):
        return [statement.target.id]
    if isinstance(statement, ast.Assign):
        return [node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    return []


def _imports_the_package(member: ast.stmt) -> bool:
    """Whether a method imports this package when it is called: without it, it has no use."""
    imported = [node.module or "" for node in ast.walk(member) if isinstance(node, ast.ImportFrom)]
    return any(module.split(".")[0] == PACKAGE for module in imported)


def _first_line(function: ast.FunctionDef) -> int:
    return min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])


def _grouped(imports: set[tuple[str, str]]) -> dict[str, list[str]]:
    """The imported names of every module, sorted; whole modules come first."""
    return {
        module: [name for _, name in group]
        for module, group in itertools.groupby(sorted(imports), key=lambda pair: pair[0])
    }
