"""Takes from Python on Linux what it lacks on a Mac: /proc, affinity, Triton, some calls. Python imports this first."""

import builtins
import errno
import importlib.machinery
import io
import os
import resource
import select

for module, name in (
    *((os, n) for n in ("sched_getaffinity", "sched_setaffinity", "posix_fallocate", "posix_fadvise", "memfd_create")),
    (select, "epoll"),
):
    delattr(module, name)


def without_proc(function):
    def call(path, *rest, **named):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return function(path, *rest, **named)

    return call


def no_such_limit(which, limits, set_limit=resource.setrlimit):
    if which == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    set_limit(which, limits)


def find_spec(name, *rest, find=importlib.machinery.PathFinder.find_spec):
    return None if name == "triton" or name == "nvidia.dali" else find(name, *rest)


builtins.open = io.open = without_proc(io.open)
for name in ("open", "stat", "listdir", "readlink"):
    setattr(os, name, without_proc(getattr(os, name)))
resource.setrlimit = no_such_limit
importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
