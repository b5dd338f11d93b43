"""Adapters between frameworks, NIR and Lava; importable as `grasp_plugin.adapters` only.

Importing this package imports no framework: each function's module is loaded on first use.
"""

if __name__ != "grasp_plugin.adapters":
    raise ImportError(
        f"this package was imported as {__name__!r}; import it as 'grasp_plugin.adapters' "
        "(the folder adapters/ at the repository root is its source, not a package of that name)"
    )

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grasp_plugin.adapters.from_exact import from_exact as from_exact
    from grasp_plugin.adapters.from_hdlif import from_hdlif as from_hdlif
    from grasp_plugin.adapters.from_norse import from_norse as from_norse
    from grasp_plugin.adapters.from_snntorch import from_snntorch as from_snntorch
    from grasp_plugin.adapters.hdlif_node import register_nir_extensions as register_nir_extensions
    from grasp_plugin.adapters.nir_file import read_nir as read_nir
    from grasp_plugin.adapters.nir_file import write_nir as write_nir
    from grasp_plugin.adapters.read_exact import read_exact as read_exact
    from grasp_plugin.adapters.read_hdlif import read_hdlif as read_hdlif
    from grasp_plugin.adapters.to_lava import to_lava as to_lava
    from grasp_plugin.adapters.to_norse import to_norse as to_norse
    from grasp_plugin.adapters.to_snntorch import to_snntorch as to_snntorch

_FUNCTIONS = {  # name here: the module of this package that holds the function of that name
    "from_exact": "from_exact",
    "from_hdlif": "from_hdlif",
    "from_norse": "from_norse",
    "from_snntorch": "from_snntorch",
    "read_exact": "read_exact",
    "read_hdlif": "read_hdlif",
    "read_nir": "nir_file",
    "register_nir_extensions": "hdlif_node",
    "to_lava": "to_lava",
    "to_norse": "to_norse",
    "to_snntorch": "to_snntorch",
    "write_nir": "nir_file",
}


class _Package(types.ModuleType):
    """Loads adapters on first use, and names the function where a module has the same name."""

    def __getattr__(self, name: str) -> Any:
        if name not in _FUNCTIONS:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        module = importlib.import_module(f"{self.__name__}.{_FUNCTIONS[name]}")
        return getattr(module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FUNCTIONS and isinstance(value, types.ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
