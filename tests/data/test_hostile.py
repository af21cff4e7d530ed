"""Python's audit hook sees no source of the damage table unpickled, executed, or written outside the destination.

One child process packs the whole table, because an audit hook cannot be removed."""

import json
import subprocess
import sys

from tests.data import damage_archives, damage_arrays, damage_doubt, damage_parquet, damage_pictures  # noqa: F401  (fill it)
from tests.data.damage_table import CASES

CHILD = """
import json, os, sys, tempfile
from PIL import Image
from pathlib import Path
from imnet.data.tool import main
from tests.data import damage_archives, damage_arrays, damage_doubt, damage_parquet, damage_pictures  # fill it
from tests.data.damage_table import CASES

Image.init()  # its plugins define namedtuples by exec
temporary = tempfile.mkdtemp()
tempfile.tempdir = temporary
events, inside, watching = [], None, False
members = temporary + "/imnet-batch-"  # the folders of members of zips while they are read

def hook(event, args):
    if not watching:
        return
    # "exec" with a file name is an import of a module.
    made_up = event == "exec" and getattr(args[0], "co_filename", "<").startswith("<")
    if made_up or event in ("pickle.find_class", "os.system", "os.exec", "os.fork", "socket.connect", "os.symlink",
                            "shutil.unpack_archive", "os.link", "ctypes.dlopen"):
        events.append([current, event, repr(args)[:200]])
    if event == "subprocess.Popen" and "pickles.py" not in repr(args):
        events.append([current, event, repr(args)[:200]])
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
        path, flags = args[0], args[2] if event == "open" else os.O_WRONLY
        if event in ("os.remove", "os.rmdir") and args[1] >= 0:  # a name in an open folder
            path = os.path.join(os.readlink(f"/proc/self/fd/{args[1]}"), path)
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        # A file without a name is opened as its folder, which nothing else can be written to.
        nameless = path == temporary
        if writes and isinstance(path, (str, bytes)) and not nameless and not os.fsdecode(path).startswith(
            (inside, "/dev/null", members)
        ):
            events.append([current, event, repr(args)[:200]])

sys.addaudithook(hook)
codes = {}
for current, (build, _, _) in CASES.items():
    with tempfile.TemporaryDirectory() as top:
        os.mkdir(top + "/source")
        os.chdir(top)
        path = build(Path(top) / "source")
        before = sorted(map(str, (Path(top) / "source").rglob("*")))
        inside = top + "/out"
        pictures = not current.startswith(("idx", "pickle", "npz", "clsloc"))
        watching = True
        codes[current] = main(["pack", str(path), top + "/out", "--workers", "1", *(["--size", "16"] * pictures)])
        watching = False
        if sorted(map(str, (Path(top) / "source").rglob("*"))) != before or set(os.listdir(top)) - {"source", "out"}:
            events.append([current, "stray file", ""])
        if os.listdir(temporary) != [os.path.basename(top)]:
            events.append([current, "stray temporary file", ""])
        os.chdir("/")
os.rmdir(temporary)
print(json.dumps([codes, events]))
"""


def test_nothing_is_executed_or_written_outside():
    call = [sys.executable, "-c", CHILD]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    codes, events = json.loads(done.stdout)
    assert events == []
    assert set(codes) == set(CASES)
    assert set(codes.values()) == {65}


def test_the_hook_sees_an_unpickling():
    """The same hook reports an unpickling and a file written elsewhere, so the test above is able to fail."""
    code = CHILD.split("codes = {}")[0] + (
        "import pickle; current = inside = 'x'; watching = True\n"
        "pickle.loads(pickle.dumps(Path('x'))); open('/tmp/imnet-hook-check', 'w').close()\n"
        "watching = False; os.remove('/tmp/imnet-hook-check'); print(json.dumps(events))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {event for _, event, _ in json.loads(done.stdout)} == {"pickle.find_class", "open"}
