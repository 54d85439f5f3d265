// Kernels that are wrong, each in one way, and one that is right. Every mode of the shim must catch what it claims to:
// test_faults.py says which. FAULT chooses; 0 is the right one.
//
// Each block reverses 64 words of its own: out[block][i] = in[block][63 - i].
#ifndef FAULT
#error "FAULT is not set"
#endif
#define NONE 0
#define MISSING_BARRIER 1
#define READ_PAST_GLOBAL 2
#define WRITE_PAST_GLOBAL 3
#define READ_PAST_SHARED 4
#define WRITE_PAST_SHARED 5
#define READ_PAST_DYNAMIC 6
#define MISALIGNED 7
#define UNINITIALISED 8
#define OVERFLOWING 9
#define DIVERGENT_BARRIER 10
#define ENDED_BEFORE_BARRIER 11
#define LANE_NOT_IN_MASK 12
#define ENDED_LANE_IN_MASK 13
#define MASKS_DIFFER 14
#define TRAP 15
#define WARP_RACE 16

extern "C" __global__ void reverse(const unsigned* __restrict__ in, unsigned* __restrict__ out, int last) {
  __shared__ __align__(16) unsigned words[64];
  extern __shared__ unsigned scratch[];
  const int thread = threadIdx.x;
  in += blockIdx.x * 64;
  out += blockIdx.x * 64;

#if FAULT == READ_PAST_GLOBAL
  words[thread] = in[thread + (thread == 63)];
#elif FAULT == UNINITIALISED
  if (thread != 5) words[thread] = in[thread];
#else
  words[thread] = in[thread];
#endif
  scratch[thread] = in[thread];
#if FAULT == WRITE_PAST_SHARED
  if (thread == last) words[thread + 1] = 0;
#endif

#if FAULT == DIVERGENT_BARRIER
  if (thread < 32) __syncthreads();
  else __ballot_sync(0xffffffffu, 1);
#elif FAULT == ENDED_BEFORE_BARRIER
  if (thread == last) return;
  __syncthreads();
#elif FAULT == WARP_RACE
  __syncwarp();
#elif FAULT != MISSING_BARRIER
  __syncthreads();
#endif

  unsigned value = words[63 - thread];
#if FAULT == READ_PAST_SHARED
  if (thread == last) value = words[last + 1];
#elif FAULT == READ_PAST_DYNAMIC
  if (thread == last) value = scratch[last + 1];
#elif FAULT == MISALIGNED
  if (thread == last) value = reinterpret_cast<const uint4*>(words + 1)->y;
#elif FAULT == OVERFLOWING
  int large = 0x7fffffff - last + thread;
  large += thread == last;
  value += large;
#elif FAULT == LANE_NOT_IN_MASK
  value = __shfl_sync(0x7fffffffu, value, 0);
#elif FAULT == ENDED_LANE_IN_MASK
  if (thread == last) return;
  value = __shfl_sync(0xffffffffu, value, 0);
#elif FAULT == MASKS_DIFFER
  value = __shfl_sync(thread & 1 ? 0xffffffffu : 0x7fffffffu, value, 0);
#elif FAULT == TRAP
  if (thread == last) __trap();
#endif
#if FAULT == WRITE_PAST_GLOBAL
  if (thread == last) out[thread + 1] = value;
#endif
  out[thread] = value;
}
