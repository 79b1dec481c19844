"""Passes from a user's own file, outside any package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from ..ir.errors import PipelineError


def load_plugin(path: str | Path) -> None:
    """Execute a Python file that registers passes with `@gw.register`.

    Raises:
        PipelineError: The file is missing, no Python file, or raises; one line that names it.
    """
    file = Path(path)
    if not file.is_file():
        raise PipelineError(f"plugin '{path}' is not a file")
    name = f"graphwright_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise PipelineError(f"plugin '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # dataclasses and inspect look modules up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except PipelineError:
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise PipelineError(f"plugin '{path}' fails to load: {type(error).__name__}: {error}") from error
