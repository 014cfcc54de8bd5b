"""Call the user's function that builds a network."""

import itertools
import pkgutil
from collections.abc import Callable

from torch import nn
from torch.nn.parameter import is_lazy

from dreamstill.errors import TeacherError, first_line
from dreamstill.nn.seeded import rng_kept

__all__ = ["build"]


def build(factory: str | Callable[[], nn.Module]) -> nn.Module:
    """Build a network with a function without arguments, or with the name `module:function`.

    Raises TeacherError if it cannot be imported or fails, or does not return an initialized Module.
    """
    if not callable(factory) and ":" not in factory:
        raise TeacherError(f"a factory is written module:function; got {factory!r}")
    try:
        with rng_kept():
            function = factory if callable(factory) else pkgutil.resolve_name(factory)
    except Exception as error:  # importing runs the user's own code
        raise TeacherError(f"cannot import the factory {factory!r}: {first_line(error)}") from error
    try:
        with rng_kept():
            module = function()
    except (Exception, SystemExit) as error:  # the user's own code can raise anything
        raise TeacherError(f"the factory {factory!r} failed: {error!r}") from error
    if not isinstance(module, nn.Module):
        raise TeacherError(
            f"the factory {factory!r} must return a torch.nn.Module; got {type(module).__name__}"
        )
    for name, value in itertools.chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(value):
            raise TeacherError(
                f"{name} of the factory {factory!r} is lazy: run the network once on an input there"
            )
    return module
