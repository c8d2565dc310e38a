# Copyright (c) 2026, the kvm.cbt authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which keys a module returns, read from its source.

Dictionaries are followed through variables, functions and comprehensions, and what ``asdict``, ``_asdict`` and ``vars``
make of an object through the annotations of parameters and fields.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Collection, Iterator
from pathlib import Path

Keys = dict[str, "Keys | Opaque"]
Fields = dict[str, dict[str, "str | None"]]


class Opaque:
    """A value whose keys cannot be told from the source."""


OPAQUE = Opaque()
_EXITS = ("exit_json", "fail_json")


class _Source:
    """The functions of a file, those of the module that it calls ``_results``, and the classes of the engine."""

    def __init__(self, path: Path, helpers: Path) -> None:
        self._own = self._functions(path)
        self._helpers = self._functions(helpers)
        self._classes, self._returned = _engine(helpers.parent / "_cbt")

    @staticmethod
    def _functions(path: Path) -> dict[str, ast.FunctionDef]:
        return {node.name: node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}

    def own(self) -> Iterator[ast.FunctionDef]:
        """The functions of the file itself."""
        yield from self._own.values()

    def called(self, function: ast.expr) -> ast.FunctionDef | None:
        """The function that a call names, None if it is of neither file."""
        if isinstance(function, ast.Name):
            return self._own.get(function.id) or self._helpers.get(function.id)
        if (
            isinstance(function, ast.Attribute)
            and isinstance(function.value, ast.Name)
            and function.value.id in ("_results", "self")
        ):
            return (self._helpers if function.value.id == "_results" else self._own).get(function.attr)
        return None

    def value(self, node: ast.expr, within: ast.FunctionDef) -> Keys | Opaque:
        """The keys of a dictionary, or of the elements of a list of them."""
        if isinstance(node, ast.Dict):
            return self._dictionary(node, within)
        if isinstance(node, ast.DictComp):
            return self._comprehension(node, within)
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            return self.value(node.elt, within)
        if isinstance(node, ast.IfExp):
            return _merged(self.value(node.body, within), self.value(node.orelse, within))
        if isinstance(node, ast.Name):
            return self._variable(node.id, within)
        if isinstance(node, ast.Call):
            function = self.called(node.func)
            if function is None:
                return self._fields(_object_shown(node), within)
            values = [
                self.value(each.value, function)
                for each in ast.walk(function)
                if isinstance(each, ast.Return) and each.value is not None
            ]
            return _merged(*values) if values else OPAQUE
        return OPAQUE

    def _dictionary(self, node: ast.Dict, within: ast.FunctionDef) -> Keys | Opaque:
        found: Keys = {}
        for key, value in zip(node.keys, node.values):
            inner = self.value(value, within)
            if key is None:
                if isinstance(inner, Opaque):
                    return OPAQUE
                found.update(inner)
            elif isinstance(key, ast.Constant):
                found[str(key.value)] = inner
            else:
                return OPAQUE
        return found

    def _comprehension(self, node: ast.DictComp, within: ast.FunctionDef) -> Keys | Opaque:
        source = node.generators[0].iter
        if isinstance(source, ast.Name):
            assigned = [
                each.value
                for each in ast.walk(within)
                if isinstance(each, ast.Assign) and _is_name(each.targets[0], source.id)
            ]
            source = assigned[0] if len(assigned) == 1 else source
        if isinstance(source, (ast.Tuple, ast.List)) and all(isinstance(each, ast.Constant) for each in source.elts):
            return {str(ast.literal_eval(each)): OPAQUE for each in source.elts}
        return OPAQUE

    def _variable(self, name: str, within: ast.FunctionDef) -> Keys | Opaque:
        """What a variable is given anywhere in a function: whole, by key, by ``update`` or, if it is a list, by ``append``."""
        values: list[Keys | Opaque] = []
        for node in ast.walk(within):
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if _is_name(target, name) and not (isinstance(node.value, ast.List) and not node.value.elts):
                    values.append(self.value(node.value, within))
                elif isinstance(target, ast.Subscript) and _is_name(target.value, name):
                    key = target.slice
                    values.append(
                        {str(key.value): self.value(node.value, within)} if isinstance(key, ast.Constant) else OPAQUE
                    )
            elif (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_name(node.func.value, name)
            ):
                if node.func.attr == "update":
                    values += [self.value(each, within) for each in node.args]
                    values.append(self.arguments(node, within))
                elif node.func.attr == "append":
                    values.append(self.value(node.args[0], within))
        return _merged(*values) if values else OPAQUE

    def _fields(self, shown: ast.expr | None, within: ast.FunctionDef) -> Keys | Opaque:
        """The fields of an object as keys."""
        kind = self._kind(shown, within) if shown is not None else None
        fields = self._classes.get(kind or "")
        return OPAQUE if fields is None else {name: OPAQUE for name in fields}

    def _kind(self, node: ast.expr, within: ast.FunctionDef) -> str | None:
        """The class of an object, or of the elements of a collection, by annotations."""
        if isinstance(node, ast.Attribute):
            owner = self._kind(node.value, within)
            return self._classes.get(owner or "", {}).get(node.attr)
        if not isinstance(node, ast.Name):
            return None
        for argument in within.args.args:
            if argument.arg == node.id and argument.annotation is not None:
                return _class_in(argument.annotation, self._classes)
        for each in ast.walk(within):
            if isinstance(each, (ast.comprehension, ast.For)) and _is_name(each.target, node.id):
                return self._kind(each.iter, within)
            if isinstance(each, ast.Assign) and _is_name(each.targets[0], node.id) and isinstance(each.value, ast.Call):
                return self._returned.get(getattr(each.value.func, "id", ""))
        return None

    def arguments(self, call: ast.Call, within: ast.FunctionDef) -> Keys | Opaque:
        """The keys that a call gives by name."""
        found: list[Keys | Opaque] = []
        for each in call.keywords:
            inner = self.value(each.value, within)
            found.append(inner if each.arg is None else {each.arg: inner})
        return _merged(*found)


