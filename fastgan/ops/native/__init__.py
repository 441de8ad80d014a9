"""The native engine: library convolutions or our own in C++, with fused kernels between them; see docs/engines.md."""
