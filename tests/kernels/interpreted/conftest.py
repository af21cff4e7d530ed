"""Helpers for the Triton tier on CPU tensors; test_triton.py runs this folder with TRITON_INTERPRET=1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from imnet_kernels import tier


@pytest.fixture(autouse=True)
def to_nearest(monkeypatch):
    """Makes the interpreter round fp32 to the nearest bf16, as hardware does. It truncates otherwise, and over a chain
    of layers that error would be larger than the one of a wrong layer."""
    import triton.language as tl
    from triton.runtime import interpreter

    cut = interpreter._convert_float

    def convert(value, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return cut(value, source, target, mode)
        exact = torch.from_numpy(np.array(value).view(np.float32))
        return exact.bfloat16().view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture(autouse=True)
def patched_once(monkeypatch):
    """Lets a launch replace Triton's language once. The interpreter looks through all of the language again for each
    call of a function inside a kernel, where nothing is left to replace; that took a quarter of these tests' time."""
    from triton.runtime import interpreter

    launch, patch, done = interpreter.GridExecutor.__call__, interpreter._patch_lang, set()

    def fresh(*args, **kwargs):
        done.clear()
        return launch(*args, **kwargs)

    def once(fn):
        module = fn.__module__
        return interpreter._LangPatchScope() if module in done else done.add(module) or patch(fn)

    if hasattr(interpreter, "_LangPatchScope"):  # not in older versions, which are slower but right
        monkeypatch.setattr(interpreter.GridExecutor, "__call__", fresh)
        monkeypatch.setattr(interpreter, "_patch_lang", once)


@pytest.fixture(autouse=True)
def quick_overflow(monkeypatch):
    """Looks for an overflow of integers in one pass of numpy. For the same check the interpreter runs ten operations of
    its own with each sum, difference and product of integers; that took a third of these tests' time."""
    from triton.runtime import interpreter

    exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply}

    def check(left, right, operation):
        kind, name = left.type.scalar, operation.__name__
        if kind.int_bitwidth < 64:
            found = exact[name](left.handle.data.astype(np.int64), right.handle.data.astype(np.int64))
            fits = kind.get_int_min_value() <= found.min() and found.max() <= kind.get_int_max_value()
            assert fits, f"{kind} overflows in {name}"

    known = getattr(interpreter, "interpreter_semantic", None)
    if hasattr(known, "binary_op_sanitize_overflow_impl"):  # not in older versions, which are slower but right
        monkeypatch.setattr(known, "binary_op_sanitize_overflow_impl", check)


@pytest.fixture(autouse=True)
def types_made_once(monkeypatch):
    """Makes a type and a shape of Triton once. For each operation the interpreter makes and names a type again, checks
    its shape, and builds a table of numpy's types to look one up; that took a third of these tests' time."""
    import triton.language as tl
    from triton.runtime import interpreter

    make, hold, look_up, made = tl.block_type.__init__, tl.tensor.__init__, interpreter._get_np_dtype, {}

    def block_type(self, element_ty, shape):
        key = element_ty.name, *map(tl.core._unwrap_if_constexpr, shape)
        if key not in made:
            make(self, element_ty, shape)
            made[key] = vars(self).copy()
        vars(self).update(made[key], element_ty=element_ty)

    def tensor(self, handle, type):
        shape = type.shape if type.is_block() else ()
        if shape not in made:
            hold(self, handle, type)
            made[shape] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = made[shape]

    def numpys(kind):
        name = kind.scalar.name
        if name not in made:
            made[name] = look_up(kind)
        return made[name]

    monkeypatch.setattr(tl.block_type, "__init__", block_type)
    monkeypatch.setattr(tl.tensor, "__init__", tensor)
    monkeypatch.setattr(interpreter, "_get_np_dtype", numpys)


def step_of(net, precision="fp32", px=8):
    """Returns the trainer's step for a network of five classes, and a batch of six images of ``px`` x ``px`` pixels."""
    from imnet.device import Place
    from imnet.launch import World
    from imnet.recipe import SGD, Constant, Data, Recipe
    from imnet.step import TrainStep

    data = Data(name="synthetic", image_px=px, num_classes=5, batch_images=6)
    recipe = Recipe(name="t", model="wrn10_1", data=data, optim=SGD(lr=0.1), schedule=Constant(), epochs=1)
    place = Place(torch.device("cpu"), precision, "test")
    step = TrainStep(net, recipe, place, World(), compile=False, graphs=False, backend="torch")
    images = torch.randn(6, 3, px, px, generator=torch.Generator().manual_seed(1))
    return step, (images.contiguous(memory_format=torch.channels_last), torch.arange(6) % 5)


def after_a_step(make, spec, precision, px=8):
    """Returns the state of the network that ``make`` builds, and the loss, after a step with the kernels ``spec``."""
    torch.manual_seed(0)
    net = make().to(memory_format=torch.channels_last)
    step, batch = step_of(net, precision, px)
    with tier.using(spec):
        loss = step([batch], 6, 0, 0.1)[0]
    return net.state_dict() | {"loss": loss}
