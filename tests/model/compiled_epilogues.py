"""Compile Triton's kernels for a device that need not be here; test_triton_epilogues.py runs this."""

import itertools

from geo_mvmf.model.triton_epilogues import BACKWARD_TILE, FORWARD_TILE, _add_up_tile, _scale_tile


def ptx_of(kernel, tile, pointers, switches):
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    switches |= dict(zip(("ROWS", "COLUMNS"), tile, strict=True))
    types = {name: "i32" if name in ("n", "width") else pointers.get(name, "*fp32") for name in kernel.arg_names}
    types |= dict.fromkeys(switches, "constexpr")
    whole = [(place,) for place, name in enumerate(types) if name == "width" or types[name][0] == "*"]
    attributes = {place: [["tt.divisibility", 16]] for place in whole}  # as of all chunks but the last one
    source = ASTSource(kernel, types, constexprs=switches, attrs=attributes)
    return compiled(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False}).asm["ptx"]


def check(ptx, number, *, exponentials):
    """Whole vectors of 16 bytes are read and written, and exp is the hardware's."""
    wide = [line for line in ptx.splitlines() if "st.global" in line and (".v4.b32" in line or ".v2.b64" in line)]
    single = [line for line in ptx.splitlines() if "st.global.b32" in line]
    assert len(wide) == number, (len(wide), ptx.count("st.global"))
    assert len(single) <= 4, single  # sums
    assert ("ex2.approx" in ptx) == exponentials


def main():
    values = FORWARD_TILE[0] * FORWARD_TILE[1] // 128  # of each of 128 threads
    for out, known in itertools.product((None, "logits", "*fp32", "*bf16"), (True, False)):
        switches = {"LEAST": -1e30, "KNOWN": known, "LOGITS": out == "logits", "SHARES": out in ("*fp32", "*bf16")}
        pointers = {"out": out} if switches["SHARES"] else {}
        ptx = ptx_of(_add_up_tile, FORWARD_TILE, pointers, switches)
        check(ptx, {None: 0, "*bf16": values // 8}.get(out, values // 4), exponentials=True)
    for source, out, again in itertools.product(("*fp32", "*bf16"), ("*fp32", "*bf16", "*fp16"), (True, False)):
        switches = {"PRODUCTS": again, "KEEP_LOGITS": False, "EXPONENTIATE": again, "SUM": True}
        ptx = ptx_of(_scale_tile, BACKWARD_TILE, {"source": source, "out": out}, switches)
        check(ptx, values // (4 if out == "*fp32" else 8), exponentials=again)


if __name__ == "__main__":
    main()
