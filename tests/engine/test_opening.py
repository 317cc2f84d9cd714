"""Opening a model of 26 GB, a hole of true size: the time until it is ready, and the memory that it
takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pymixtral.inspection.inventory import Inventory
from pymixtral.inspection.mixes import mixed
from pymixtral.inspection.published import MODELS
from support.holes import split, write_hole

OPEN = """
import json, sys, time
from pymixtral import Mixtral

def resident(kind):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(kind))

Mixtral().close()  # whatever the first use of a module or of the C library takes
before = resident("VmRSS")
begin = time.perf_counter()
model = Mixtral(sys.argv[1])
seconds = time.perf_counter() - begin
after = resident("VmRSS")
found = {"seconds": seconds, "resident": after, "grown": after - before, "peak": resident("VmHWM")}
found["layers"] = model.config.n_layers
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("layout", ["merged", "split"])
def test_26_gb_open_at_once_and_take_no_memory(
    tmp_path: Path, layout: str, record_property: Callable[[str, object], None]
) -> None:
    config = MODELS["8x7b"]
    tensors = mixed(Inventory.of_model(config), "q4_0").parts
    path = write_hole(
        tmp_path / "mixtral.gguf", config, split(tensors, 8) if layout == "split" else tensors, tokens=True
    )
    if path.stat().st_blocks * 512 > 1 << 24:
        pytest.skip("the file system has no sparse files")
    assert path.stat().st_size > 26e9
    done = subprocess.run([sys.executable, "-c", OPEN, path], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    print(found)
    for name, value in found.items():
        record_property(name, value)
    assert found["layers"] == 32
    assert found["seconds"] < 2  # 0.5 on a machine with nothing else to do
    assert found["peak"] < 200e6
