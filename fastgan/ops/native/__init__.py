"""Library convolutions, or GEMMs of gathered patches, with fused kernels in C++ around them; see docs/engines.md."""
