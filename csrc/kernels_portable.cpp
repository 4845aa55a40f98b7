#define MAPPA_ISA portable
#define MAPPA_LANES 4
#define MAPPA_ROWS 4
#define MAPPA_SLAB 112
#define MAPPA_PASS 32
#define MAPPA_LORA_TOKENS 32
#include "kernels.inc"
