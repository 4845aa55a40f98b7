// Which instruction set's kernels run. Chosen once, by what the processor has.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace mappa {

// The kernels in use: those of the widest set this machine has, unless `select` named another.
const Kernels& kernels();

// Names this machine can run, the widest first.
std::vector<std::string> instruction_sets();

// Use the named set from now on. Throws std::invalid_argument where this machine cannot run it.
void select(const std::string& name);

}  // namespace mappa
