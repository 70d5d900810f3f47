"""Consent to run code from outside dit that checkpoints name.

A checkpoint may name a part from another package, as `_target_: mypackage.MySampler`. Nothing of that package is
imported before the user consents to it, with `trust=mypackage` or `dit.load(RUN, trust="mypackage")`. Consent holds for
the process, because imported code stays.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

_packages: set[str] = set()


def give_consent(packages: str | Sequence[str] | None) -> None:
    """Allows checkpoints that are read later to name code of these packages or modules.

    Raises ValueError for an invalid module name, for dit itself, and for the standard library, whose functions can do
    anything.
    """
    for name in [packages] if isinstance(packages, str) else packages or []:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", str(name), re.ASCII):
            raise ValueError(f"trust={name}: expected the name of a package, such as trust=mypackage")
        if is_own(name) or is_standard(name):
            whose = "dit itself" if is_own(name) else "Python's standard library"
            raise ValueError(f"trust={name} is {whose}, which needs no consent and gets none; name your own package")
        _packages.add(str(name))


def has_consent(name: str) -> bool:
    """Whether the user has consented to code of this full name."""
    return any(name == package or name.startswith(f"{package}.") for package in _packages)


def is_own(name: str) -> bool:
    """Whether a full name is in dit."""
    return name.split(".")[0] == "dit"


def is_standard(name: str) -> bool:
    """Whether a full name is in the standard library."""
    return name.split(".")[0] in sys.stdlib_module_names
