# SPDX-License-Identifier: Apache-2.0
"""What setup.py decides to build, on toolkits made of files, and what the built module says."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import cuda_toolkit
import kernel_resources
import pytest
import torch
from paths import ROOT

import dynprune_cuda
from dynprune_cuda import _C

pytestmark = pytest.mark.slow  # nvcc is a script here, but a process


def make_toolkit(root, version="13.0", archs="75 80 86 87 89 90 100 110 120", include="include"):
    """A directory that looks like a toolkit, with an nvcc that answers what is asked of it."""
    (root / include).mkdir(parents=True)
    (root / include / "cuda_runtime.h").touch()
    (root / "bin").mkdir()
    nvcc = root / "bin" / "nvcc"
    listing = "\\n".join(f"compute_{arch}" for arch in archs.split())
    nvcc.write_text(
        "#!/bin/sh\n"
        "case $1 in\n"
        f"  --version) echo 'Cuda compilation tools, release {version}, V{version}.88' ;;\n"
        f"  --list-gpu-arch) printf '{listing}\\n' ;;\n"
        f"  --dryrun) echo '#$ TOP={root}/bin/..' >&2 ;;\n"
        "esac\n"
    )
    nvcc.chmod(0o755)
    return root


@pytest.fixture
def empty_machine(tmp_path, monkeypatch):
    """A machine without any toolkit, as an environment."""
    monkeypatch.setattr(cuda_toolkit, "USUAL_PLACE", tmp_path / "usr-local")
    monkeypatch.setattr(cuda_toolkit, "package_directories", lambda: [tmp_path / "site-packages"])
    return {"PATH": str(tmp_path / "path")}


def test_nothing_found_on_an_empty_machine(empty_machine):
    assert cuda_toolkit.find("13", empty_machine) == (None, [])


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX"])
def test_toolkit_named_by_a_variable(empty_machine, tmp_path, variable):
    root = make_toolkit(tmp_path / "toolkit")
    found, passed_over = cuda_toolkit.find("13", empty_machine | {variable: str(root)})
    assert found == cuda_toolkit.Toolkit(root, "13.0")
    assert passed_over == []


@pytest.mark.parametrize(
    "place",
    ["usr-local/cuda", "usr-local/cuda-13.0", "site-packages/nvidia/cu13"],
)
def test_toolkit_in_a_usual_place(empty_machine, tmp_path, place):
    root = make_toolkit(tmp_path / place)
    assert cuda_toolkit.find("13", empty_machine)[0] == cuda_toolkit.Toolkit(root, "13.0")


def test_newest_versioned_directory_comes_first(empty_machine, tmp_path):
    make_toolkit(tmp_path / "usr-local" / "cuda-13.0")
    newer = make_toolkit(tmp_path / "usr-local" / "cuda-13.2", version="13.2")
    assert cuda_toolkit.find("13", empty_machine)[0] == cuda_toolkit.Toolkit(newer, "13.2")


def test_wrapper_script_on_the_path_leads_to_its_toolkit(empty_machine, tmp_path):
    root = make_toolkit(tmp_path / "opt" / "toolkit")
    wrapper = tmp_path / "path" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {root}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    found, passed_over = cuda_toolkit.find("13", empty_machine)
    assert found == cuda_toolkit.Toolkit(root, "13.0")
    assert passed_over == []


def test_link_on_the_path_leads_to_its_toolkit(empty_machine, tmp_path):
    root = make_toolkit(tmp_path / "opt" / "toolkit")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "nvcc").symlink_to(root / "bin" / "nvcc")
    assert cuda_toolkit.find("13", empty_machine)[0] == cuda_toolkit.Toolkit(root, "13.0")


def test_headers_may_lie_in_a_target_directory(empty_machine, tmp_path):
    include = "targets/x86_64-linux/include"
    root = make_toolkit(tmp_path / "conda", include=include)
    (root / "targets/x86_64-linux/lib").mkdir()
    found, _ = cuda_toolkit.find("13", empty_machine | {"CONDA_PREFIX": str(root)})
    assert found.include == root / include
    assert found.libraries == [root / "targets/x86_64-linux/lib"]


def test_passed_over_places_say_why(empty_machine, tmp_path):
    """Headers without nvcc, nvcc without headers, a broken nvcc, another major version."""
    bare = tmp_path / "site-packages" / "nvidia" / "cu13"
    (bare / "include").mkdir(parents=True)
    no_headers = make_toolkit(tmp_path / "no-headers")
    (no_headers / "include" / "cuda_runtime.h").unlink()
    broken = make_toolkit(tmp_path / "usr-local" / "cuda")
    (broken / "bin" / "nvcc").chmod(0o644)
    older = make_toolkit(tmp_path / "older", version="12.8")
    env = empty_machine | {"CUDA_HOME": str(no_headers), "CUDA_PATH": str(older)}
    found, passed_over = cuda_toolkit.find("13", env)
    assert found is None
    assert passed_over == [
        f"{no_headers} (CUDA_HOME): no include/cuda_runtime.h",
        f"{older} (CUDA_PATH): CUDA 12.8, but this torch needs CUDA 13",
        f"{broken} (usual place): its nvcc does not run",
        f"{bare} (pip wheels): no bin/nvcc",
    ]


def test_a_variable_that_points_nowhere_is_told(empty_machine):
    found, passed_over = cuda_toolkit.find("13", empty_machine | {"CUDA_HOME": "/nowhere"})
    assert found is None
    assert passed_over == ["/nowhere (CUDA_HOME): no bin/nvcc"]


def test_a_later_place_serves_where_the_variable_is_wrong(empty_machine, tmp_path):
    root = make_toolkit(tmp_path / "usr-local" / "cuda")
    decision = cuda_toolkit.decide("13.0", empty_machine | {"CUDA_HOME": "/nowhere"})
    assert decision.toolkit == cuda_toolkit.Toolkit(root, "13.0")
    assert "not /nowhere (CUDA_HOME): no bin/nvcc" in decision.message


def test_cuda_is_built_where_torch_and_toolkit_agree(empty_machine, tmp_path):
    root = make_toolkit(tmp_path / "toolkit", version="13.2")
    for request in ("", "1"):
        env = empty_machine | {"CUDA_HOME": str(root), "DYNPRUNE_CUDA": request}
        decision = cuda_toolkit.decide("13.0", env)
        assert decision.toolkit == cuda_toolkit.Toolkit(root, "13.2")
        assert decision.message == f"building CPU and CUDA with CUDA 13.2 from {root}"


def test_cpu_only_on_request(empty_machine, tmp_path):
    root = make_toolkit(tmp_path / "toolkit")
    env = empty_machine | {"CUDA_HOME": str(root), "DYNPRUNE_CUDA": "0"}
    assert cuda_toolkit.decide("13.0", env) == cuda_toolkit.Decision(
        None, "building CPU only: DYNPRUNE_CUDA=0"
    )


def test_cpu_only_for_a_cpu_build_of_torch(empty_machine, tmp_path):
    root = make_toolkit(tmp_path / "toolkit")
    decision = cuda_toolkit.decide(None, empty_machine | {"CUDA_HOME": str(root)})
    assert decision.toolkit is None
    assert decision.message.startswith("building CPU only: this torch is a CPU build")


def test_cpu_only_without_a_toolkit_says_what_is_missing(empty_machine):
    decision = cuda_toolkit.decide("13.0", empty_machine)
    assert decision.toolkit is None
    assert decision.message.startswith(
        "building CPU only: this torch needs CUDA 13.0 and no matching toolkit was found"
    )
    assert "nvidia-cuda-nvcc" in decision.message


@pytest.mark.parametrize(
    ("torch_cuda", "why", "what_to_install"),
    [
        ("13.0", "no matching toolkit was found", "nvidia-cuda-nvcc"),
        (None, "CPU build", "CUDA build of torch"),
    ],
)
def test_cuda_on_request_must_be_possible(empty_machine, torch_cuda, why, what_to_install):
    with pytest.raises(cuda_toolkit.ToolkitError) as raised:
        cuda_toolkit.decide(torch_cuda, empty_machine | {"DYNPRUNE_CUDA": "1"})
    message = str(raised.value)
    assert message.startswith("DYNPRUNE_CUDA=1, but")
    assert why in message
    assert what_to_install in message


def test_the_switch_takes_nothing_else(empty_machine):
    with pytest.raises(cuda_toolkit.ToolkitError, match="DYNPRUNE_CUDA must be 0, 1 or unset"):
        cuda_toolkit.decide("13.0", empty_machine | {"DYNPRUNE_CUDA": "yes"})


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("", []),
        ("9.0", ["9.0"]),
        ("8.0;9.0+PTX", ["8.0", "9.0+PTX"]),
        (" 8.0  9.0a;10.0 ", ["8.0", "9.0a", "10.0"]),
        ("Hopper;Ada", ["Hopper", "Ada"]),
    ],
)
def test_architecture_list_is_read_as_torch_reads_it(text, archs):
    assert cuda_toolkit.parse_architectures(text) == archs


def test_default_architectures_are_those_the_toolkit_knows(tmp_path):
    new = cuda_toolkit.inspect(make_toolkit(tmp_path / "new"))
    assert cuda_toolkit.default_architectures(new) == [
        "8.0",
        "8.6",
        "8.9",
        "9.0",
        "10.0",
        "11.0",
        "12.0+PTX",
    ]
    before = cuda_toolkit.inspect(make_toolkit(tmp_path / "12.8", archs="80 86 89 90 100 101 120"))
    assert "11.0" not in cuda_toolkit.default_architectures(before)
    old = cuda_toolkit.inspect(make_toolkit(tmp_path / "old", archs="50 70 80 86 87 89 90"))
    assert cuda_toolkit.default_architectures(old) == ["8.0", "8.6", "8.9", "9.0+PTX"]
    ancient = cuda_toolkit.inspect(make_toolkit(tmp_path / "ancient", archs="35 50"))
    with pytest.raises(cuda_toolkit.ToolkitError, match="knows none of"):
        cuda_toolkit.default_architectures(ancient)


def test_setup_stops_with_the_message_alone():
    """A refused build ends with one sentence, not with a traceback."""
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "DYNPRUNE_CUDA": "maybe"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("DYNPRUNE_CUDA must be 0, 1 or unset, got 'maybe'\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("value", "message"),
    [("yes", "DYNPRUNE_LINEINFO must be 0, 1 or unset, got 'yes'"), ("0", ""), ("1", "")],
)
def test_line_info_is_only_there_on_request(value, message):
    code = "import setuptools; setuptools.setup = lambda **k: print(*(k['ext_modules'][0].extra_"
    code += "compile_args['nvcc'])); exec(open('setup.py').read(), {'__file__': 'setup.py'})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "DYNPRUNE_CUDA": "0", "DYNPRUNE_LINEINFO": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == bool(message) and message in done.stderr
    assert ("-lineinfo" in done.stdout.split()) == (value == "1")


def test_build_info_says_what_was_built():
    info = dynprune_cuda.build_info()
    assert info["version"] == importlib.metadata.version("dynprune_cuda")
    assert info["torch"] == torch.__version__
    assert info["built_with_torch"] == _C.TORCH_VERSION
    assert info["cuda"] == _C.CUDA_VERSION
    assert info["cuda_architectures"] == _C.CUDA_ARCHITECTURES
    assert bool(info["cuda"]) == bool(cuda_toolkit.parse_architectures(_C.CUDA_ARCHITECTURES))
    assert info["compiler"].split()[0] in ("GCC", "Clang")


def test_extension_serves_later_torch_and_python():
    """abi3, and none of the libraries that change with every torch: built once, loads on 2.11+."""
    path = Path(_C.__file__)
    assert path.name == "_C.abi3.so"
    content = path.read_bytes()
    assert b"libtorch_cpu.so" in content
    assert (b"libtorch_cuda.so" in content) == bool(_C.CUDA_VERSION)
    assert b"libtorch_python" not in content
    assert b"libpython" not in content


def test_a_module_is_at_most_7_mb_for_each_architecture():
    archs = max(1, len(cuda_toolkit.parse_architectures(_C.CUDA_ARCHITECTURES)))
    assert Path(_C.__file__).stat().st_size <= kernel_resources.MOST_MODULE_BYTES * archs


def test_package_is_typed():
    assert (Path(dynprune_cuda.__file__).parent / "py.typed").is_file()


PTXAS_LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8dynprune12_GLOBAL__N_11kIfEEvPKT_' for 'sm_80'
ptxas info    : Function properties for _ZN8dynprune12_GLOBAL__N_11kIfEEvPKT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 1024 bytes smem, 376 bytes cmem[0]
ptxas info    : Compile time = 2.0 ms
ptxas info    : Compiling entry function '_ZN8dynprune12_GLOBAL__N_11kIfEEvPKT_' for 'sm_90'
ptxas info    : Function properties for _ZN8dynprune12_GLOBAL__N_11kIfEEvPKT_
    8 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
"""


def test_resource_figures_are_read_from_ptxas():
    kernel = "_ZN8dynprune12_GLOBAL__N_11kIfEEvPKT_"
    rows = kernel_resources.parse_ptxas(PTXAS_LOG)
    assert rows == [
        kernel_resources.Resources(kernel, "sm_80", 10, 1024, 0, 0),
        kernel_resources.Resources(kernel, "sm_90", 255, 0, 32, 8),
    ]
    assert kernel_resources.table(rows).splitlines()[2] == "| `k<float>` | 10 | 255 | 1024 | 32 |"
