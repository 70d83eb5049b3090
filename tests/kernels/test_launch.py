"""Launching through a recorded stand-in of libcuda: parameters, claims, storage, and whole layers run from what was passed."""

from __future__ import annotations

import ctypes
import json
import os
import re
import stat
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda, Launch, fake_code, fake_compile, specialisation_of
from onnx_explain_kernels import forms
from onnx_explain_kernels import launch as launching
from onnx_explain_kernels import store as storing
from onnx_explain_kernels.compiler import Binary
from onnx_explain_kernels.cubin import read_cubin
from onnx_explain_kernels.driver import Driver
from onnx_explain_kernels.errors import ArgumentError, CompilerMissing, DeviceError, UnsupportedShape
from onnx_explain_kernels.forms import PoolForm
from onnx_explain_kernels.geometry import Conv, Pool
from onnx_explain_kernels.launch import Kernels, Memory, address_of, memory_of
from onnx_explain_kernels.plan import Layouts, Plan, plan_conv, plan_pool
from onnx_explain_kernels.reference import conv_relevance, max_forward, pool_relevance
from onnx_explain_kernels.specialisation import Specialisation
from onnx_explain_kernels.store import Store, decode, encode
from onnx_explain_kernels.weights import pack

CONV = Conv.of(2, 5, 7, (7, 6), (3, 3), strides=(2, 1), pads=(1, 1, 1, 1))
POOL = Pool.of(2, 3, (6, 8), (2, 2), strides=(2, 2))
PLACES = {"r": 0x10000, "w": 0x20000, "x": 0x30000, "out": 0x40000}


def opened(tmp_path: Path, fake: FakeCuda | None = None, **options: Any) -> tuple[FakeCuda, Kernels]:
    fake = fake or FakeCuda()
    options = {"store": Store(tmp_path / "cache", shipped=None), "compile_with": fake_compile, **options}
    return fake, Kernels(Driver(fake), **options)


def run_launches(plans: list[Plan]) -> Any:
    """Executes each launch by the interpreter or the simulator, on the addresses and numbers that were passed."""
    from running import execute

    def run(launch: Launch) -> None:
        spec = specialisation_of(launch.code)
        plan = next(p for p in plans if p.specialisation == spec)
        assert launch.grid == plan.grid
        assert launch.threads == plan.threads
        execute(spec, plan, launch.values(spec, scratch=not spec.kernel.endswith("_pool")))

    return run


