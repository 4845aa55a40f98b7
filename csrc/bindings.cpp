// mappa_kernels._C: what Python sees. Arguments are checked in Python, by name; here only types and places are.
#include <torch/csrc/utils/pybind.h>

#include "advantage.h"
#include "lora.h"
#include "select.h"
#include "sweep.h"

namespace py = pybind11;

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("sweep", &mappa::sweep, unlocked);
  m.def("weight_gradient", &mappa::weight_gradient, unlocked);
  m.def("lora_forward", &mappa::lora_forward, unlocked);
  m.def("lora_backward", &mappa::lora_backward, unlocked);
  m.def("action_returns", &mappa::action_returns, unlocked);
  m.def("merge_statistics", &mappa::merge_statistics, unlocked);
  m.def("whiten", &mappa::whiten, unlocked);
  m.def("advantages", &mappa::advantages, unlocked);
  m.def("sound", &mappa::sound, unlocked);
  m.def("bfloat16_path", &mappa::bfloat16_path);
  m.def("set_bfloat16_path", &mappa::set_bfloat16_path);
  m.def("instruction_sets", &mappa::instruction_sets);
  m.def("instruction_set", [] { return std::string(mappa::kernels().name); });
  m.def("select_instruction_set", &mappa::select);
}
