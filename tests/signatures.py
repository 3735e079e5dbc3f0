"""Checks of types and shapes in every signature of the code under test, at a third of the price of `jaxtyped`.

`jaxtyped` checks the arguments twice and binds them to the signature, also of functions without a shape. That took half
of the time of these tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import is_dataclass
from functools import partial, wraps
from importlib.machinery import SourceFileLoader
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, get_args, get_type_hints
from unittest.mock import patch

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, config, install_import_hook, jaxtyped
from jaxtyping._import_hook import _JaxtypingLoader, _optimized_cache_from_source

PACKAGES = ("zoo", "datamodules", "evaluation", "run_folder", "callbacks", "commands")
CALLS = 2  # of a function in a test that are checked: later ones are of the same loop
counts: dict[int, int] = {}  # of the calls in this test, by the code: a nested function is made anew at each call
check_types = beartype(conf=BeartypeConf(violation_type=TypeError))
SHAPES = jaxtyped("context")  # within it, equal names of axes have equal sizes


def check_signatures() -> None:
    """Check each call of a function of `PACKAGES` that are imported from now on."""
    jaxtyping.jaxtyped = checked  # the decorator that the import hook writes before each function and class
    _JaxtypingLoader.get_code, _JaxtypingLoader.exec_module = code_of, SourceFileLoader.exec_module
    install_import_hook(PACKAGES, f"{__name__}.check_types")


def code_of(loader: _JaxtypingLoader, name: str) -> CodeType | None:
    """Return the code of a checked module, which is kept in a compiled file of another name than the plain code.

    jaxtyping's own loader looks for that name also while the module runs. Then all that the module imports, PyTorch
    and transformers among it, is compiled again in each process.
    """
    named = partial(_optimized_cache_from_source, loader._typechecker.get_hash())
    with patch("importlib._bootstrap_external.cache_from_source", named):
        return SourceFileLoader.get_code(loader, name)


def checked(kind: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """Stand in for `jaxtyped`."""
    if kind is None:
        return partial(checked, typechecker=typechecker)
    if is_dataclass(kind):
        made = vars(kind).get("__init__")
        if isinstance(made, FunctionType) and not hasattr(made, "__wrapped__"):
            kind.__init__ = checked(made, typechecker=typechecker)
        return kind
    if not isinstance(kind, FunctionType):
        return kind
    # a generator runs after its call; "{name}" stands for the value of an argument
    if inspect.isgeneratorfunction(kind) or any("{" in str(hint) for hint in kind.__annotations__.values()):
        return jaxtyped(kind, typechecker=typechecker)
    key, hints, function = id(kind.__code__), hints_of(kind), None
    scope = SHAPES if any(map(has_shape, hints.values())) else nullcontext()

    @wraps(kind)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal function
        counts[key] = count = counts.get(key, 0) + 1
        if config.jaxtyping_disable or count > CALLS:
            return kind(*args, **kwargs)
        if function is None:  # at the first call, because most functions of a module are not called
            function = with_checks(kind, hints, typechecker)
        with scope:
            return function(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_filename="<signatures>")  # in no error of a user's as his own place
    return call


def with_checks(kind: FunctionType, hints: dict[str, Any], typechecker: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return the function with checks of its types."""
    written, kind.__annotations__ = kind.__annotations__, hints
    function: Callable[..., Any] = typechecker(kind)
    kind.__annotations__ = function.__annotations__ = written
    return function


def hints_of(function: FunctionType) -> dict[str, Any]:
    """The annotations as types; `Any` where one names what is defined later or for type checkers alone."""
    try:
        return get_type_hints(function, include_extras=True)
    except Exception:
        return {name: resolve(hint, function) for name, hint in function.__annotations__.items()}


def resolve(hint: Any, function: FunctionType) -> Any:
    holder = SimpleNamespace(__annotations__={"hint": hint})
    try:
        return get_type_hints(holder, function.__globals__, include_extras=True)["hint"]
    except Exception:
        return Any


def has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    parts = hint if isinstance(hint, list) else get_args(hint)
    return any(map(has_shape, parts))
