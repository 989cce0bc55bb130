"""A step compiled by torch learns what it learns without, in a process of its own: shape checks cannot be traced."""

import subprocess
import sys
from pathlib import Path

import pytest

STEPS = """
import copy, sys
import torch
from step import fitting, make_batch, make_module

torch._inductor.config.fallback_random = True  # the same random numbers in both ways
module = make_module(f"method={sys.argv[1]}", "model.dropout=0", "method.threshold=0.1", dataset="synthetic")
batch = make_batch(2, 33, strong_views=2)
unlabeled = fitting(batch, module)["unlabeled"] | {"other": batch["other"]}
found = []
for compiled in (False, True):
    own = copy.deepcopy(module)
    if compiled:
        own.method.compile(dynamic=False)
    torch.manual_seed(0)
    losses = own.method(own.student, own.teacher, batch["labeled"], unlabeled)
    sum(losses.values()).backward()
    found.append([*losses.values(), *(p.grad for p in own.student.parameters() if p.grad is not None)])
for plain, ours in zip(*found, strict=True):
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)
print("equal:", len(found[0]))
"""


@pytest.mark.faults
@pytest.mark.parametrize("method", ["pcr", "consistency", "unimatch"])
def test_a_compiled_step_learns_the_same(method: str) -> None:
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    command = [sys.executable, "-c", STEPS, method]
    result = subprocess.run(command, cwd=benchmarks, capture_output=True, text=True)
    assert result.returncode == 0 and "equal: " in result.stdout, result.stderr[-2000:]
