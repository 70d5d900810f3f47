"""Checks a config against `dit.config`, before its objects are created. The config of a command line may name code of
other packages; that of a file only parts of dit in their places, and code that the user has consented to."""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from dit.annotations import (
    PYTHON_UNION,
    SCALARS,
    Within,
    brief,
    check_value,
    conforms,
    hints_of,
    is_mapping,
    parameters_of,
)
from dit.config import COMMANDS
from dit.places import ALTERNATIVES, MODULES, PLACES, SIZES, At, Place
from dit.plain_values import TARGET, targets_in
from dit.trust import has_consent, is_standard
from dit.versions import renamed

PARTIAL, CONVERT = "_partial_", "_convert_"  # Hydra's keys that a part may have
REFUSED = ("_args_", "_recursive_")  # Hydra's keys that only a command line may have
WORDS = (TARGET, PARTIAL, CONVERT, *REFUSED)
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


def check_config(command: str, config: Mapping[str, Any], trusted: bool) -> None:
    """Raises ValueError, with the key, if a resolved config in plain containers does not fit the command's schema.

    trusted: True for a config of the user's command line, which may name parts of other packages. A config from a file
    may name those that the user has consented to (`dit.trust`).
    """
    Check(trusted, command, config).keys(config, COMMANDS[command], "")


def check_key(command: str, key: str, value: Any) -> None:
    """Checks a single key like `check_config`, if it holds a plain value; all other keys pass."""
    annotation: Any = COMMANDS.get(command)
    for name in key.split("."):
        if not is_typeddict(annotation):
            return
        annotation = get_type_hints(annotation, include_extras=True).get(name, Any)
    if not is_typeddict(annotation) and not places_in(annotation):
        check_value(value, annotation, key)


def places_in(annotation: Any) -> list[At]:
    """Returns the marks of places in an annotation or in the choices of a union."""
    if get_origin(annotation) in (*PYTHON_UNION, NotRequired):
        return [mark for choice in get_args(annotation) for mark in places_in(choice)]
    return [mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, At)]


def find(target: str, where: str) -> Any:
    """Returns the class or function of a full name. Raises ValueError if it does not exist."""
    if not NAME.fullmatch(target):
        raise ValueError(f"{where}: {brief(target)} is not a name of a class or function")
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
            for name in parts[cut:]:
                found = getattr(found, name)
            return found
        except ModuleNotFoundError as error:  # the last parts may be attributes
            if error.name is None or not target.startswith(error.name):
                raise ValueError(f"{where}: {target} cannot be imported: {error}") from None
        except AttributeError:
            break
    place = "this version of dit: the run or config is of another" if parts[0] == "dit" else "this environment"
    raise ValueError(f"{where}: {target} does not exist in {place}.{renamed(target)}".removesuffix("."))


def is_defined_as(found: Any, target: str) -> bool:
    """Returns True if an object is defined under this name, not only imported there."""
    inner = getattr(found, "func", found)  # a functools.partial has no name
    if inner is not found:
        return str(inner.__module__) == target.rpartition(".")[0]
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}" == target


