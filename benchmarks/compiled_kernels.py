"""Do the Triton kernels fit the GPUs they are meant for? Compiled for each, without having one.

For every configuration: registers, spilled bytes and shared memory of a block, and whether the
products use the tensor cores.

Usage: python benchmarks/compiled_kernels.py [--targets 80,90,100]
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gradsift.gradients import kernels_triton as kernels

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# What a block may use, in bytes (compute capability → shared memory; 255 registers everywhere).
SHARED_BYTES = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448, 100: 232_448, 120: 101_376}
TENSOR_CORES = re.compile(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync")


def row_sums_source(dtype, config):
    pointers = {"delta_ptr": f"*{dtype}", "x_ptr": f"*{dtype}", "offsets_ptr": "*i32"}
    numbers = dict.fromkeys(("first", "n_columns", "width", "delta_stride", "x_stride"), "i32")
    signature = {**pointers, "out_ptr": "*fp32", **numbers}
    tile = {key: config.kwargs[key] for key in ("TILE_V", "TILE_D", "TILE_T")}
    return source(kernels._row_sums_kernel, signature, tile)


def errors_source(dtype, constants):
    floats = ("log_normaliser_ptr", "square_ptr", "sign_ptr", "sketch_ptr")
    signature = {"z_ptr": f"*{dtype}", "targets_ptr": "*i64"}
    signature |= dict.fromkeys(floats, "*fp32")
    signature |= dict.fromkeys(("n_columns", "stride", "start"), "i32")
    signature |= dict.fromkeys(("scale", "softcap"), "fp32")
    return source(kernels._errors_kernel, signature, constants)


def source(kernel, signature, constants):
    names = kernel.arg_names
    signature = {name: signature.get(name, "constexpr") for name in names}
    # Widths and strides are multiples of 16, as those of real models are.
    aligned = ("width", "delta_stride", "x_stride", "n_columns", "stride")
    attributes = {
        (at,): [["tt.divisibility", 16]]
        for at, name in enumerate(names)
        if name.endswith("_ptr") or name in aligned
    }
    return ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=attributes,
    )


def report(title, made_from, capability, options):
    compiled = triton.compile(made_from, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("STACK", "LOCAL"))
    shared, limit = compiled.metadata.shared, SHARED_BYTES.get(capability)
    cores = sorted(set(TENSOR_CORES.findall(compiled.asm["ptx"]))) or ["no tensor cores"]
    fits = "fits" if limit is None or shared <= limit else "DOES NOT FIT"
    print(
        f"sm_{capability}  {title:44} registers {registers:3}  spilled {stack + local:4}  "
        f"shared {shared:6} of {limit} ({fits})  {', '.join(cores)}"
    )
    return fits == "fits"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", default="80,90,100")
    arguments = parser.parse_args()
    fits = []
    for capability in map(int, arguments.targets.split(",")):
        for dtype in ("bf16", "fp32"):
            for config in kernels.CONFIGS:
                options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
                tile = "x".join(str(v) for v in config.kwargs.values())
                title = f"row sums {dtype} {tile} {config.num_warps} warps"
                fits.append(report(title, row_sums_source(dtype, config), capability, options))
            for size in (256, 1024):
                constants = {
                    "HAS_SOFTCAP": True, "HAS_NORMALISER": False, "HAS_SKETCH": True,
                    "K": size, "RUNS": kernels.ERROR_TILE // size, "TILE": kernels.ERROR_TILE,
                }  # fmt: skip
                title = f"softmax errors {dtype} sketch {size}"
                fits.append(
                    report(title, errors_source(dtype, constants), capability, {"num_warps": 8})
                )
    raise SystemExit(0 if all(fits) else 1)


if __name__ == "__main__":
    main()
