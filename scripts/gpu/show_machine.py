# SPDX-License-Identifier: Apache-2.0
"""Prints versions and which rivals can be imported; fails if --gpu is given and cannot be used."""

from __future__ import annotations

import argparse
import importlib
import sys

import torch

import dynprune_cuda

RIVALS = ("liger_kernel.transformers", "cub_topk", "quack", "cupy", "triton")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    return parser


def main() -> None:
    options = make_parser().parse_args()
    print(sys.version, dynprune_cuda.__file__, dynprune_cuda.build_info(), sep="\n")
    for name in RIVALS:
        try:
            importlib.import_module(name)
            print(name, "is there")
        except Exception as error:  # whatever a package raises where it cannot run
            print(f"skipped: {name} cannot be imported: {str(error).splitlines()[:1]}")
    if options.gpu:
        if not dynprune_cuda.build_info()["cuda"]:
            raise SystemExit("dynprune_cuda was built without CUDA")
        print(torch.cuda.get_device_properties(0), torch.zeros(1, device="cuda"))


if __name__ == "__main__":
    main()
