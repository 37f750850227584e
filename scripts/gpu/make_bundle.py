# SPDX-License-Identifier: Apache-2.0
"""Makes build/gpu_bundle, which a machine with a GPU runs without building or downloading anything.

python scripts/gpu/make_bundle.py [--base COMMIT] [--out FOLDER]

    ours/dynprune_cuda    the package of this tree, its module compiled for one architecture
    base/dynprune_cuda    the same of the commit to compare with; by default the last tag
    site/                 rivals: Liger-Kernel, and CUB's DeviceTopK as the package cub_topk
    manifest.json         commits, a hash of the sources, what was left out and why

The folder travels with the working tree, so both together must stay below the limit of 64 MiB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import cuda_toolkit  # noqa: E402

LIMIT = 64 * 2**20
# What a module is made of, with all that setup.py imports. Older commits lack some of it. Its hash
# tells whether a bundle is older than the tree.
SOURCES = (
    *("csrc", "dynprune_cuda", "setup.py", "pyproject.toml"),
    *("scripts/build_torch.py", "scripts/cuda_toolkit.py"),
)
ALSO_NEEDED = ("README.md", "LICENSE")  # by setup.py
CUB_HEADERS = "nvidia-cuda-cccl>=13.1"  # the first with DeviceTopK
# quack is left out: nvidia-cutlass-dsl, which it needs, is larger than the limit.
RIVALS = ("liger-kernel",)


def run(*command: str | Path, cwd: Path | None = None, **more: Any) -> str:
    """The output of a command, run in the tree; what it printed is shown if it fails."""
    done = subprocess.run(
        command, cwd=cwd or ROOT, capture_output=True, text=True, check=False, **more
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return str(done.stdout)


def source_hash(root: Path) -> str:
    """Of every source file of a module in this tree."""
    digest = hashlib.sha256()
    for name in SOURCES:
        place = root / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix in (".py", ".pyi", ".h", ".cuh", ".cpp", ".cu", ".toml"):
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def write_if_new(path: Path, content: bytes) -> None:
    """Leaves the time of an equal file alone, so that only what changed is compiled again."""
    if not (path.is_file() and path.read_bytes() == content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def copy_tree(commit: str | None, place: Path) -> None:
    """The sources of a commit, or those of the working tree, with what was built there before."""
    wanted = [*SOURCES, *ALSO_NEEDED]
    if commit is None:
        listing = run("git", "ls-files", "-co", "--exclude-standard", "--", *wanted)
        files = {name: (ROOT / name).read_bytes() for name in listing.splitlines()}
    else:
        listing = run("git", "ls-tree", "-r", "--name-only", commit, "--", *wanted)
        files = {
            name: subprocess.run(
                ["git", "show", f"{commit}:{name}"], cwd=ROOT, capture_output=True, check=True
            ).stdout
            for name in listing.splitlines()
        }
        # Older commits always made line info.
        files["setup.py"] = files["setup.py"].replace(b'"-lineinfo", ', b"")
    for name, content in files.items():
        write_if_new(place / name, content)
    for folder in ("csrc", "dynprune_cuda"):
        for path in (place / folder).rglob("*"):
            name = str(path.relative_to(place))
            if path.is_file() and name not in files and path.suffix != ".so":
                path.unlink()


def build(place: Path, architecture: str) -> None:
    environment = os.environ | {
        "DYNPRUNE_CUDA": "1",
        "DYNPRUNE_LINEINFO": "0",
        "TORCH_CUDA_ARCH_LIST": architecture,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # ninja
    }
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", cwd=place, env=environment)


def bundle_package(place: Path, target: Path) -> None:
    shutil.copytree(
        place / "dynprune_cuda", target / "dynprune_cuda", ignore=shutil.ignore_patterns("__pyc*")
    )


def download(requirement: str, folder: Path) -> Path:
    """The wheel of one package for the GPU machine's Python, without what it needs."""
    shutil.rmtree(folder, ignore_errors=True)
    options = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12"]
    for platform in ("manylinux_2_28", "manylinux_2_17", "manylinux2014"):
        options += ["--platform", f"{platform}_x86_64"]
    run(
        sys.executable, "-m", "pip", "download", "-q", *options, "-d", folder, requirement
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def add_rival(name: str, site: Path, downloads: Path) -> str:
    """Unpacks a pure Python wheel; returns its file name."""
    wheel = download(name, downloads / name)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return wheel.name


def add_cub(site: Path, downloads: Path, toolkit: cuda_toolkit.Toolkit, architecture: str) -> str:
    """Compiles the package cub_topk with the headers of a newer CUDA; returns their wheel."""
    wheel = download(CUB_HEADERS, downloads / "cccl")
    headers = downloads / "cccl" / "headers"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(headers)
    (include,) = headers.glob("nvidia/cu*/include/cccl")
    package = site / "cub_topk"
    package.mkdir(parents=True)
    source = ROOT / "scripts" / "gpu" / "cub"
    shutil.copy(source / "topk.py", package / "__init__.py")
    flags = ["-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC"]
    flags += [f"-arch=sm_{architecture.replace('.', '')}", f"-I{include}"]
    run(toolkit.nvcc, *flags, source / "topk.cu", "-o", package / "libcub_topk.so")
    return wheel.name


def last_tag() -> str | None:
    """The last tag before this commit, None if there is none."""
    try:
        return run("git", "describe", "--tags", "--abbrev=0", "HEAD^").strip()
    except RuntimeError:
        return None


def size_of(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())


def size_carried(out: Path) -> int:
    """Bytes of the bundle and of the files that git knows or does not ignore."""
    names = run("git", "ls-files", "-co", "--exclude-standard").splitlines()
    return size_of(out.rglob("*")) + size_of(ROOT / name for name in names)


def check(out: Path) -> int:
    """1 if the bundle was made from other sources than those of this tree."""
    path = out / "manifest.json"
    if not path.is_file():
        print(f"skipped: the bundle: there is no {path}")
        return 0
    manifest = json.loads(path.read_text())
    print(json.dumps(manifest))
    for name, reason in manifest["left_out"].items():
        print(f"skipped: {name}, left out of the bundle: {reason.splitlines()[0]}")
    if manifest["sources"] == source_hash(ROOT):
        return 0
    print("the sources have changed since: run `make gpu-bundle` again")
    return 1


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_bundle")
    parser.add_argument("--base", help="commit to compare with (default: the last tag)")
    parser.add_argument("--architecture", default="9.0")
    parser.add_argument("--check", action="store_true", help="tell whether --out fits this tree")
    return parser


def main() -> int:
    options = make_parser().parse_args()
    if options.check:
        return check(options.out)
    toolkit, passed_over = cuda_toolkit.find()
    if toolkit is None:
        raise SystemExit("no CUDA toolkit: " + "; ".join(passed_over))
    out, sources, downloads = (
        options.out.resolve(),
        ROOT / "build" / "gpu_sources",
        ROOT / "build" / "gpu_downloads",
    )
    shutil.rmtree(out, ignore_errors=True)
    commit = run("git", "describe", "--always", "--dirty", "--abbrev=12").strip()
    left_out: dict[str, str] = {}
    manifest: dict[str, Any] = {"ours": commit, "sources": source_hash(ROOT), "left_out": left_out}
    print(f"building {commit} for {options.architecture}", flush=True)
    copy_tree(None, sources / "ours")
    build(sources / "ours", options.architecture)
    bundle_package(sources / "ours", out / "ours")
    base = options.base or last_tag()
    if base:
        manifest["base"] = run("git", "rev-parse", f"{base}^{{commit}}").strip()
        print(f"building {base} to compare with", flush=True)
        copy_tree(manifest["base"], sources / "base")
        build(sources / "base", options.architecture)
        bundle_package(sources / "base", out / "base")
    else:
        left_out["base"] = "there is no tag, and no commit was given"
    site = out / "site"
    for name in RIVALS:
        print(f"fetching {name}", flush=True)
        try:
            manifest[name] = add_rival(name, site, downloads)
        except RuntimeError as error:
            left_out[name] = str(error)
    print("building cub_topk", flush=True)
    try:
        manifest["cub_topk"] = add_cub(site, downloads, toolkit, options.architecture)
    except RuntimeError as error:
        left_out["cub_topk"] = str(error)
        shutil.rmtree(site / "cub_topk", ignore_errors=True)
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    size = size_carried(out)
    print(f"{out}: {size_of(out.rglob('*')) / 2**20:.1f} MiB, with the tree {size / 2**20:.1f} MiB")
    if size > LIMIT:
        raise SystemExit(f"more than {LIMIT // 2**20} MiB cannot be carried")
    return 0


if __name__ == "__main__":
    sys.exit(main())