@functools.cache
def _engine(folder: Path) -> tuple[Fields, dict[str, str | None]]:
    """Of the engine: the annotated fields of each class, each with its class, and the class that each function returns.

    A name that is given twice is left out.
    """
    found: dict[str, list[ast.ClassDef | ast.FunctionDef]] = {}
    for path in folder.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                found.setdefault(node.name, []).append(node)
    unique = [nodes[0] for nodes in found.values() if len(nodes) == 1]
    classes = {node.name: node for node in unique if isinstance(node, ast.ClassDef)}
    functions = {node.name: node.returns for node in unique if isinstance(node, ast.FunctionDef)}
    fields = {name: [each for each in node.body if isinstance(each, ast.AnnAssign)] for name, node in classes.items()}
    return (
        {
            name: {ast.unparse(each.target): _class_in(each.annotation, classes) for each in group}
            for name, group in fields.items()
        },
        {name: _class_in(returns, classes) for name, returns in functions.items() if returns is not None},
    )


def _class_in(annotation: ast.expr, classes: Collection[str]) -> str | None:
    """The one class that an annotation names."""
    names = {getattr(node, "id", None) or getattr(node, "attr", "") for node in ast.walk(annotation)}
    known = names & set(classes)
    return str(known.pop()) if len(known) == 1 else None


def _object_shown(call: ast.Call) -> ast.expr | None:
    """The object whose fields a call gives as a dictionary."""
    function = call.func
    if isinstance(function, ast.Attribute) and function.attr == "_asdict":
        return function.value
    named = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    return call.args[0] if named in ("asdict", "vars") and len(call.args) == 1 else None


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _merged(*values: Keys | Opaque) -> Keys | Opaque:
    merged: Keys = {}
    for value in values:
        if isinstance(value, Opaque):
            return OPAQUE
        merged.update(value)
    return merged


def keys_returned(path: Path, helpers: Path) -> Keys:
    """The keys that a module, or an action plugin by its ``_result``, returns. Fails if they cannot be told."""
    source = _Source(path, helpers)
    values = []
    for function in source.own():
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _EXITS:
                values.append(source.arguments(node, function))
            elif function.name == "_result" and isinstance(node, ast.Return) and node.value is not None:
                values.append(source.value(node.value, function))
    merged = _merged(*values)
    assert values and not isinstance(merged, Opaque), f"the results of {path.name} cannot be followed"
    return merged