class Check:
    """Checks one config recursively."""

    def __init__(self, trusted: bool, command: str, config: Mapping[str, Any]) -> None:
        self.trusted = trusted
        # A training run fills open parameters; in the config of a diffusion checkpoint all are filled.
        self.open = trusted or config.get("task") != "diffusion"
        self.task = config.get("task") if command == "train" else None

    def keys(self, config: Mapping[str, Any], description: Any, where: str) -> None:
        """Checks the keys of the schema, plain ones first because parts are slow to import. Other keys may hold plain
        values."""
        prefix = f"{where}." if where else ""
        if not isinstance(config, dict):
            raise ValueError(f"{where}={brief(config)}: expected a group of keys and values")
        hints = get_type_hints(description, include_extras=True)
        for name in sorted(hints, key=lambda name: bool(places_in(hints[name])) + 2 * is_typeddict(hints[name])):
            if name in config:
                self.value(config[name], hints[name], f"{prefix}{name}")
            elif name in description.__required_keys__:
                raise ValueError(f"{prefix}{name} is missing from the config")
        for name in config.keys() - hints.keys():
            self.plain(config[name], f"{prefix}{name}")
        if not where and self.task in MODULES:
            self.module(config.get("module"))

    def module(self, options: Any) -> None:
        place = MODULES[str(self.task)]
        if not isinstance(options, dict) or (TARGET in options and not self.trusted):
            raise ValueError(f"module={brief(options)}: expected the settings of task={self.task}")
        self.arguments({TARGET: place.home, **options}, find(place.home, "module"), place, "module", ())

    def value(self, value: Any, annotation: Any, where: str) -> None:
        marks = places_in(annotation)
        if value == "???":
            raise ValueError(f"{where} must be given: {where}=...")
        if is_typeddict(annotation):
            self.keys(value, annotation, where)
        elif marks and get_origin(annotation) is not Annotated and not isinstance(value, dict):
            choices = tuple(choice for choice in get_args(annotation) if not places_in(choice))
            check_value(value, Union[choices], where)  # noqa: UP007  (of a tuple)
        elif marks and marks[0].each:
            if not isinstance(value, dict) or TARGET in value:
                raise ValueError(f"{where}={brief(value)}: expected parts of the config by name")
            for name, node in value.items():
                if node is not None:
                    self.part(node, marks[0].place, f"{where}.{name}")
        elif marks:
            self.part(value, marks[0].place, where, listed=marks[0].listed)
        else:
            self.plain(value, where)
            check_value(value, annotation, where)

    def plain(self, value: Any, where: str) -> None:
        """Raises ValueError if a file names code where only values are allowed."""
        if value == "???":
            raise ValueError(f"{where} must be given: {where}=...")
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in inner:
            if key in WORDS and not self.trusted:
                raise ValueError(f"{where} names code ({brief(item)}) where no part of a config stands")
            self.plain(item, f"{where}.{key}")

    def part(self, node: Any, place_name: str, where: str, annotation: Any = Any, listed: Sequence[str] = ()) -> None:
        """Checks a node with a _target_: its place, its arguments and its type."""
        place = PLACES[place_name]
        if place.run and isinstance(node, dict) and TARGET not in node:
            for key, value in node.items():
                self.value(value, place.typed.get(key, Any), f"{where}.{key}")
            return
        if not isinstance(node, dict) or not isinstance(node.get(TARGET), str):
            raise ValueError(f"{where}={brief(node)}: expected a part of the config, a group with a {TARGET}")
        target = node[TARGET]
        if not is_in(target, place.home) and is_in(target, PLACES[ALTERNATIVES.get(place_name, place_name)].home):
            place = PLACES[ALTERNATIVES[place_name]]
        if not is_in(target, place.home):
            if is_in(target, "dit"):
                new = renamed(target)
                remedy = f".{new}" if new else f"; choose one from {place.home}"
                raise ValueError(f"{where}: {brief(target)} may not stand here{remedy}".removesuffix("."))
            found = self.outside(target, where)
            self.arguments(node, found, replace(place, home="", typed={}), where, listed)
            self.conformity(node, found, place, where, annotation)
            return
        found = find(target, where)
        if target != place.home and not is_defined_as(found, target):
            raise ValueError(f"{where}: {target} is only imported there; give the name under which it is defined")
        self.arguments(node, found, place, where, listed)
        self.conformity(node, found, place, where, annotation)

    def outside(self, target: str, where: str) -> Any:
        """Returns a class or function of another package. Raises ValueError if a file names it and the user has not
        consented to its package, before importing it, or if it is defined in a package without consent."""
        if self.trusted:
            return find(target, where)
        if not NAME.fullmatch(target) or is_standard(target):
            raise ValueError(f"{where}: {brief(target)}, code outside dit, may not stand here")
        if not has_consent(target):
            package = target.split(".")[0]
            raise ValueError(
                f"{where}: {brief(target)} is code outside dit, which is not run without your consent: if you trust "
                f"it, say trust={package}"
            )
        found = find(target, where)
        if not has_consent(str(getattr(getattr(found, "func", found), "__module__", ""))):
            raise ValueError(f"{where}: {target} is imported there from a package that you have not consented to")
        return found

    def conformity(self, node: dict[str, Any], found: Any, place: Place, where: str, annotation: Any) -> None:
        partial = node.get(PARTIAL, False)
        if place.partial and not partial:
            raise ValueError(f"{where}: {node[TARGET]} needs {PARTIAL}: true here")
        instance = place.partial or not partial
        result = found
        if instance and not inspect.isclass(found):
            unknown = Any if self.trusted and not is_in(node[TARGET], "dit") else None
            result = hints_of(found).get("return", unknown)
        for expected in ([find(place.gives, where)] if place.gives else []) + [annotation]:
            if not conforms(result, expected, instance):
                hint = f"; leave out {PARTIAL}" if partial and not place.partial else ""
                raise ValueError(f"{where}: {node[TARGET]} does not have the type of this key{hint}")

    def arguments(self, node: dict[str, Any], found: Any, place: Place, where: str, listed: Sequence[str]) -> None:
        """Checks the arguments of a node against the signature and the annotations of its target."""
        parameters, hints = parameters_of(found), hints_of(found)
        if not callable(found):
            raise ValueError(f"{where}: {node[TARGET]} is neither a class nor a function")
        free = not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for key, value in node.items():
            name = f"{where}.{key}"
            if key in WORDS:
                self.word(key, value, name)
            elif key not in parameters and not free:
                new = f".{renamed(name)}".removesuffix(".")
                raise ValueError(f"{name}: {node[TARGET]} takes no {key}; it takes {', '.join(parameters)}{new}")
            else:
                sizes = SIZES if is_in(node[TARGET], "dit") else {}
                hint = place.typed.get(key, sizes.get(key, hints.get(key, Any)))
                for item in value if key in listed and isinstance(value, list) else [value]:
                    self.argument(item, hint, place, key, name)
        many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needed = {name for name, p in parameters.items() if p.default is p.empty and p.kind not in many}
        lacking = sorted(needed - node.keys() - set(place.given))
        if lacking and (place.partial or not node.get(PARTIAL)) and "_args_" not in node:
            raise ValueError(f"{where}: {node[TARGET]} needs {', '.join(lacking)}")

    def word(self, key: str, value: Any, name: str) -> None:
        if key in REFUSED and not self.trusted:
            raise ValueError(f"{name} may not stand in a file")
        if key in (PARTIAL, "_recursive_") and not isinstance(value, bool):
            raise ValueError(f"{name}={brief(value)}: expected true or false")
        if key == CONVERT and value not in ("none", "partial", "object", "all"):
            raise ValueError(f"{name}={brief(value)}: expected one of none, partial, object, all")

    def argument(self, value: Any, hint: Any, place: Place, key: str, name: str) -> None:
        inner = place.parts.get(key)
        if value == "???":
            raise ValueError(f"{name} must be given: {name}=...")
        if value is None and key in place.open and self.open:
            return
        if inner is not None and isinstance(value, dict) and (TARGET in value or PLACES[inner].run):
            self.part(value, inner, name, hint)
        elif inner is not None and isinstance(value, dict) and is_mapping(hint):
            annotation = get_args(hint)[1] if get_args(hint) else Any
            for entry, node in value.items():
                self.part(node, inner, f"{name}.{entry}", annotation)
        elif not is_of_values(hint) and (self.trusted or not place.home) and (targets := targets_in(value)):
            for target in targets:  # arguments of code outside dit, which has no schema
                if not isinstance(target, str) or is_in(target, "dit"):
                    raise ValueError(f"{name}: {brief(target)} may not stand here")
                self.outside(target, name)
        else:
            self.plain(value, name)
            check_value(value, hint, name)


def is_in(target: str, home: str) -> bool:
    return target == home or target.startswith(f"{home}.")


def is_of_values(annotation: Any) -> bool:
    """Returns True if an annotation allows only plain values."""
    if get_origin(annotation) is Callable:
        return False
    if get_origin(annotation) is Literal or annotation in SCALARS:
        return True
    inner = [kind for kind in get_args(annotation) if not isinstance(kind, Within) and kind is not Ellipsis]
    return bool(inner) and all(map(is_of_values, inner))
