"""Other processes of this program: the same interpreter, and modules from where this process has them."""

from __future__ import annotations

import sys

_CODE = "import runpy, sys; sys.path[:] = {path!r}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"


def command(module: str, *arguments: str) -> list[str]:
    """Return a command line that runs a module, whatever lies in the current directory."""
    optimised = ["-O"] * sys.flags.optimize
    return [sys.executable, *optimised, "-P", "-c", _CODE.format(path=sys.path, module=module), *arguments]
