"""A griffe extension: lines "name: meaning" of a docstring become a list in the API reference."""

import re
from typing import Any

import griffe

FIELD = re.compile(r"^((?:\w+)(?:, \w+)*): (?=\S)", re.MULTILINE)
BRACKETS = re.compile(r"\](\s*)\[")  # matrices side by side, which Markdown takes for a link


class FieldLists(griffe.Extension):
    """Only names that the object has, as parameters or attributes, are taken for fields.

    Whatever has no docstring is left out of the reference. So functions and constants without one
    are given an empty one; attributes of classes are not, which are in the list and the signature.
    """

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        _list_fields(cls, set(cls.members))

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        _show(cls)

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        _list_fields(func, {each.name for each in func.parameters})
        _show(func)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        if attr.parent is not None and attr.parent.is_module:
            _show(attr)


def _list_fields(obj: griffe.Object, names: set[str]) -> None:
    if obj.docstring is not None:
        obj.docstring.value = list_fields(obj.docstring.value, names)


def _show(obj: griffe.Object) -> None:
    if obj.docstring is None:
        obj.docstring = griffe.Docstring("", parent=obj)


def list_fields(text: str, names: set[str]) -> str:
    """A docstring with its fields as items of a Markdown list."""

    def item(match: re.Match[str]) -> str:
        if not names.issuperset(match.group(1).split(", ")):
            return match.group()
        return f"\n* **{match.group(1)}**: "

    return BRACKETS.sub(r"]\1\\[", FIELD.sub(item, text))
