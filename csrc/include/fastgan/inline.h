// FASTGAN_INLINE: a function for both sides, inlined everywhere. `static`, so that the copies of it that are compiled
// for different processors never stand in for one another.
#pragma once

#ifdef __CUDACC__
#define FASTGAN_INLINE static __host__ __device__ __forceinline__
#else
#define FASTGAN_INLINE static inline
#endif
