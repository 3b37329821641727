/* A register as a vector of words or of elements, the streaming store and the CPU probe: all the C there is.
 *
 * The vector types are GCC's and Clang's, in the native width of the instruction set that this file is compiled for.
 * Another compiler gets "vectors" of one word or one element, and the same code runs.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
#define CD_BYTES 64
#elif defined(__AVX2__)
#define CD_BYTES 32
#else
#define CD_BYTES 16
#endif

/* Packed bits are bytes, least significant bit first, on every machine: only these four know the byte order. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
static inline uint32_t cd_order32(uint32_t v) { return __builtin_bswap32(v); }
static inline uint64_t cd_order64(uint64_t v) { return __builtin_bswap64(v); }
#else
static inline uint32_t cd_order32(uint32_t v) { return v; }
static inline uint64_t cd_order64(uint64_t v) { return v; }
#endif
static inline uint32_t cd_load_bits32(const void *p) {
  uint32_t v;
  memcpy(&v, p, 4);
  return cd_order32(v);
}
static inline uint64_t cd_load_bits64(const void *p) {
  uint64_t v;
  memcpy(&v, p, 8);
  return cd_order64(v);
}
static inline void cd_store_bits64(void *p, uint64_t v) {
  v = cd_order64(v);
  memcpy(p, &v, 8);
}

#if defined(__GNUC__)

#define CD_VECTOR(type, name) typedef type name __attribute__((vector_size(CD_BYTES)))
CD_VECTOR(uint64_t, cd_word);
CD_VECTOR(uint32_t, cd_u32);
CD_VECTOR(float, cd_f32);
CD_VECTOR(double, cd_f64);
typedef cd_word cd_memory __attribute__((aligned(1), may_alias));

static inline int cd_lowest_bit(uint64_t v) { return __builtin_ctzll(v); }
static inline cd_word cd_load(const void *p) { return *(const cd_memory *)p; }
static inline void cd_store(void *p, cd_word v) { *(cd_memory *)p = v; }
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
static inline void cd_store_bits(void *p, cd_word v) {
  for (int i = 0; i < CD_BYTES / 8; i++) cd_store_bits64((char *)p + 8 * i, v[i]);
}
#else
#define cd_store_bits cd_store
#endif
static inline cd_word cd_zero(void) { return (cd_word){0}; }
static inline cd_f32 cd_load_f32(const void *p) { return (cd_f32)cd_load(p); }
static inline cd_f64 cd_load_f64(const void *p) { return (cd_f64)cd_load(p); }
static inline void cd_store_f32(void *p, cd_f32 v) { cd_store(p, (cd_word)v); }
static inline void cd_store_f64(void *p, cd_f64 v) { cd_store(p, (cd_word)v); }
static inline cd_f32 cd_fill_f32(float v) { return (cd_f32){0} + v; }
static inline cd_f64 cd_fill_f64(double v) { return (cd_f64){0} + v; }

#if CD_BYTES == 64
/* Here GCC 12 needs the intrinsics: it does not find the mask registers by itself. */
typedef uint32_t cd_keep;
static inline int cd_any(cd_word v) { return _mm512_test_epi64_mask((__m512i)v, (__m512i)v) != 0; }
static inline cd_keep cd_load_keep(const void *bits) { return cd_load_bits32(bits); }
static inline cd_f32 cd_kept_f32(cd_f32 v, cd_keep keep, size_t i) { return _mm512_maskz_mov_ps((__mmask16)(keep >> 16 * i), v); }
static inline cd_f64 cd_kept_f64(cd_f64 v, cd_keep keep, size_t i) { return _mm512_maskz_mov_pd((__mmask8)(keep >> 8 * i), v); }
#else
/* Every lane holds the same 32 bits, looks at its own, and is all ones where that is set. */
typedef cd_u32 cd_keep;
#if CD_BYTES == 32
#define CD_LANES32 {1, 2, 4, 8, 16, 32, 64, 128}
#define CD_LANES64 {1, 1, 2, 2, 4, 4, 8, 8}
#else
#define CD_LANES32 {1, 2, 4, 8}
#define CD_LANES64 {1, 1, 2, 2}
#endif
static inline int cd_any(cd_word v) {
  uint64_t any = 0;
  for (int i = 0; i < CD_BYTES / 8; i++) any |= v[i];
  return any != 0;
}
static inline cd_keep cd_load_keep(const void *bits) { return (cd_keep){0} + cd_load_bits32(bits); }
static inline cd_f32 cd_kept_f32(cd_f32 v, cd_keep keep, size_t i) {
  cd_u32 bit = (cd_u32)CD_LANES32 << (uint32_t)(i * (CD_BYTES / 4));
  return (cd_f32)((cd_u32)v & (cd_u32)((keep & bit) == bit));
}
static inline cd_f64 cd_kept_f64(cd_f64 v, cd_keep keep, size_t i) {
  cd_u32 bit = (cd_u32)CD_LANES64 << (uint32_t)(i * (CD_BYTES / 8));
  return (cd_f64)((cd_u32)v & (cd_u32)((keep & bit) == bit));
}
#endif

