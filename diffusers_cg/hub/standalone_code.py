"""One file of source that holds what a class of this package needs, for those who have not installed the package.

diffusers runs code from a repository (`trust_remote_code=True`) a file at a time, and knows no packages there. So the
definitions that a class depends on are gathered from our modules, word for word, into one file that people can read.
"""

import ast
import importlib
import inspect
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from diffusers import ModelMixin
from diffusers.pipelines.pipeline_loading_utils import CUSTOM_PIPELINE_FILE_NAME

from diffusers_cg.data.files import read_json
from diffusers_cg.errors import InputError
from diffusers_cg.pipelines import ClassifierGuidedPipeline


PACKAGE = "diffusers_cg"
CODE_MODULE = "diffusers_cg_code"
HOST = "diffusers"
INDEX_FILE = "model_index.json"

CODE_HEADER = '''"""What a pipeline of diffusers-cg {version} needs to be loaded and called, gathered from its modules.

Written by `diffusers-cg push --with_code`. Apache-2.0, as the package.
"""
'''

PIPELINE_FILE = '''"""{pipeline} for those who have not installed diffusers-cg.

DiffusionPipeline.from_pretrained(REPOSITORY, custom_pipeline=REPOSITORY, trust_remote_code=True) runs this file.
"""

import sys

import {host}

from .{module} import {names}


if "{package}" in sys.modules:  # the package itself is in use: it goes before its copy
    {pipeline} = sys.modules["{package}"].{pipeline}
else:  # where diffusers looks for the classes that model_index.json names, and as what it records them there
    for registered in ({registered}):
        setattr({host}, registered.__name__, registered)
        registered.__module__ = "{host}"
'''


@dataclass
class Definitions:
    """The source of a module by the names that it defines, and where its other names come from.

    Args:
        statements (`dict[str, str]`): Source of the definition of a name, with the comments above it.
        needed (`dict[str, set[str]]`): Names that must be there when that source runs.
        used (`dict[str, set[str]]`): All names that occur in it, in the bodies of functions, too.
        assigned (`set[str]`): Those that are assigned, and so run what they name.
        ours (`dict[str, tuple[str, str]]`): Module of this package, and name in it, of an imported name.
        others (`dict[str, tuple[str, str]]`): The same of a name from elsewhere, with its `as`; of a module that is
            imported whole, nothing and the module.
    """

    statements: dict[str, str] = field(default_factory=dict)
    needed: dict[str, set[str]] = field(default_factory=dict)
    used: dict[str, set[str]] = field(default_factory=dict)
    assigned: set[str] = field(default_factory=set)
    ours: dict[str, tuple[str, str]] = field(default_factory=dict)
    others: dict[str, tuple[str, str]] = field(default_factory=dict)


def standalone_files(model: ClassifierGuidedPipeline | ModelMixin, folder: Path) -> dict[str, str]:
    """Files by name that make a saved pipeline load without this package: the code that diffusers runs, and the index.

    diffusers refuses a repository whose components are of a library that it does not know, before any code in the
    repository runs. So they are recorded as diffusers' own, where both that code and this package put them.

    Args:
        model ([`ClassifierGuidedPipeline`]): The pipeline.
        folder (`Path`): Where it is saved.

    Raises:
        InputError: if it is no pipeline.
    """
    if not isinstance(model, ClassifierGuidedPipeline):
        raise InputError("Code is published with a pipeline: assemble one, or push this classifier without code.")
    index = read_json(folder / INDEX_FILE)
    for name, value in index.items():
        if isinstance(value, list) and value[0] == PACKAGE:
            index[name] = [HOST, value[1]]
    pipeline = type(model)
    components = [type(part) for part in model.components.values() if type(part).__module__.split(".")[0] == PACKAGE]
    names = sorted(cls.__name__ for cls in (pipeline, *components))
    pipeline_file = PIPELINE_FILE.format(
        pipeline=pipeline.__name__,
        module=CODE_MODULE,
        names=", ".join(names),
        package=PACKAGE,
        registered=", ".join(name for name in names if name != pipeline.__name__),
        host=HOST,
    )
    return {
        CUSTOM_PIPELINE_FILE_NAME: pipeline_file,
        f"{CODE_MODULE}.py": gather_code([pipeline, *components]),
        INDEX_FILE: json.dumps(index, indent=2) + "\n",
    }


