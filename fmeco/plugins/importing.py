"""Import plug-in files that belong to no package."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from fmeco.errors import ConfigError, FmecoError, clean

PACKAGE = "fmeco_plugins_"  # the module names of --plugin files begin with it


def import_file(file: Path) -> ModuleType:
    """Import a --plugin file once, under a module name that loader workers can import too. Raises ConfigError.

    Its folder acts as a package, so the file can import its neighbours: `from ._shared import x`.
    """
    package = f"{PACKAGE}{hashlib.sha256(str(file.parent).encode()).hexdigest()[:12]}"
    if package not in sys.modules:
        folder = importlib.machinery.ModuleSpec(package, None, is_package=True)
        folder.submodule_search_locations = [str(file.parent)]
        sys.modules[package] = importlib.util.module_from_spec(folder)
    name = f"{package}.{file.stem.replace('.', '_')}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, FmecoError) or not isinstance(error, Exception):
            raise
        absent = error.name if isinstance(error, ImportError) else None
        beside = absent is not None and (file.parent / f"{absent}.py").is_file()
        raise ConfigError(
            f"--plugin {file} could not be imported: {type(error).__name__}: {clean(error)}",
            f"import the file beside it as: from .{absent} import ..." if beside else "",
        ) from error
    return module