#else /* no vector types: one word, one element */

typedef uint64_t cd_word;
typedef float cd_f32;
typedef double cd_f64;
typedef uint32_t cd_keep;

static inline int cd_lowest_bit(uint64_t v) {
  int i = 0;
  for (; !(v & 1); v >>= 1) i++;
  return i;
}
static inline cd_word cd_load(const void *p) { return *(const cd_word *)p; }
static inline void cd_store(void *p, cd_word v) { *(cd_word *)p = v; }
static inline void cd_store_bits(void *p, cd_word v) { cd_store_bits64(p, v); }
static inline cd_word cd_zero(void) { return 0; }
static inline int cd_any(cd_word v) { return v != 0; }
static inline cd_f32 cd_load_f32(const void *p) { return *(const cd_f32 *)p; }
static inline cd_f64 cd_load_f64(const void *p) { return *(const cd_f64 *)p; }
static inline void cd_store_f32(void *p, cd_f32 v) { *(cd_f32 *)p = v; }
static inline void cd_store_f64(void *p, cd_f64 v) { *(cd_f64 *)p = v; }
static inline cd_f32 cd_fill_f32(float v) { return v; }
static inline cd_f64 cd_fill_f64(double v) { return v; }
static inline cd_keep cd_load_keep(const void *bits) { return cd_load_bits32(bits); }
static inline cd_f32 cd_kept_f32(cd_f32 v, cd_keep keep, size_t i) {
  uint32_t u;
  memcpy(&u, &v, 4);
  u &= 0 - (keep >> i & 1);
  memcpy(&v, &u, 4);
  return v;
}
static inline cd_f64 cd_kept_f64(cd_f64 v, cd_keep keep, size_t i) {
  uint64_t u;
  memcpy(&u, &v, 8);
  u &= 0 - (uint64_t)(keep >> i & 1);
  memcpy(&v, &u, 8);
  return v;
}
#endif

/* 64 bytes to an aligned line of memory, past the caches where the machine can. Follow the last one with cd_stream_end. */
static inline void cd_stream_line(void *to, const void *from) {
#if defined(__GNUC__) && CD_BYTES == 64
  _mm512_stream_si512((__m512i *)to, (__m512i)cd_load(from));
#elif defined(__GNUC__) && CD_BYTES == 32
  for (int i = 0; i < 2; i++) _mm256_stream_si256((__m256i *)to + i, (__m256i)cd_load((const char *)from + 32 * i));
#elif defined(__GNUC__) && defined(__SSE2__)
  for (int i = 0; i < 4; i++) _mm_stream_si128((__m128i *)to + i, (__m128i)cd_load((const char *)from + 16 * i));
#else
  memcpy(to, from, 64);
#endif
}
static inline void cd_stream_end(void) {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

/* The CPU probe: what the wider builds were compiled for (see INSTRUCTION_SETS in setup.py), the CPU and its system must have. */
static inline int cd_cpu_has_avx2(void) {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
#else
  return 0;
#endif
}
static inline int cd_cpu_has_avx512(void) {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
#else
  return 0;
#endif
}
