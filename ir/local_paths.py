"""Metadata that names files of this machine: what stays at home when a model is saved."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from .provenance import STACK_TRACE_KEY

_SOURCE_FILE = r"""[/\\][^\s"',:]*\.(?:py|pyx|ipynb|cc|cpp|cu|h|so)\b|[A-Za-z]:\\\w"""
_COMMON_ROOTS = r"/(?:home|root|Users|tmp|usr|opt|mnt|var|srv|private|workspace)/"


class PathFilter:
    """Tells texts that name files apart from others.

    Args:
        keep_paths: let everything through.
    """

    def __init__(self, keep_paths: bool = False):
        self._keep = keep_paths
        own = [re.escape(folder) for folder in {os.getcwd(), str(Path.home())} if len(folder) > 1]
        self._pattern = re.compile("|".join([_SOURCE_FILE, _COMMON_ROOTS, *sorted(own)]))
        # Nodes of one module share most of their texts.
        self._known: dict[str, bool] = {}

    def drops(self, text: str | None) -> bool:
        """Whether `text` must not be written."""
        if not text or self._keep:
            return False
        known = self._known.get(text)
        if known is None:
            # Every path has a separator; most texts have none, and are done here.
            known = ("/" in text or "\\" in text) and self._pattern.search(text) is not None
            self._known[text] = known
        return known

    def kept(self, properties: Mapping[str, str]) -> list[tuple[str, str]]:
        """The entries of a metadata dictionary that are written."""
        if self._keep:
            return list(properties.items())
        return [
            (key, text) for key, text in properties.items() if key != STACK_TRACE_KEY and not self.drops(text)
        ]
