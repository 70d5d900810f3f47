"""Checks plain values of configs and files against type annotations. Imports only the standard library."""

import collections.abc
import functools
import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Within:
    """Bounds of a number, both included."""

    lowest: float
    highest: float = math.inf

    def __str__(self) -> str:
        return f"of at least {self.lowest}" if self.highest == math.inf else f"in [{self.lowest}, {self.highest}]"


Positive = Annotated[int, Within(1)]
NotNegative = Annotated[int, Within(0)]
Share = Annotated[float, Within(0, 1)]
LARGEST_SEED = 2**32 - 1  # the largest that every library's random generator accepts
Seed = Annotated[int, Within(0, LARGEST_SEED)]
# Upper bounds far above any use, so that values that would exhaust memory or time are refused at once.
Width = Annotated[int, Within(1, 2**16)]  # of a vector, or the side of a picture
Depth = Annotated[int, Within(0, 1000)]  # of a network
Steps = Annotated[int, Within(1, 100_000)]  # of a sampler or a chain
Count = Annotated[int, Within(1, 10**7)]  # of pictures in a list
Batch = Annotated[int, Within(1, 2**20)]  # of pictures in memory at the same time
# Values of keys that several commands have.
Paths = str | Sequence[str]
Prompts = str | Sequence[str | int]
Precision = Literal["auto", "32", "tf32", "bf16", 32]
AdapterEntries = str | Sequence[str | Mapping[str, str | float]] | None

SCALARS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}
LARGEST = 2**63 - 1  # the largest integer (int64)
PYTHON_UNION = (Union, types.UnionType)


@functools.cache
def hints_of(target: Any) -> dict[str, Any]:
    """Returns the resolved annotations of a callable by parameter and "return"; empty if they cannot be resolved."""
    called = target.func if isinstance(target, functools.partial) else target
    called = called.__init__ if inspect.isclass(called) else called
    try:
        return get_type_hints(called, include_extras=True)
    except (NameError, TypeError, AttributeError):  # annotations of other packages
        return {}


def described(annotation: Any) -> str:
    """Returns the values that an annotation allows, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in SCALARS:
        return SCALARS[annotation]
    if origin is Annotated:
        return " ".join([described(inner[0]), *(str(rule) for rule in inner[1:] if isinstance(rule, Within))])
    if origin in PYTHON_UNION:
        return " or ".join(dict.fromkeys(map(described, inner)))
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)}: {', '.join(map(described, inner))}"
    if is_list(annotation):
        return f"a list of {described(inner[0])}" if inner else "a list"
    if is_mapping(annotation):
        return "a group of keys and values"
    return "a part of the config, {_target_: ...}"


def is_list(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    return kind in (list, tuple, Sequence, collections.abc.Iterable)


def is_mapping(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    return kind in (dict, Mapping) or typing.is_typeddict(kind)


def brief(value: Any) -> str:
    """Returns a value as text of at most 60 characters."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value!r}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_value(value: Any, annotation: Any, where: str) -> None:
    """Raises ValueError with the key (`where`) if a plain value does not match the annotation. A plain value never
    matches an annotation of another type (class, callable): there the config needs a node with a _target_."""
    origin, inner = get_origin(annotation), get_args(annotation)
    wrong = ValueError(f"{where}={brief(value)}: expected {described(annotation)}")
    if annotation in (Any, object, inspect.Parameter.empty) or isinstance(annotation, typing.TypeVar):
        return
    if origin in (Annotated, NotRequired):
        check_value(value, inner[0], where)
        for rule in inner[1:] if origin is Annotated else ():
            if isinstance(rule, Within) and not rule.lowest <= value <= rule.highest:
                raise wrong
    elif origin in PYTHON_UNION:
        check_any(value, inner, where, wrong)
    elif origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in inner):
            raise wrong
    elif annotation in SCALARS:
        check_scalar(value, annotation, where, wrong)
    elif is_list(annotation):
        if not isinstance(value, list):
            raise wrong
        fixed = origin is tuple and Ellipsis not in inner
        if fixed and len(value) != len(inner):
            raise wrong
        for index, item in enumerate(value):
            check_value(item, inner[index] if fixed else inner[0] if inner else Any, f"{where}[{index}]")
    elif is_mapping(annotation):
        if not isinstance(value, dict):
            raise wrong
        for key, item in value.items():
            check_value(item, inner[1] if len(inner) == 2 else Any, f"{where}.{key}")
    else:
        raise wrong


