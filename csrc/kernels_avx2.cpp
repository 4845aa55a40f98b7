#define MAPPA_ISA avx2
#define MAPPA_LANES 8
#define MAPPA_ROWS 6
#define MAPPA_SLAB 120
#define MAPPA_BLOCKS 24
#include "kernels.inc"
