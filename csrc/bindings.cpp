// mappa_kernels._C: what Python sees. Arguments are checked in Python, by name; here only types and places are.
#include <torch/csrc/utils/pybind.h>

#include "select.h"
#include "sweep.h"

namespace py = pybind11;

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  m.def("sweep", &mappa::sweep, unlocked);
  m.def("weight_gradient", &mappa::weight_gradient, unlocked);
  m.def("bfloat16_path", &mappa::bfloat16_path);
  m.def("set_bfloat16_path", &mappa::set_bfloat16_path);
  m.def("instruction_sets", &mappa::instruction_sets);
  m.def("instruction_set", [] { return std::string(mappa::kernels().name); });
  m.def("select_instruction_set", &mappa::select);
}
