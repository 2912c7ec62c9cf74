"""Which options of a stage's configurations its code reads: (class, option), by looking at the code alone."""

import ast
import dataclasses
import importlib
import re
import typing
from collections import defaultdict
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def config_classes(stage):
    """Return the configurations of a stage by name."""
    module = importlib.import_module(f"{stage}.config")
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return {name: value for name, value in own.items() if dataclasses.is_dataclass(value)}


def home(owner, option):
    """Return the class that an option of a class comes from: its own, or one that it inherits from."""
    return next(each.__name__ for each in owner.__mro__ if option in vars(each).get("__annotations__", {}))


def options(classes):
    """Return all options of some configurations."""
    return {(home(owner, field.name), field.name) for owner in classes.values() for field in dataclasses.fields(owner)}


def options_read(stage):
    """Return the options that a stage's code reads of a value that holds their configuration."""
    classes = config_classes(stage)
    trees = {path: ast.parse(path.read_text()) for path in (REPOSITORY / stage).rglob("*.py")}
    own = trees.pop(REPOSITORY / stage / "config.py")
    known = Known(classes)
    # Twice: a value may pass through a file that comes later.
    for tree in [*trees.values()] * 2:
        reader = Reader(known)
        reader.visit(tree)
        # Names may be used above the line that says what they hold.
        reader.visit(tree)
    for owner in [node for node in own.body if isinstance(node, ast.ClassDef)]:
        for method in [node for node in owner.body if isinstance(node, ast.FunctionDef)]:
            # What a configuration works out of its options counts where that is read; what refuses some does not.
            if (owner.name, method.name) in known.read:
                Reader(known, {"self": {owner.name}}).visit(method)
    for function in [node for node in own.body if isinstance(node, ast.FunctionDef)]:
        Reader(known).visit(function)
    return {(home(classes[owner], name), name) for owner, name in known.read if is_option(classes[owner], name)}


def is_option(owner, name):
    return name in {field.name for field in dataclasses.fields(owner)}


class Known:
    """What holds for all files of a stage."""

    def __init__(self, classes):
        self.classes, self.read = classes, set()
        self.attributes = defaultdict(set)
        """Classes of configurations that an attribute of this name may hold."""
        self.returned = defaultdict(set)
        """Likewise what a function of this name may return."""
        for owner in classes.values():
            for name, hint in typing.get_type_hints(owner).items():
                self.attributes[name] |= self.named(str(hint))

    def named(self, text):
        """Return the configurations that a text names."""
        return {name for name in self.classes if re.search(rf"\b{name}\b", text)}


class Reader(ast.NodeVisitor):
    """Add what a file reads; a name holds a configuration by its annotation, or by what is assigned to it."""

    def __init__(self, known, names=None):
        self.known, self.names = known, defaultdict(set, names or {})

    def held(self, node):
        """Return the classes of configurations that an expression may be."""
        if isinstance(node, ast.Name):
            return self.names[node.id]
        if isinstance(node, ast.Attribute):
            return self.known.attributes[node.attr]
        if isinstance(node, ast.Call):
            # A constructor, or a parser that is given the class.
            words = {each.id for each in [node.func, *node.args] if isinstance(each, ast.Name)}
            function = getattr(node.func, "id", getattr(node.func, "attr", ""))
            same = self.held_any(node.args[:1]) if function == "replace" else set()
            return (words & self.known.classes.keys()) | self.known.returned[function] | same
        if isinstance(node, ast.List | ast.Tuple | ast.Starred | ast.BoolOp | ast.IfExp):
            return self.held_any(ast.iter_child_nodes(node))
        return set()

    def held_any(self, nodes):
        """Return what any of some expressions may be."""
        return set().union(*map(self.held, nodes))

    def hold(self, target, value):
        """Note that a target may be what a value is."""
        both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        if both and len(target.elts) == len(value.elts):
            for each, its in zip(target.elts, value.elts, strict=True):
                self.hold(each, its)
        elif isinstance(target, ast.Name):
            self.names[target.id] |= self.held(value)
        elif isinstance(target, ast.Attribute):
            self.known.attributes[target.attr] |= self.held(value)

    def visit_Assign(self, node):
        """Note what names and attributes are set to."""
        for target in node.targets:
            self.hold(target, node.value)
        self.generic_visit(node)

    def visit_For(self, node):
        """Note what a name runs over."""
        self.hold(node.target, node.iter)
        self.generic_visit(node)

    visit_comprehension = visit_For

    def visit_AnnAssign(self, node):
        """Note what a field or a variable is said to be."""
        if isinstance(node.target, ast.Name):
            found = self.known.named(ast.unparse(node.annotation))
            # Of a dataclass, or a variable.
            self.names[node.target.id] |= found
            self.known.attributes[node.target.id] |= found
        self.generic_visit(node)

    def visit_FunctionDef(self, node):
        """Note what a function is said to return."""
        if node.returns:
            self.known.returned[node.name] |= self.known.named(ast.unparse(node.returns))
        self.generic_visit(node)

    def visit_arg(self, node):
        """Note what a parameter is said to be."""
        if node.annotation:
            self.names[node.arg] |= self.known.named(ast.unparse(node.annotation))

    def visit_Attribute(self, node):
        """Note what is read of a configuration."""
        if isinstance(node.ctx, ast.Load):
            self.known.read |= {(owner, node.attr) for owner in self.held(node.value)}
        self.generic_visit(node)
