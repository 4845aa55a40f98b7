#define MAPPA_ISA avx2
#define MAPPA_LANES 8
#define MAPPA_ROWS 6
#define MAPPA_SLAB 120
#define MAPPA_PASS 24
#define MAPPA_LORA_TOKENS 48
#include "kernels.inc"