class Device:
    """Arrays in the stand-in's memory."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def put(self, array: np.ndarray) -> Memory:
        flat = np.ascontiguousarray(array)
        memory = Memory(self.driver.allocate(flat.nbytes), flat.nbytes)
        self.driver.upload(memory.pointer, address_of(flat), flat.nbytes)
        return memory

    def get(self, memory: Memory, shape: tuple[int, ...]) -> np.ndarray:
        array = np.empty(shape, np.float32)
        self.driver.download(address_of(array), memory.pointer, array.nbytes)
        return array


def test_a_layer_is_redistributed_from_what_the_launch_passes(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton (extra [test]) is not installed")
    rng = np.random.default_rng(0)
    given = {
        "r": rng.standard_normal((2, 7, *CONV.out)),
        "a": rng.standard_normal((2, 7, *CONV.out)) + 1,
        "w": rng.standard_normal((7, 5, 3, 3)),
        "x": rng.random((2, 5, 7, 6)),
    }
    given = {k: v.astype(np.float32) for k, v in given.items()}
    for generic in (False, True):
        fake, kernels = opened(tmp_path, specialise=not generic)
        fake.runs = run_launches([plan_conv(CONV, forms.EPSILON, arch=90, precision="ieee", generic=generic)])
        device = Device(kernels.driver)
        layer = kernels.conv(CONV, forms.EPSILON, precision="ieee")
        tensors = {k: device.put(pack(v, CONV, precision="ieee") if k == "w" else v) for k, v in given.items()}
        tensors["out"] = device.put(np.full(given["x"].shape, np.nan, np.float32))
        layer(tensors, stream=0xABC0, epsilon=0.125)
        want = conv_relevance(CONV, forms.EPSILON, given, epsilon=0.125)["out"]
        np.testing.assert_allclose(device.get(tensors["out"], want.shape), want, atol=2e-5 * np.abs(want).max())
        assert fake.launches[-1].stream == 0xABC0


def test_a_pool_is_redistributed_from_what_the_launch_passes(tmp_path: Path) -> None:
    pytest.importorskip("numba", reason="numba (extra [test]) is not installed")
    rng = np.random.default_rng(0)
    form = PoolForm("max", below="x")
    x = rng.random((2, 3, 6, 8)).astype(np.float32)
    given = {"x": x, "y": max_forward(POOL, x), "r": rng.standard_normal((2, 3, 3, 4)).astype(np.float32)}
    fake, kernels = opened(tmp_path)
    fake.runs = run_launches([plan_pool(POOL, form, arch=90)])
    device = Device(kernels.driver)
    tensors = {k: device.put(v) for k, v in given.items()} | {"out": device.put(np.full_like(x, np.nan))}
    kernels.pool(POOL, form)(tensors, below_epsilon=0.25)
    want = pool_relevance(POOL, form, given, below_epsilon=0.25)["out"]
    np.testing.assert_allclose(device.get(tensors["out"], want.shape), want, atol=1e-6)


def test_the_parameters_are_packed_in_order_with_their_padding(tmp_path: Path) -> None:
    fake, kernels = opened(tmp_path, specialise=False)
    layer = kernels.conv(CONV, forms.CHAIN)
    layer(PLACES, below_epsilon=0.5)
    spec = layer.binary.specialisation
    values = fake.launches[-1].values(spec)
    integers = [v for k, v in values.items() if dict(spec.parameters)[k] == "i32"]
    plan = plan_conv(CONV, forms.CHAIN, arch=90, generic=True)
    assert integers == [plan.integers[k] for k in values if k in plan.integers]
    assert [values[k] for k in ("r", "w", "x", "out")] == list(PLACES.values())
    assert (values["epsilon"], values["below_epsilon"]) == (0.0, 0.5)
    assert fake.launches[-1].packed[-16:] == bytes(16), "triton's two scratch pointers are null"


def test_more_than_48_kib_of_shared_memory_is_asked_for(tmp_path: Path) -> None:
    fake, kernels = opened(tmp_path)
    kernels.conv(CONV, forms.CHAIN)(PLACES)
    assert fake.attributes == [(8, 64 * 1024)]
    assert fake.launches[-1].shared == 64 * 1024


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"r": 0x10008}, "r at 0x10008 is not aligned to 16 bytes"),
        ({"x": 0}, "x is a null pointer"),
        ({"x": Memory(0x30000, 16)}, "x has 16 bytes, the shape needs 1680"),
        ({"out": 0x10010}, "out lies over r"),
        ({"w": None}, "NoneType is no device memory"),
        ({"y": 0x50000}, "takes r, w, x, out; it was given r, w, x, out, y"),
    ],
)
def test_a_broken_promise_is_refused_before_the_launch(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    fake, kernels = opened(tmp_path)
    layer = kernels.conv(CONV, forms.CHAIN)
    with pytest.raises(ArgumentError, match=said):
        layer(PLACES | change)
    assert fake.launches == []


def test_the_input_may_be_overwritten_where_it_is_read_at_the_same_place(tmp_path: Path) -> None:
    fake, kernels = opened(tmp_path)
    kernels.conv(CONV, forms.CHAIN)(PLACES | {"out": PLACES["x"]})
    assert len(fake.launches) == 1


def test_a_kernel_compiled_for_another_shape_is_refused(tmp_path: Path) -> None:
    _, kernels = opened(tmp_path)
    plan = plan_conv(CONV, forms.CHAIN, arch=90)
    other = plan_conv(Conv.of(2, 5, 7, (9, 6), (3, 3), strides=(2, 1), pads=(1, 1, 1, 1)), forms.CHAIN, arch=90)
    kernels._binaries[plan.specialisation.digest] = fake_compile(other.specialisation)
    with pytest.raises(ArgumentError, match="compiled for H = 9, asked for 7"):
        kernels.prepare(plan)


def test_a_promise_of_divisibility_is_kept_by_the_sizes(tmp_path: Path) -> None:
    """14x14 maps with channels first: 196 is not a multiple of 16."""
    aligned = Conv.of(2, 64, 64, (8, 8), (3, 3), pads=(1, 1, 1, 1))
    odd = replace(aligned, filters=63)
    layouts = Layouts("nhwc", "nchw", "nhwc")
    plans = [plan_conv(c, forms.CHAIN, arch=90, generic=True, layouts=layouts) for c in (aligned, odd)]
    assert "K" in plans[0].specialisation.claims
    assert "K" not in plans[1].specialisation.claims
    _, kernels = opened(tmp_path)
    kernels._binaries[plans[1].specialisation.digest] = fake_compile(plans[0].specialisation)
    with pytest.raises(ArgumentError, match="compiled for K divisible by 16, asked for 63"):
        kernels.prepare(plans[1])


def test_device_memory_is_recognised_by_what_it_offers() -> None:
    interface = {"shape": (2, 3), "typestr": "<f4", "data": (0x40, False), "version": 3}
    assert memory_of(SimpleNamespace(__cuda_array_interface__=interface)) == (0x40, 24)
    assert memory_of(SimpleNamespace(__cuda_array_interface__={**interface, "strides": (12, 4)})) == (0x40, 24)
    with pytest.raises(ArgumentError, match="strided"):
        memory_of(SimpleNamespace(__cuda_array_interface__={**interface, "strides": (4, 8)}))
    assert memory_of(SimpleNamespace(data_ptr=lambda: 0x80, tensor_size_in_bytes=lambda: 12)) == (0x80, 12)
    assert memory_of(0x99) == (0x99, None)
    with pytest.raises(ArgumentError, match="list"):
        memory_of([1.0])


def test_an_error_of_the_driver_is_told_with_its_function(tmp_path: Path) -> None:
    fake, kernels = opened(tmp_path, FakeCuda(fails="cuLaunchKernel"))
    layer = kernels.conv(CONV, forms.CHAIN)
    with pytest.raises(DeviceError, match="cuLaunchKernel failed: an illegal memory access.*700"):
        layer(PLACES)
    with pytest.raises(DeviceError, match="too old"):
        kernels.driver.call("cuOfTomorrow")
    assert fake.launches == []


def test_an_old_device_has_no_kernels(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedShape, match=r"7\.5"):
        opened(tmp_path, FakeCuda(capability=75))


def test_whatever_needs_the_context_makes_it_current_first(tmp_path: Path) -> None:
    """From any thread, after anybody has made another one current: a finaliser too."""
    fake, kernels = opened(tmp_path)
    driver = kernels.driver
    layer = kernels.conv(CONV, forms.CHAIN)
    host = np.zeros(4, np.float32)
    pointer = driver.allocate(16)
    graph = driver.capture(lambda stream: layer(PLACES, stream=stream))
    works: list[Any] = [
        lambda: layer(PLACES),
        lambda: driver.upload(pointer, address_of(host), 16),
        lambda: driver.download(address_of(host), pointer, 16),
        lambda: driver.copy(pointer, pointer, 16),
        lambda: driver.fill(pointer, 0, 4),
        lambda: driver.ordinal_of(pointer),
        lambda: driver.milliseconds(lambda: None),
        lambda: driver.replay(graph, driver.stream()),
        lambda: driver.release(graph),
        driver.synchronize,
        driver.free_memory,
        lambda: driver.drop(pointer),
    ]
    for work in works:
        fake.calls.clear()
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        assert fake.calls[0] == "cuCtxSetCurrent"


def test_a_kernel_reads_what_was_uploaded_before_it(tmp_path: Path) -> None:
    """A plain copy from pageable memory may land later, and a stream that is apart does not wait for it."""
    fake, kernels = opened(tmp_path)
    driver, host = kernels.driver, np.arange(4, dtype=np.float32)
    seen: list[Any] = []
    pointer = driver.allocate(64)
    fake.runs = lambda launch: seen.append(np.ctypeslib.as_array((ctypes.c_float * 4).from_address(pointer)).copy())
    layer = kernels.conv(CONV, forms.CHAIN)
    for stream in (driver.stream(apart=True), driver.stream(), 0):
        host = host + 1
        driver.upload(pointer, address_of(host), host.nbytes, stream)
        layer(PLACES, stream=stream)
        np.testing.assert_array_equal(seen.pop(), host)
        driver.fill(pointer, 0x3F800000, 4, stream)
        layer(PLACES, stream=stream)
        np.testing.assert_array_equal(seen.pop(), np.ones(4))
    fake.cuMemcpyHtoD_v2(ctypes.c_uint64(pointer), ctypes.c_void_p(address_of(host)), ctypes.c_size_t(16))
    layer(PLACES, stream=driver.stream(apart=True))
    assert (seen.pop() != host).any(), "the stand-in would show a stale read"
    layer(PLACES, stream=driver.stream())
    np.testing.assert_array_equal(seen.pop(), host)


def test_nobody_waits_for_the_context_while_a_stream_is_captured(tmp_path: Path) -> None:
    """The driver would refuse it; and others go on with the default stream, which is not captured."""
    fake, kernels = opened(tmp_path)
    driver, layer = kernels.driver, kernels.conv(CONV, forms.CHAIN)
    answers: list[Any] = []

    def wait() -> None:
        try:
            driver.synchronize()
            answers.append(None)
        except DeviceError as error:
            answers.append(error)

    waiter = threading.Thread(target=wait)

    def work(stream: int) -> None:
        waiter.start()
        time.sleep(0.02)
        layer(PLACES, stream=0)
        layer(PLACES, stream=stream)

    graph = driver.capture(work)
    waiter.join()
    assert answers == [None]
    assert len(fake.launches) == 1, "what was captured has not run"
    driver.replay(graph, driver.stream())
    assert len(fake.launches) == 2


def test_a_module_is_loaded_once_and_compiled_by_one_thread_at_a_time(tmp_path: Path) -> None:
    at_once, most = [0], [0]

    def slowly(spec: Specialisation) -> Binary:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.01)
        at_once[0] -= 1
        return fake_compile(spec)

    fake, kernels = opened(tmp_path, compile_with=slowly)
    used = (forms.CHAIN, forms.CHAIN, forms.PRODUCT, forms.EPSILON)
    workers = [threading.Thread(target=kernels.conv, args=(CONV, form)) for form in used]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert most == [1]
    kernels.conv(CONV, forms.CHAIN)
    assert len(fake.loaded) == 3


def test_after_an_error_of_the_device_giving_memory_back_is_silent(tmp_path: Path) -> None:
    fake, kernels = opened(tmp_path)
    driver = kernels.driver
    pointer = driver.allocate(16)
    fake.fails = "cuMemFree_v2"
    driver.drop(pointer)
    with pytest.raises(
        DeviceError, match=r"illegal memory access .*CUDA error 700\); the process must be started again"
    ) as told:
        driver.free(pointer)
    assert told.value.code == 700


def test_a_forked_process_is_told_why_it_has_no_gpu() -> None:
    fake = FakeCuda()
    fake.cuInit = lambda flags: 3  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="start it by spawn"):
        Driver(fake)


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, kernels = opened(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    code = re.findall(r"```py\n(.*?)```", page, re.DOTALL)[0]  # the others are of the library that calls the kernels
    monkeypatch.setattr(launching, "Kernels", lambda: kernels)
    names = {"weight": np.ones((128, 64, 3, 3), np.float32), "stream": 7}
    exec(code, names | dict(zip(("s", "w", "x", "out"), (k << 40 for k in range(1, 5)))))
    assert fake.launches[-1].stream == 7


# ---- storage


def binary_of(form: forms.ConvForm = forms.CHAIN, conv: Conv = CONV) -> Binary:
    return fake_compile(plan_conv(conv, form, arch=90).specialisation)


def test_a_kernel_is_compiled_once_and_found_again(tmp_path: Path) -> None:
    asked: list[Specialisation] = []

    def compile_and_count(spec: Specialisation) -> Binary:
        asked.append(spec)
        return fake_compile(spec)

    for _ in range(2):
        _, kernels = opened(tmp_path, compile_with=compile_and_count)
        kernels.conv(CONV, forms.CHAIN)
        kernels.conv(CONV, forms.CHAIN)
    assert len(asked) == 1


def test_a_stored_kernel_comes_back_as_it_was() -> None:
    binary = binary_of()
    digest, again = decode(encode(binary))
    assert again == binary
    assert digest == binary.specialisation.digest


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign", "renamed"])
def test_a_damaged_entry_is_removed_and_compiled_again(tmp_path: Path, damage: str) -> None:
    store, binary = Store(tmp_path / "cache", shipped=None), binary_of()
    digest = binary.specialisation.digest
    store.keep(binary)
    path = tmp_path / "cache" / f"{digest}.kernel"
    data = path.read_bytes()
    other = encode(binary_of(forms.PRODUCT))
    cases = {"cut": data[:-9], "flipped": data[:-1] + b"\1", "empty": b"", "foreign": b"\x7fELF", "renamed": other}
    path.write_bytes(cases[damage])
    assert store.find(digest) is None
    assert not path.exists()
    store.keep(binary)
    assert store.find(digest) == binary


def test_an_entry_that_others_can_write_is_not_loaded(tmp_path: Path) -> None:
    store, binary = Store(tmp_path / "cache", shipped=None), binary_of()
    store.keep(binary)
    path = tmp_path / "cache" / f"{binary.specialisation.digest}.kernel"
    path.chmod(0o666)
    assert store.find(binary.specialisation.digest) is None
    path.chmod(0o600)
    assert store.find(binary.specialisation.digest) == binary
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert store.find(binary.specialisation.digest) is None


def test_a_folder_that_others_can_write_keeps_nothing(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    for folder in (shared, shared / "below"):
        store = Store(folder, shipped=None)
        store.keep(binary_of())
        assert store.folder is None
        assert "can be written by other users" in str(store.refused)
        assert not list(shared.rglob("*.kernel"))


def test_new_folders_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store(tmp_path / "one" / "two", shipped=None)
    finally:
        os.umask(before)
    assert store.refused is None
    assert [stat.S_IMODE((tmp_path / p).stat().st_mode) for p in ("one", "one/two")] == [0o700, 0o700]


def test_a_folder_of_another_group_or_user_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    folder.chmod(0o770)
    monkeypatch.setattr(os, "getegid", lambda: os.geteuid() + 1)
    assert "can be written by other users" in str(storing.why_not_private(folder))
    folder.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert "belongs to another user" in str(storing.why_not_private(folder))


def test_a_sticky_folder_on_the_way_is_no_danger(tmp_path: Path) -> None:
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o777 | stat.S_ISVTX)
    assert Store(sticky / "mine", shipped=None).refused is None


def test_the_default_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(storing.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert storing.default_folder().parent == tmp_path / "onnx-explain" / "kernels"
    assert Store().refused is None
    assert stat.S_IMODE(storing.default_folder().stat().st_mode) == 0o700


def test_writers_at_the_same_time_leave_one_whole_entry(tmp_path: Path) -> None:
    binary, folder = binary_of(), tmp_path / "cache"
    (tmp_path / "entry").write_bytes(encode(binary))
    code = (
        "import sys; from pathlib import Path; from onnx_explain_kernels.store import Store, decode;"
        "b = decode(Path(sys.argv[1]).read_bytes())[1]; s = Store(Path(sys.argv[2]), shipped=None);"
        "[(s.keep(b), s.find(b.specialisation.digest) == b or sys.exit(1)) for _ in range(200)]"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "entry"), str(folder)]
    writers = [subprocess.Popen(command) for _ in range(3)]
    assert [w.wait(timeout=60) for w in writers] == [0, 0, 0]
    assert [p.name for p in folder.iterdir()] == [f"{binary.specialisation.digest}.kernel"]


def test_what_was_shipped_seeds_the_cache(tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    generic = fake_compile(plan_conv(CONV, forms.CHAIN, arch=90, generic=True).specialisation)
    (shipped / f"{generic.specialisation.digest}.kernel").write_bytes(encode(generic))

    def no_compiler(spec: Specialisation) -> Binary:
        raise CompilerMissing("no compiler")

    store = Store(tmp_path / "cache", shipped=shipped)
    _, kernels = opened(tmp_path, store=store, compile_with=no_compiler)
    assert kernels.conv(CONV, forms.CHAIN).binary == generic
    with pytest.raises(CompilerMissing, match="not stored"):
        kernels.conv(CONV, forms.GAMMA)


def test_the_digest_tells_apart_all_that_is_compiled_in() -> None:
    plans = [plan_conv(CONV, form, arch=arch) for form in forms.NAMED.values() for arch in (80, 90)]
    plans += [plan_conv(replace(CONV, samples=n), forms.CHAIN, arch=90, precision="bf16") for n in (2, 3)]
    digests = {p.specialisation.digest for p in plans}
    assert len(digests) == len(plans)
    again = plan_conv(CONV, forms.CHAIN, arch=90).specialisation
    assert again.digest in digests
    assert Specialisation.read(json.loads(json.dumps(again.described()))) == again


def test_damaged_machine_code_is_told_apart_from_a_kernel() -> None:
    binary = binary_of()
    found = read_cubin(binary.code, binary.name)
    assert (found.registers, found.stack, len(found.parameters)) == (32, 0, len(binary.specialisation.arguments) + 2)
    damaged = (b"", b"\x7fELF\2", binary.code[:100], binary.code[:40] + struct.pack("<Q", 2**40) + binary.code[48:])
    for code in (*damaged, b"FAKE" + binary.code):
        with pytest.raises(ArgumentError, match="damaged"):
            read_cubin(code, binary.name)
    with pytest.raises(ArgumentError, match="holds no kernel"):
        read_cubin(binary.code, "another")


def test_code_with_other_parameters_is_not_loaded(tmp_path: Path) -> None:
    spec = plan_conv(CONV, forms.CHAIN, arch=90).specialisation
    foreign = plan_conv(CONV, forms.BELOW_D, arch=90).specialisation
    code = fake_code(foreign, spec.kernel, scratch=True)
    _, kernels = opened(tmp_path, compile_with=lambda s: replace(fake_compile(s), code=code))
    with pytest.raises(ArgumentError, match="takes other parameters"):
        kernels.conv(CONV, forms.CHAIN)


def test_importing_the_package_loads_no_compiler_and_no_driver() -> None:
    code = (
        "import sys; import onnx_explain_kernels; assert 'numpy' not in sys.modules;"
        "import onnx_explain_kernels.launch, onnx_explain_kernels.catalogue;"
        "heavy = {'triton', 'numba', 'torch', 'onnx', 'onnxruntime'} & {m.split('.')[0] for m in sys.modules};"
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 0, done.stderr