def gather_code(classes: list[type]) -> str:
    """Source of the classes and of everything of this package that they depend on, in an order that runs.

    Raises:
        RuntimeError: if modules define or import different things of one name.
    """
    modules: dict[str, Definitions] = {}
    imports, code, bound, run, later = set(), {}, {}, set(), []

    def bind(name: str, meaning: str | tuple[str, str], module: str) -> bool:
        """Notes what a name stands for in the file; returns whether it is new."""
        is_new = name not in bound
        stated, first = bound.setdefault(name, (meaning, module))
        if stated != meaning:
            raise RuntimeError(f"{name} is not the same in {first} and in {module}: they cannot share a file.")
        return is_new

    def add(module: str, name: str, is_run: bool = False) -> None:
        """Adds a definition; if it is run while the file is read, the names in its functions must be there by then, too."""
        if module not in modules:
            modules[module] = read_definitions(importlib.import_module(module))
        definitions = modules[module]
        if name in definitions.ours:
            source, own_name = definitions.ours[name]
            if own_name != name:
                raise RuntimeError(f"{module} imports {own_name} as {name}: in one file it has one name.")
            add(source, name, is_run)
        elif name in definitions.others:
            bind(name, definitions.others[name], module)
            imports.add(definitions.others[name])
        elif name in definitions.statements and bind(name, definitions.statements[name], module):
            for needed in sorted(definitions.needed[name]):
                add(module, needed, is_run=name in definitions.assigned)
            code[name] = definitions.statements[name]
            later.extend((module, used) for used in sorted(definitions.used[name]))
        if is_run and name in definitions.statements and (module, name) not in run:
            run.add((module, name))
            for used in sorted(definitions.used[name]):
                add(module, used, is_run=True)

    for cls in classes:
        add(cls.__module__, cls.__name__)
    while later:
        add(*later.pop(0))
    import_lines = [
        f"from {module} import {', '.join(names)}" if module else "\n".join(f"import {name}" for name in names)
        for module, names in _grouped(imports).items()
    ]
    header = CODE_HEADER.format(version=importlib.import_module(PACKAGE).__version__)
    return "\n\n\n".join([header + "\n" + "\n".join(import_lines), *dict.fromkeys(code.values())]) + "\n"


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
        used = set().union(*map(_name_read, ast.walk(statement)))
        needed = _names_at_definition(statement)
        for name in _defined_names(statement):
            definitions.statements[name] = "\n".join(lines[end : statement.end_lineno]).strip()
            definitions.needed[name], definitions.used[name] = needed, used
            if isinstance(statement, ast.Assign | ast.AnnAssign):
                definitions.assigned.add(name)
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


def _names_at_definition(node: ast.AST) -> set[str]:
    """Names that a statement asks for when it runs: all but those in the bodies of its functions."""
    parts = ast.iter_child_nodes(node)
    if isinstance(node, ast.FunctionDef):
        parts = [*node.decorator_list, node.args, *([node.returns] if node.returns else [])]
    return _name_read(node).union(*map(_names_at_definition, parts))


def _name_read(node: ast.AST) -> set[str]:
    return {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) else set()


def _grouped(imports: set[tuple[str, str]]) -> dict[str, list[str]]:
    """The imported names of every module, sorted; whole modules come first."""
    return {
        module: [name for _, name in group]
        for module, group in itertools.groupby(sorted(imports), key=lambda pair: pair[0])
    }
