"""The same model in, the same bytes out: run after run, whatever the hash seed."""

import hashlib
import os
import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import hashlib, sys, tempfile
from pathlib import Path
from graphwright.ir.load import load
from graphwright.ir.save import save
from graphwright.passes.optimize import optimize
from graphwright.tools.simplifiers.models import build_model

folder = Path(tempfile.mkdtemp())
for name in sys.argv[1:]:
    digests = set()
    for run in range(2):
        path = build_model(name, Path(tempfile.mkdtemp()))
        result = optimize(load(path), "simplify,fold-batch-norm,fuse", reload=lambda: load(path))
        save(result.model, folder / "out.onnx")
        digests.add(hashlib.sha256((folder / "out.onnx").read_bytes()).hexdigest())
    (digest,) = digests
    print(name, digest)
"""


@pytest.mark.parametrize("names", [("control_flow", "synthetic_1k")], ids=" ".join)
def test_hash_seeds_do_not_matter(names):
    outputs = set()
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), *names],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.add(done.stdout)
    (output,) = outputs
    assert [line.split()[0] for line in output.splitlines()] == list(names)
    assert all(len(line.split()[1]) == hashlib.sha256().digest_size * 2 for line in output.splitlines())
