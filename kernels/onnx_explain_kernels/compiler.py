"""From a specialisation to machine code, on a machine with or without a GPU; triton and numba are imported on use.

Triton's own cache is not consulted: what is loaded onto the device comes from our store or was compiled in this process.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from onnx_explain_kernels.cubin import Cubin, read_cubin
from onnx_explain_kernels.errors import ArgumentError, CompilerMissing, ResourceError
from onnx_explain_kernels.forms import PoolForm
from onnx_explain_kernels.specialisation import SOURCES, Specialisation
from onnx_explain_kernels.tiles import ARCHITECTURES, shared_bytes

_SIZES = {"i32": 4, "i64": 8, "fp32": 4}


@dataclass(frozen=True)
class Binary:
    """A compiled kernel. `shared`: bytes of dynamic shared memory; `scratch`: whether Triton's two scratch pointers end the
    parameters; `stages`: what shared memory and registers left of those asked for; `compiler`: name and version.
    """

    specialisation: Specialisation
    code: bytes
    name: str
    shared: int
    scratch: bool
    stages: int
    compiler: str

    @property
    def resources(self) -> Cubin:
        """Registers, stack and parameters, as the code itself says."""
        return read_cubin(self.code, self.name)


def expected_parameters(spec: Specialisation, scratch: bool) -> list[tuple[int, int]]:
    """(offset, size) of every parameter of the compiled kernel: natural alignment, in order."""
    kinds = [kind for _, kind in spec.arguments] + ["*i8", "*i8"] * scratch
    found, offset = [], 0
    for kind in kinds:
        size = 8 if kind.startswith("*") else _SIZES[kind]
        offset = -(-offset // size) * size
        found.append((offset, size))
        offset += size
    return found


def compile_kernel(spec: Specialisation) -> Binary:
    """Compile a specialisation for its architecture.

    Raises:
        CompilerMissing: triton or numba-cuda is not installed, or triton only interprets in this process.
        ResourceError: no number of stages fits the architecture's shared memory.
        ArgumentError: the compiled parameters are not the expected ones.

    """
    binary = _numba(spec) if SOURCES[spec.kernel] == "pool_kernel.py" else _triton(spec)
    found = list(binary.resources.parameters)
    if found != expected_parameters(spec, binary.scratch):
        raise ArgumentError(
            f"{spec.kernel}: {binary.compiler} laid its parameters out as {found}, which this launcher does not pass; "
            "install the versions that the extra [gpu] names."
        )
    return binary


def _triton(spec: Specialisation) -> Binary:
    try:
        import triton
        from triton import knobs
    except ImportError as error:
        raise CompilerMissing(f"{spec.kernel} is not stored and triton is not installed: {error}.") from error
    if knobs.runtime.interpret:
        raise CompilerMissing(f"{spec.kernel}: TRITON_INTERPRET is set, so triton compiles nothing in this process.")
    found: list[Binary] = []
    shared = 0
    for stages in range(spec.stages, 0, -1):  # fewer loads in flight: less shared memory, fewer registers
        compiled = _triton_once(replace(spec, stages=stages))
        data, shared = compiled.metadata, int(compiled.metadata.shared)
        if data.global_scratch_size or data.profile_scratch_size or getattr(data, "num_ctas", 1) != 1:
            raise ResourceError(f"{spec.kernel}: triton {triton.__version__} asks for scratch memory or clusters.")
        if shared <= shared_bytes(spec.arch):
            code = compiled.asm["cubin"]
            found.append(Binary(spec, code, data.name, shared, True, stages, f"triton {triton.__version__}"))
            if found[-1].resources.stack == 0:
                break
    if not found:
        raise ResourceError(
            f"{spec.kernel} needs {shared} bytes of shared memory, sm_{spec.arch} has {shared_bytes(spec.arch)}; "
            "give this layer to the plain operators."
        )
    return min(found, key=lambda binary: binary.resources.stack)


def _triton_once(spec: Specialisation) -> Any:
    import triton
    import triton.language as tl
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {"fp32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16}
    constants: dict[str, Any] = dict(spec.constants)
    if "DOT" in constants:
        constants["DOT"] = types[constants["DOT"]]
    names = [name for name, _ in spec.parameters]
    source = ASTSource(
        fn=triton_source(spec),
        signature=dict(spec.parameters),
        constexprs=constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in spec.claims},
    )
    options = {"num_warps": spec.warps, "num_stages": spec.stages, "enable_fp_fusion": True}
    with TemporaryDirectory() as private, knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = private
        knobs.compilation.disable_line_info = True
        return triton.compile(source, target=GPUTarget("cuda", spec.arch, 32), options=options)


def triton_source(spec: Specialisation) -> Any:
    """The Triton function behind a specialisation."""
    module = import_module(f"onnx_explain_kernels.{SOURCES[spec.kernel].removesuffix('.py')}")
    return getattr(module, spec.kernel)


def pool_source(spec: Specialisation) -> Callable[..., Any]:
    """The Python function behind a pooling specialisation, for the compiler and the simulator."""
    from onnx_explain_kernels.pool_kernel import FACTORIES

    constants: Mapping[str, Any] = dict(spec.constants)
    form = PoolForm(**{k: constants[k] for k in ("kind", "quotient", "numerator", "below", "shifted")})
    fixed = {k: v for k, v in constants.items() if k.isupper()}
    return FACTORIES[spec.kernel](form, fixed, constants["tile_c"], constants["tile_p"], constants["lanes"])


def _numba(spec: Specialisation) -> Binary:
    try:
        from numba import cuda, types
        from triton.backends.nvidia.compiler import get_ptxas
    except (ImportError, AttributeError) as error:  # numba-cuda 0.30 fails so under numpy 2.5
        raise CompilerMissing(
            f"{spec.kernel} is not stored, and its compiler (numba-cuda, with the ptxas of triton) is not installed: {error}."
        ) from error
    kinds = {"*fp32": types.CPointer(types.float32), "fp32": types.float32, "i32": types.int32}
    signature = types.void(*(kinds[kind] for _, kind in spec.parameters))
    try:
        ptx, _ = cuda.compile(
            pool_source(spec), signature, cc=divmod(spec.arch, 10), output="ptx", device=False, abi="numba"
        )
    except (AttributeError, TypeError) as error:  # the simulator's `compile` is a stub
        raise CompilerMissing(
            f"{spec.kernel}: numba does not compile here ({error}); is NUMBA_ENABLE_CUDASIM set?"
        ) from error
    text = ptx if isinstance(ptx, str) else ptx.decode()
    name = text.split(".visible .entry ", 1)[1].split("(", 1)[0].strip()
    # NVVM writes the newest PTX: the newer of triton's two assemblers reads it, for every architecture
    code = _assemble(text, spec.arch, str(get_ptxas(max(ARCHITECTURES)).path))
    return Binary(spec, code, name, 0, False, 1, f"numba-cuda {_numba_version()}")


def _assemble(ptx: str, arch: int, ptxas: str) -> bytes:
    """Machine code from PTX. NVVM may be newer than the assembler and stamps its own version on PTX that older ones read."""
    with TemporaryDirectory() as private:
        source, target = Path(private) / "kernel.ptx", Path(private) / "kernel.cubin"
        command = [ptxas, f"--gpu-name=sm_{arch}", str(source), "-o", str(target)]
        for _ in range(2):
            source.write_text(ptx, encoding="utf-8")
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            known = re.search(r"Unsupported \.version .*current version is '([\d.]+)'", done.stderr)
            if done.returncode == 0 or known is None:
                break
            ptx = re.sub(r"^\.version .*$", f".version {known[1]}", ptx, count=1, flags=re.MULTILINE)
        if done.returncode:
            raise CompilerMissing(f"ptxas does not assemble for sm_{arch}: {done.stderr.strip()[:400]}")
        return target.read_bytes()


def _numba_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("numba-cuda")
    except PackageNotFoundError:
        return f"numba {version('numba')}"
