"""What the compiler made of path.cpp: no instruction above a path's set, nothing for the linker to merge, no spills."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from trtllm_pt.backends.embedded.kernels import build

pytestmark = pytest.mark.slow  # it compiles path.cpp once more for each instruction set


@dataclass(frozen=True)
class Instruction:
    address: int
    code: str  # its bytes, in hexadecimal
    text: str

    @property
    def encoding(self) -> str:
        """In 64-bit mode c4 and c5 begin nothing but VEX, 62 nothing but EVEX."""
        first = re.sub(r"^((26|2e|36|3e|64|65|67) )+", "", self.code)[:2]
        return {"c4": "VEX", "c5": "VEX", "62": "EVEX"}.get(first, "legacy")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """path -> its object, compiled as for the library."""
    if not shutil.which("objdump"):
        pytest.skip("no objdump: apt-get install binutils")
    folder, source, made = tmp_path_factory.mktemp("objects"), Path(build.__file__).with_name("path.cpp"), {}

    def compile_path(path: str) -> Path:
        if path not in made:
            made[path] = folder / f"{path}.o"
            flags = [*build._FLAGS, *build._INSTRUCTION_SETS[path], f"-DTRTLLM_PT_PATH={path}"]
            subprocess.run([build.compiler(), *flags, "-c", str(source), "-o", str(made[path])], check=True)
        return made[path]

    return compile_path


def instructions(program: Path) -> list[Instruction]:
    printed = subprocess.run(["objdump", "-d", "--wide", program], capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t(.*)$", printed, re.MULTILINE)
    return [Instruction(int(address, 16), code, text) for address, code, text in lines]


ABOVE = {  # encodings and texts that a processor of the path need not know
    "portable": ({"VEX", "EVEX"}, r"^(lzcnt|movbe)"),
    "avx2": ({"EVEX"}, r"^v\w*bf16|%tmm|%k[0-7]|^vpdp"),
    "avx512": (set(), r"^v\w*bf16|%tmm|^vpdp|^vperm(b|i2b|t2b)\b"),
    "avx512_bf16": (set(), r"%tmm"),
    "avx512_amx": (set(), r"^tdp(?!bf16ps)"),
}


@pytest.mark.parametrize("path", build._INSTRUCTION_SETS)
def test_nothing_above_the_set(compiled, path):
    encodings, texts = ABOVE[path]
    code = instructions(compiled(path))
    assert len(code) > 1000
    assert [i for i in code if i.encoding in encodings or re.search(texts, i.text)] == []


@pytest.mark.parametrize(
    "path, own",
    [
        ("portable", "mulps"),
        ("avx2", "vfmadd"),
        ("avx512", "%zmm"),
        ("avx512_bf16", "vdpbf16ps"),
        ("avx512_bf16", "vpdpbusd"),
        ("avx512_bf16", "vpermt2b"),
        ("avx512_amx", "tdpbf16ps"),
    ],
)
def test_uses_what_it_is_for(compiled, path, own):
    assert any(own in i.text for i in instructions(compiled(path)))


@pytest.mark.parametrize("path", build._INSTRUCTION_SETS)
def test_nothing_for_the_linker_to_merge(compiled, path):
    """Of a function that two paths define, the linker keeps one: it could be the newest set's."""
    printed = subprocess.run(["nm", compiled(path)], capture_output=True, text=True, check=True).stdout
    assert re.findall(r" [uvVwW] .*", printed) == []
    assert re.findall(r" [A-Z] (.*)", re.sub(r" U .*", "", printed)) == [f"_ZN9trtllm_pt{len(path)}{path}5tableE"]


def test_no_spill_in_the_tile_loops(compiled):
    """Around every tile product, the shortest loop touches no stack."""
    code, backward = instructions(compiled("avx512_amx")), []
    for i in code:
        target = re.match(r"j\w+ +([0-9a-f]+) ", i.text)
        if target and int(target[1], 16) < i.address:
            backward.append((int(target[1], 16), i.address))
    products = [i.address for i in code if "tdpbf16ps" in i.text]
    loops = {min(((b, e) for b, e in backward if b <= at <= e), key=lambda loop: loop[1] - loop[0]) for at in products}
    assert len(loops) >= 6  # 2 x 1, 2 x 2, 1 x 1 to 1 x 4
    assert [i for i in code if "(%rsp" in i.text and any(b <= i.address <= e for b, e in loops)] == []
