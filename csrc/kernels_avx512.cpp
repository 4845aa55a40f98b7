#define MAPPA_ISA avx512
#define MAPPA_LANES 16
#define MAPPA_ROWS 14
#define MAPPA_SLAB 168
#define MAPPA_BLOCKS 12
#include "kernels.inc"
