"""Triton kernels, for CUDA (sm_80, sm_90, sm_100) and ROCm (gfx942). Imported only where they run or are compiled."""
