"""A key that nothing reads cannot exist: every field of the schema has a reader outside `ups_jax/config`.

A reader is an attribute access `.field` on an expression whose type is the field's section. Types are those that the
source says: annotations of parameters, of classes and of what functions return, and what assignments, loops and
subscripts make of them; a container of sections counts as the section. So `.enabled` of a section is not taken for that
of another. Besides, as generic readers:

- `getattr(section, name)` with a name that is computed reads the fields whose names, or the part of them that stands in
  the f-string, are string constants of the same module, and of `cfg.stages` all stages;
- what a stage takes over from `training`, `optimizer` and `scheduler` is read where the stage's own field is.

What it cannot see: whether the value that was read is used, or the code that reads it ever run; one place of a section
that stands in several (`optimizer`, `stages.operator.optimizer`) apart from another; a reader whose section's type no
annotation says, which it takes for none.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import typing
from collections.abc import Iterator

import pytest
from commands import ROOT

from ups_jax.config import Config, StageDefaults, schema

# Names of classes: all that an expression can be an instance of.
Kinds = frozenset[str]
NONE: Kinds = frozenset()
SCHEMA = ROOT / "ups_jax" / "config" / "schema"
# (section's class, field)
Access = tuple[str, str]
SOURCES = [
    path
    for folder in ("ups_jax", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ROOT / "ups_jax" / "config" not in path.parents
]


def sections(kind: type, where: str = "") -> Iterator[tuple[str, Access]]:
    """The path of every field, sections included, with its class and name."""
    for name, hint in typing.get_type_hints(kind).items():
        path = f"{where}.{name}".lstrip(".")
        yield path, (kind.__name__, name)
        for nested in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(nested):
                yield from sections(nested, path)


class Package:
    """The annotations of some modules: the classes of attributes and of return values."""

    def __init__(self, trees: list[ast.Module]) -> None:
        self.attributes: dict[str, dict[str, Kinds]] = {}
        self.returns: dict[str, Kinds] = {}
        self.callables: dict[tuple[str, str], list[Kinds]] = {}
        schema_trees = [ast.parse(path.read_text()) for path in SCHEMA.glob("*.py")]
        self.sections = {node.name for tree in schema_trees for node in tree.body if isinstance(node, ast.ClassDef)}
        trees = [*schema_trees, ast.parse((SCHEMA.parent / "loading.py").read_text()), *trees]
        classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        self.known = {node.name for node in classes}
        for node in classes:
            attributes = self.attributes.setdefault(node.name, {})
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    attributes[item.target.id] = self.named(item.annotation)
                    match item.annotation:
                        case ast.Subscript(
                            value=ast.Name(id="Callable"), slice=ast.Tuple(elts=[ast.List(elts=parameters), _])
                        ):
                            self.callables[node.name, item.target.id] = [self.named(one) for one in parameters]
                if isinstance(item, ast.FunctionDef) and any("property" in ast.unparse(d) for d in item.decorator_list):
                    attributes[item.name] = self.named(item.returns)
        for tree in trees:
            for function in ast.walk(tree):
                if isinstance(function, ast.FunctionDef):
                    # Functions of the same name are not told apart.
                    others = self.returns.get(function.name, NONE)
                    self.returns[function.name] = others | self.named(function.returns)

    def named(self, annotation: ast.expr | None) -> Kinds:
        """The class of this package that an annotation names, of each side of an `|`; none where they are several."""
        if annotation is None:
            return NONE
        if isinstance(annotation, ast.BinOp):
            return self.named(annotation.left) | self.named(annotation.right)
        names = frozenset(re.findall(r"\w+", ast.unparse(annotation))) & self.known
        return names if len(names) == 1 else NONE

    def attribute(self, kinds: Kinds, name: str) -> Kinds:
        return NONE.union(*(self.attributes.get(kind, {}).get(name, NONE) for kind in kinds))


def derived(kinds: Kinds) -> Kinds:
    """The sections that have all fields of one of these, and more: who reads a field of the one reads theirs."""
    classes = {name: item for name, item in vars(schema).items() if isinstance(item, type)}
    bases = tuple(classes[kind] for kind in kinds if kind in classes)
    return frozenset(name for name, item in classes.items() if issubclass(item, bases) and item not in bases)


class Reader(ast.NodeVisitor):
    """Collects the fields of sections that a module reads."""

    def __init__(self, package: Package, tree: ast.Module) -> None:
        self.package = package
        self.strings = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        self.scopes: list[dict[str, Kinds]] = [{}]
        self.found: set[Access] = set()
        self.visit(tree)

    def kinds(self, node: ast.expr) -> Kinds:
        package = self.package
        match node:
            case ast.Name(id=name):
                return next((scope[name] for scope in reversed(self.scopes) if name in scope), NONE)
            case ast.Attribute(value=value, attr=name):
                return package.attribute(self.kinds(value), name)
            case ast.Call(func=ast.Name(id="getattr"), args=[value, *_]):
                fields = (package.attributes.get(kind, {}).values() for kind in self.kinds(value))
                candidates = {kinds for values in fields for kinds in values}
                candidates = {kinds for kinds in candidates if not any(kinds == derived(other) for other in candidates)}
                return candidates.pop() if len(candidates) == 1 else NONE
            case ast.Call(func=ast.Name(id="replace" | "sorted" | "list" | "tuple" | "reversed"), args=[value, *_]):
                return self.kinds(value)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                return frozenset({name}) if name in package.known else package.returns.get(name, NONE)
            case ast.Subscript(value=value) | ast.NamedExpr(value=value) | ast.Starred(value=value):
                return self.kinds(value)
            case ast.IfExp(body=one, orelse=other):
                return self.kinds(one) | self.kinds(other)
            case ast.BoolOp(values=values):
                return NONE.union(*map(self.kinds, values))
        return NONE

    def bind(self, target: ast.expr, kinds: Kinds) -> None:
        if isinstance(target, ast.Name):
            self.scopes[-1][target.id] = kinds

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for one, value in zip(target.elts, node.value.elts, strict=False):
                    self.bind(one, self.kinds(value))
            self.bind(target, self.kinds(node.value))

    def visit_For(self, node: ast.For) -> None:
        self.iterate(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.iterate(node.target, node.iter)
        self.generic_visit(node)

    def iterate(self, target: ast.expr, source: ast.expr) -> None:
        match target, source:
            case ast.Tuple(elts=[_, second]), ast.Call(func=ast.Name(id="enumerate"), args=[inner, *_]):
                self.bind(second, self.kinds(inner))
            case _:
                self.bind(target, self.kinds(source))

    def visit_GeneratorExp(self, node: ast.GeneratorExp | ast.ListComp | ast.SetComp | ast.DictComp) -> None:
        # The names of a comprehension are bound before what is made of them is looked at.
        for generator in node.generators:
            self.visit(generator)
        self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.scopes.append({"self": frozenset({node.name})})
        self.generic_visit(node)
        self.scopes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        parameters = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        self.scopes.append({item.arg: self.package.named(item.annotation) for item in parameters if item.arg != "self"})
        self.generic_visit(node)
        self.scopes.pop()

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self.read(self.kinds(node.value), node.attr)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if isinstance(keyword.value, ast.Lambda) and isinstance(node.func, ast.Name) and keyword.arg is not None:
                parameters = self.package.callables.get((node.func.id, keyword.arg), [])
                self.scopes.append(
                    {one.arg: kinds for one, kinds in zip(keyword.value.args.args, parameters, strict=False)}
                )
                self.visit(keyword.value.body)
                self.scopes.pop()
        match node:
            case ast.Call(func=ast.Name(id="getattr"), args=[section, ast.Constant(value=str(name)), *_]):
                self.read(self.kinds(section), name)
            case ast.Call(func=ast.Name(id="getattr"), args=[section, name, *_]):
                for kind in self.kinds(section):
                    for field in self.package.attributes.get(kind, {}):
                        if kind == "StagesConfig" or _spells(name, field, self.strings):
                            self.read(frozenset({kind}), field)
        self.generic_visit(node)

    def read(self, kinds: Kinds, field: str) -> None:
        self.found |= {(kind, field) for kind in kinds & self.package.sections}


def _spells(name: ast.expr, field: str, strings: set[str]) -> bool:
    """Whether a computed name can be that of a field: a variable one of the strings, an f-string with one put in."""
    if not isinstance(name, ast.JoinedStr):
        return field in strings
    parts = [re.escape(str(part.value)) if isinstance(part, ast.Constant) else r"(\w+)" for part in name.values]
    match = re.fullmatch("".join(parts), field)
    return match is not None and strings.issuperset(match.groups())


def unread(root: type, sources: list[str]) -> set[str]:
    """The paths of the fields that none of the sources reads."""
    trees = [ast.parse(source) for source in sources]
    package = Package(trees)
    reads: set[Access] = set().union(*(Reader(package, tree).found for tree in trees))
    reads |= {(kind, field) for one, field in reads for kind in derived(frozenset({one}))}
    # A stage inherits these from `training` and from the sections of the same name.
    shared = [field.name for field in dataclasses.fields(StageDefaults)]
    reads |= {("TrainingConfig", key) for key in shared if ("StageConfig", key) in reads}
    reads |= {("Config", key) for key in ("optimizer", "scheduler") if ("StageConfig", key) in reads}
    return {path for path, access in sections(root) if access not in reads}


def test_every_key_has_a_reader() -> None:
    assert unread(Config, [path.read_text() for path in SOURCES]) == set()


READ = "def f(config: WandbConfig) -> None: config.enabled"


@pytest.mark.parametrize(
    ("source", "read"),
    [
        (READ, {"logging.wandb.enabled"}),
        ("def f(cfg: Config) -> None: cfg.logging.wandb.enabled",
         {"logging", "logging.wandb", "logging.wandb.enabled"}),
        ("def f(cfg: Config) -> None: cfg.evaluation.enabled", {"evaluation", "evaluation.enabled"}),
        ("def f(config: Other) -> None: config.enabled", set()),
        ("def f(config: WandbConfig) -> None: config.enabled = 1", set()),
        ("class A:\n config: LatentConfig\n def f(self) -> int: return self.config.dim", {"latent.dim"}),
        ("def f(cfg: Config) -> str: return [task.preset for task in cfg.data.tasks]",
         {"data", "data.tasks", "data.tasks.preset"}),
        ("def f(p: PhysicsPriorsConfig, name: str) -> str: getattr(p, f'{name}_channels'), 'boundary'",
         {"training.physics_priors.boundary_channels"}),
    ],
)  # fmt: skip
def test_a_reader_is_told_by_the_type_of_its_section(source: str, read: set[str]) -> None:
    everything = {path for path, _ in sections(Config)}
    assert everything - unread(Config, [source]) == read
