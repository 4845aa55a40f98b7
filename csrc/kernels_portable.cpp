#define MAPPA_ISA portable
#define MAPPA_LANES 4
#define MAPPA_ROWS 4
#define MAPPA_SLAB 112
#define MAPPA_BLOCKS 32
#include "kernels.inc"
