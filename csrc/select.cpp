#include "select.h"

#include <atomic>
#include <stdexcept>

namespace mappa {
namespace {

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> tables;
#ifdef MAPPA_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    tables.push_back(&kernels_avx512());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(&kernels_avx2());
#endif
  tables.push_back(&kernels_portable());
  return tables;
}

std::atomic<const Kernels*>& current() {
  static std::atomic<const Kernels*> table{usable().front()};
  return table;
}

}  // namespace

const Kernels& kernels() { return *current().load(); }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* table : usable()) names.emplace_back(table->name);
  return names;
}

void select(const std::string& name) {
  for (const Kernels* table : usable())
    if (name == table->name) return current().store(table);
  throw std::invalid_argument("instruction set " + name + " is not one this machine has");
}

}  // namespace mappa
