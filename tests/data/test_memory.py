"""Packing streams its source: the memory of its processes does not grow with the size of the set."""

import json
import pickle
import subprocess
import sys

from tests.data import making

CHILD = """
import json, resource, sys
from imnet.data.tool import main
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
codes = [main(["pack", sys.argv[1], sys.argv[2], "--workers", "1"]), main(["verify", sys.argv[2]])]
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
print(json.dumps([codes, grown >> 10, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10]))
"""


def test_a_123_mb_batch_takes_a_fraction_of_it(tmp_path):
    (tmp_path / "in").mkdir()
    data, labels = making.rows(10_000, 64)
    (tmp_path / "in" / "train_data_batch_1").write_bytes(pickle.dumps({"data": data, "labels": labels}, protocol=3))
    assert (tmp_path / "in" / "train_data_batch_1").stat().st_size > 120e6
    call = [sys.executable, "-c", CHILD, str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    codes, grown_mib, child_mib = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, 0]
    assert grown_mib < 100
    assert child_mib < 80
