// SPDX-License-Identifier: Apache-2.0
// The Python module dynprune_cuda._C. Importing it loads this library, which registers the
// operators of the other files here. The module itself holds constants: what was built, and by
// which names the ops number their choices and result columns. Limited API: one binary for Python
// >= 3.10.
#include <Python.h>

#include <string>

#include "shared/ranking_spec.h"
#include "shared/step_contract.h"

#if defined(__clang__)
#define DYNPRUNE_COMPILER "Clang " __VERSION__
#else
#define DYNPRUNE_COMPILER "GCC " __VERSION__
#endif

namespace {

// The names of the rankings that ops take as numbers, in order, separated by spaces.
std::string ranking_names() {
  std::string names;
  for (int i = 0; i < dynprune::kNumRankings; i++) {
    if (i > 0) names += ' ';
    names += dynprune::ranking_name(static_cast<dynprune::RankingKind>(i));
  }
  return names;
}

int add_constants(PyObject* module) {
  const char* const constants[][2] = {
      {"TORCH_VERSION", DYNPRUNE_TORCH_VERSION},
      {"CUDA_VERSION", DYNPRUNE_CUDA_VERSION},              // "" when built for the CPU only
      {"CUDA_ARCHITECTURES", DYNPRUNE_CUDA_ARCHITECTURES},  // as in TORCH_CUDA_ARCH_LIST
      {"COMPILER", DYNPRUNE_COMPILER},
      // Names in the order of the enums in shared/step_contract.h.
      {"SCORES", dynprune::kScoreNames},
      {"REDUCTIONS", dynprune::kReductionNames},
      {"ROW_REDUCTIONS", dynprune::kRowReductionNames},
      {"GRADIENT_TIMES", dynprune::kGradientTimeNames},
      {"STEP_COLUMNS", dynprune::kStepColumnNames},
      {"SAVED_COLUMNS", dynprune::kSavedColumnNames},
  };
  for (const auto& [name, value] : constants) {
    if (PyModule_AddStringConstant(module, name, value) != 0) return -1;
  }
  return PyModule_AddStringConstant(module, "RANKINGS", ranking_names().c_str());
}

PyModuleDef_Slot slots[] = {
    {Py_mod_exec, reinterpret_cast<void*>(add_constants)},
    {0, nullptr},
};

PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, 0, nullptr, slots, nullptr, nullptr, nullptr,
};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModuleDef_Init(&definition); }
