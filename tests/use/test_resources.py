"""The cores and memory that a container or a Slurm job may use, from its control groups: their files in the layouts of
version 1 and version 2, and real groups if they can be made here."""

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from imnet.resources import cpu_field, cpu_name, free_memory_bytes, idle_cores, num_cores

GIB = 2**30
ASK = "from imnet.resources import *; print(num_cores(), free_memory_bytes())"


def tree(root, **files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def root(tmp_path):
    """The files of a machine with 64 GiB of available memory."""
    return tree(tmp_path, **{"proc/meminfo": f"MemTotal: {2**27} kB\nMemFree: 1 kB\nMemAvailable: {2**26} kB\n"})


def cores():
    return len(os.sched_getaffinity(0))


def test_without_groups_it_is_what_the_machine_has(root):
    assert free_memory_bytes(root) == 64 * GIB
    assert num_cores(root) == cores()


def test_cores_that_are_taken_from_the_process_do_not_count():
    """As by taskset, or by a Slurm job that binds its tasks."""
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(whole)})
    try:
        assert num_cores() == 1
    finally:
        os.sched_setaffinity(0, whole)


def test_without_proc_half_of_the_memory(tmp_path):
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert free_memory_bytes(tmp_path) == whole // 2
    assert num_cores(tmp_path) == cores()


def test_a_job_whose_limit_is_on_a_group_above_its_own(root):
    step = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/step_0/user/task_0/"
    job = "sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/"
    tree(root, **{
        "proc/self/cgroup": "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n",
        step + "memory.max": "max\n", step + "memory.current": "5\n", step + "cpu.max": "max 100000\n",
        job + "memory.max": f"{8 * GIB}\n", job + "memory.current": f"{6 * GIB}\n",
        # Cached files are dropped when memory is needed, except for what lies in /dev/shm ("shmem").
        job + "memory.stat": f"anon 7\nfile {5 * GIB}\nshmem {2 * GIB}\ninactive_file {GIB}\nactive_file {2 * GIB}\n",
        job + "cpu.max": "50000 100000\n",
    })  # fmt: skip
    assert free_memory_bytes(root) == 5 * GIB
    assert num_cores(root) == 1


@pytest.mark.parametrize(("quota", "most"), [(50000, 1), (150000, 2)])
def test_a_container_of_version_1_whose_path_is_that_of_its_host(root, quota, most):
    path = "/kubepods-pod7.slice:cri-containerd:0a1b"
    tree(root, **{
        "proc/self/cgroup": f"4:memory:{path}\n3:cpuset:/other\n2:cpu,cpuacct:{path}\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GIB}\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory/memory.stat": f"total_active_file {GIB // 2}\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": f"{quota}\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        # Groups of other processes.
        "sys/fs/cgroup/memory/other/memory.limit_in_bytes": "1\n",
        "sys/fs/cgroup/memory/other/memory.usage_in_bytes": "1\n",
        "sys/fs/cgroup/cpu/other/cpu.cfs_quota_us": "1\n", "sys/fs/cgroup/cpu/other/cpu.cfs_period_us": "1\n",
    })  # fmt: skip
    assert free_memory_bytes(root) == 3 * GIB // 2
    assert num_cores(root) == min(most, cores())


def test_a_group_that_is_over_its_limit_has_nothing_free(root):
    tree(root, **{
        "proc/self/cgroup": "0::/job\n",
        "sys/fs/cgroup/job/memory.max": f"{2 * GIB}\n", "sys/fs/cgroup/job/memory.current": f"{3 * GIB}\n",
    })  # fmt: skip
    assert free_memory_bytes(root) == 0


def test_no_limit_in_either_version(root):
    tree(root, **{
        "proc/self/cgroup": "4:memory:/\n1:cpu:/\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "1\n", "sys/fs/cgroup/cpu.max": "max\n",
    })  # fmt: skip
    assert free_memory_bytes(root) == 64 * GIB
    assert num_cores(root) == cores()


def made(controller):
    """Make a control group below this process's own, for one test; returns its folder."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    own = {name: path for _, names, path in lines for name in names.split(",")}
    if controller not in own:
        pytest.skip("control groups of version 1 are not in use here")
    group = Path("/sys/fs/cgroup", controller, own[controller].strip("/"), f"imnet-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    return group


def test_a_real_group_of_half_a_core_and_256_mib():
    cpu, memory = made("cpu"), made("memory")
    try:
        (cpu / "cpu.cfs_quota_us").write_text("50000")
        (memory / "memory.limit_in_bytes").write_text(str(2**28))
        # The shell enters the groups and is then replaced by Python, like the first process of a container.
        enter = f"echo $$ > {cpu}/cgroup.procs && echo $$ > {memory}/cgroup.procs && exec {sys.executable} -c '{ASK}'"
        found = subprocess.run(["sh", "-c", enter], capture_output=True, text=True, check=True)
    finally:
        for group in (cpu, memory):
            with contextlib.suppress(OSError):
                group.rmdir()
    num, free = map(int, found.stdout.split())
    assert num == 1
    assert 2**26 < free < 2**28


def test_cores_that_others_use_are_not_idle(busy):
    assert idle_cores() < cores() / 2


def test_this_process_is_none_of_the_others():
    """Its threads may still wait actively for their next work. Here one of them takes the only core of the process."""
    whole, stop = os.sched_getaffinity(0), threading.Event()
    os.sched_setaffinity(0, {min(whole)})
    spinning = threading.Thread(target=lambda: all(not stop.is_set() for _ in itertools.count()))
    spinning.start()
    try:
        began, used = time.perf_counter(), time.process_time()
        idle = idle_cores()
        assert idle > 0.5 * (time.process_time() - used) / (time.perf_counter() - began)
    finally:
        stop.set()
        spinning.join()
        os.sched_setaffinity(0, whole)


@pytest.mark.parametrize("text", ["", "cpu0 0 0 0 0 0 0 0 0\n", "cpu0 7\n", "cpu0 9 9 9 9 9 9 9 9 0 0\n"])
def test_where_nothing_counts_the_time_of_the_cores_all_are_idle(tmp_path, text):
    """Some sandboxes show only zeros, and macOS has no such file."""
    assert idle_cores(tree(tmp_path, **{"proc/stat": text} if text else {})) == num_cores(tmp_path)


def test_the_processor_has_a_name():
    assert cpu_name()
    assert "\n" not in cpu_name()
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    assert not found or found[0].endswith(f": {cpu_name()}")
    assert cpu_field("no such field") == ""
