"""Which code may run for a bundle: a bundle may come from anyone, and its manifest names a function
and its arguments.
"""

from __future__ import annotations

from importlib.util import find_spec

from edgeadapt.bundle import Model

DEBLUR_FACTORY = "edgeadapt.training.network:build"
LOSS_FACTORY = "edgeadapt.training.losses:build"
# Whole names, not a prefix: within edgeadapt there is also a function that calls any other by name.
_TRUSTED = frozenset({DEBLUR_FACTORY, LOSS_FACTORY})


def trusted_factory(described: Model, named: str | None) -> tuple[str | None, str]:
    """The factory that rebuilds a bundle's network in PyTorch, or None and the reason why not.

    ``described`` is what the bundle says of its network, ``named`` the factory that the user names.
    """
    if find_spec("torch") is None:
        return None, "PyTorch is not installed"
    if named is not None:
        return named, ""
    factory = described.factory
    if factory in _TRUSTED:
        return factory, ""
    return None, f"the network's factory is {factory}; say --model {factory} if you trust that code"