def check_scalar(value: Any, kind: Any, where: str, wrong: ValueError) -> None:
    """Raises ValueError unless the value is a scalar of this type, and finite and below 2^63 if a number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = number if kind is float else number and isinstance(value, int) if kind is int else isinstance(value, kind)
    if not fits:
        if kind is str and number:
            raise ValueError(f"{wrong}; a number that is meant as text needs quotes: {where}='\"{value}\"'")
        raise wrong
    if number and (abs(value) > LARGEST if isinstance(value, int) else not math.isfinite(value)):
        raise ValueError(f"{where}={brief(value)}: expected a number that is finite and below 2^63")


def check_any(value: Any, choices: Sequence[Any], where: str, wrong: ValueError) -> None:
    """Raises ValueError unless one choice matches. An error inside a list or a group has priority over `wrong`."""
    inside = None
    for choice in choices:
        try:
            return check_value(value, choice, where)
        except ValueError as error:
            kind = get_args(choice)[0] if get_origin(choice) is Annotated else choice
            if (isinstance(value, list) and is_list(kind)) or (isinstance(value, dict) and is_mapping(kind)):
                inside = error
    raise inside or wrong


def conforms(result_type: Any, annotation: Any, instance: bool) -> bool:
    """Returns True if the result of a target matches the annotation.

    result_type: the class or annotation of an object (instance), or a callable that is passed on unchanged. Missing
    annotations match everything.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in (Any, object, inspect.Parameter.empty) or (instance and result_type is Any):
        return True
    if origin is Annotated:
        return conforms(result_type, inner[0], instance)
    if origin in PYTHON_UNION:
        return any(conforms(result_type, choice, instance) for choice in inner)
    if origin is collections.abc.Callable:
        return callable_conforms(result_type, inner, instance)
    if getattr(annotation, "_is_protocol", False):
        if "__call__" in vars(annotation):
            hints = get_type_hints(annotation.__call__, include_extras=True)
            result = hints.pop("return", Any)
            return callable_conforms(result_type, (list(hints.values()), result), instance)
        methods = [name for name, value in vars(annotation).items() if callable(value) and name[0] != "_"]
        return instance and all(hasattr(result_type, name) for name in methods)
    if instance and inspect.isclass(result_type) and inspect.isclass(annotation):
        return issubclass(result_type, annotation)
    if origin is not None and origin is get_origin(result_type):  # lists with compatible items
        return instance and all(compatible(one, other) for one, other in zip(get_args(result_type), inner, strict=True))
    return instance and result_type == annotation


def callable_conforms(result_type: Any, inner: Sequence[Any], instance: bool) -> bool:
    """Returns True for a callable, or an object with __call__, with these positional arguments and this result."""
    if instance and get_origin(result_type) is collections.abc.Callable:
        return get_args(result_type) == tuple(inner)
    bases = result_type.__mro__ if instance and inspect.isclass(result_type) else ()
    called = (
        next((vars(base)["__call__"] for base in bases if "__call__" in vars(base)), None) if instance else result_type
    )
    if called is None:
        return False
    arguments, result = inner
    hints, parameters = hints_of(called), parameters_of(called)
    names = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = names[1:] if instance else names  # self
    if arguments is not Ellipsis and (hints or names):
        needed = [name for name in names if parameters[name].default is inspect.Parameter.empty]
        if len(needed) > len(arguments) or len(names) < len(arguments):
            return False
        if not all(
            compatible(hints.get(name, Any), argument) for name, argument in zip(names, arguments, strict=False)
        ):
            return False
    given = called if inspect.isclass(called) else hints.get("return", Any)
    return result is Any or given is Any or conforms(given, result, instance=True) or compatible(given, result)


def compatible(one: Any, other: Any) -> bool:
    """Returns True for equal types, for a class and its subclass, or if either is Any."""
    if Any in (one, other) or one == other:
        return True
    return inspect.isclass(one) and inspect.isclass(other) and (issubclass(one, other) or issubclass(other, one))


@functools.cache
def parameters_of(target: Any) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a callable; empty if Python cannot find its signature."""
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}
