#define MAPPA_ISA avx512
#define MAPPA_LANES 16
#define MAPPA_ROWS 14
#define MAPPA_SLAB 112
#define MAPPA_PASS 12
#define MAPPA_LORA_TOKENS 56
#include "kernels.inc"
