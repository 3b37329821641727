/* Vector types, loads and stores, streaming stores, and CPU detection.
 *
 * The vector types are those of GCC and Clang, in the native width of the instruction set that this file is compiled for.
 * With other compilers, the same code uses "vectors" of one 64-bit integer, one element, or two half-precision elements.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) || defined(__clang__) /* clang-cl defines only the latter */
#define CD_HAS_VECTORS 1
#else
#define CD_HAS_VECTORS 0
#endif
#if CD_HAS_VECTORS && (defined(__x86_64__) || defined(__i386__))
#include <immintrin.h>
#elif CD_HAS_VECTORS && defined(__AARCH64EL__)
#include <arm_neon.h>
#endif
#if defined(__AVX512VL__) /* with vectors of 32 bytes, dropout of float32 at p = 0.1 takes 1.15 times as long */
#define CD_BYTES 64
#elif defined(__AVX2__)
#define CD_BYTES 32
#else
#define CD_BYTES 16
#endif

/* Packed bits are stored least significant bit first on every machine. Only cd_order32, cd_order64 and cd_store_bits depend
 * on the byte order. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
static inline uint32_t cd_order32(uint32_t v) { return __builtin_bswap32(v); }
static inline uint64_t cd_order64(uint64_t v) { return __builtin_bswap64(v); }
#else
static inline uint32_t cd_order32(uint32_t v) { return v; }
static inline uint64_t cd_order64(uint64_t v) { return v; }
#endif
static inline uint64_t cd_reverse_bytes64(uint64_t v) {
#if CD_HAS_VECTORS
  return __builtin_bswap64(v);
#else
  v = v >> 8 & 0x00FF00FF00FF00FF | (v & 0x00FF00FF00FF00FF) << 8;
  v = v >> 16 & 0x0000FFFF0000FFFF | (v & 0x0000FFFF0000FFFF) << 16;
  return v >> 32 | v << 32;
#endif
}
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
static inline void cd_store_bits32(void *p, uint32_t v) {
  v = cd_order32(v);
  memcpy(p, &v, 4);
}
static inline void cd_store_bits64(void *p, uint64_t v) {
  v = cd_order64(v);
  memcpy(p, &v, 8);
}

#if CD_HAS_VECTORS

#define CD_VECTOR(type, name) typedef type name __attribute__((vector_size(CD_BYTES)))
CD_VECTOR(uint64_t, cd_u64);
CD_VECTOR(uint32_t, cd_u32);
CD_VECTOR(uint16_t, cd_u16);
CD_VECTOR(int16_t, cd_i16);
CD_VECTOR(float, cd_f32);
CD_VECTOR(double, cd_f64);
typedef cd_u64 cd_memory __attribute__((aligned(1), may_alias));

#define CD_LANES(comparison) ((cd_u32)(comparison)) /* all ones in lanes where the comparison is true */
#define CD_FILL(type, value) ((type){0} + (value))
static inline cd_u64 cd_load(const void *p) { return *(const cd_memory *)p; }
static inline void cd_store(void *p, cd_u64 v) { *(cd_memory *)p = v; }
static inline cd_u32 cd_load_u32(const void *p) { return (cd_u32)cd_load(p); }
static inline cd_f32 cd_load_f32(const void *p) { return (cd_f32)cd_load(p); }
static inline cd_f64 cd_load_f64(const void *p) { return (cd_f64)cd_load(p); }
static inline void cd_store_u32(void *p, cd_u32 v) { cd_store(p, (cd_u64)v); }
static inline void cd_store_f32(void *p, cd_f32 v) { cd_store(p, (cd_u64)v); }
static inline void cd_store_f64(void *p, cd_f64 v) { cd_store(p, (cd_u64)v); }
static inline cd_f32 cd_select_f32(cd_u32 lanes, cd_f32 v, float other) {
  return (cd_f32)(((cd_u32)v & lanes) | ((cd_u32)CD_FILL(cd_f32, other) & ~lanes));
}
static inline cd_u32 cd_at_least_16(cd_u32 v, int16_t bound) { return (cd_u32)((cd_i16)v > (int16_t)(bound - 1)); }
static inline cd_u32 cd_bits_of(cd_f32 v) { return (cd_u32)v; }
static inline cd_f32 cd_float_of(cd_u32 v) { return (cd_f32)v; }
static inline int cd_lowest_bit(uint64_t v) { return __builtin_ctzll(v); }
static inline void cd_store_bits(void *p, cd_u64 v) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  for (int i = 0; i < CD_BYTES / 8; i++) cd_store_bits64((char *)p + 8 * i, v[i]);
#else
  cd_store(p, v);
#endif
}

static inline int cd_any(cd_u64 v) {
#if defined(__AVX512VL__)
  return _mm512_test_epi64_mask((__m512i)v, (__m512i)v) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)v, (__m256i)v);
#elif defined(__SSE2__)
  return _mm_movemask_epi8(_mm_cmpeq_epi32((__m128i)v, _mm_setzero_si128())) != 0xFFFF;
#else
  return (v[0] | v[1]) != 0;
#endif
}

/* cd_kept_*(v, keep, i): return v in the lanes whose keep bit is set, and 0 in the other lanes. v is vector i of a step; the
 * 4 bytes at `keep` are the keep bits of the step. Lanes are not multiplied by 0, because this would not remove a NaN. */
#if defined(__AVX512VL__)
/* These functions use intrinsics, because GCC 12 does not use mask registers for the code below. */
static inline cd_f32 cd_kept_f32(cd_f32 v, const uint8_t *keep, size_t i) {
  return _mm512_maskz_mov_ps((__mmask16)(cd_load_bits32(keep) >> 16 * i), v);
}
static inline cd_f64 cd_kept_f64(cd_f64 v, const uint8_t *keep, size_t i) { return _mm512_maskz_mov_pd(keep[i], v); }
static inline void cd_fill_bit_masks(void) {}
#else
/* All keep bits of the step are copied to each lane, and each lane tests the bit of its element. */
#if CD_BYTES == 32
#define CD_LANE_BITS_32 {1, 2, 4, 8, 16, 32, 64, 128}
#define CD_LANE_BITS_64 {1, 1, 2, 2, 4, 4, 8, 8}
#else
#define CD_LANE_BITS_32 {1, 2, 4, 8}
#define CD_LANE_BITS_64 {1, 1, 2, 2}
#endif
static inline cd_f32 cd_kept_f32(cd_f32 v, const uint8_t *keep, size_t i) {
  cd_u32 lane_bit = (cd_u32)CD_LANE_BITS_32 << (uint32_t)(i * (CD_BYTES / 4));
  return (cd_f32)((cd_u32)v & CD_LANES((CD_FILL(cd_u32, cd_load_bits32(keep)) & lane_bit) == lane_bit));
}
static inline cd_f64 cd_kept_f64(cd_f64 v, const uint8_t *keep, size_t i) {
  cd_u32 lane_bit = (cd_u32)CD_LANE_BITS_64 << (uint32_t)(i * (CD_BYTES / 8));
  return (cd_f64)((cd_u32)v & CD_LANES((CD_FILL(cd_u32, cd_load_bits32(keep)) & lane_bit) == lane_bit));
}
/* For lanes of 16 bits, a table contains the mask of 8 lanes for each byte of keep bits. Code like that of
 * cd_kept_f32 would take 3 instructions instead of 1, or 7 with SSE2. */
typedef uint16_t cd_bit_masks __attribute__((vector_size(16)));
static cd_bit_masks cd_bit_masks_16[256];
static inline void cd_fill_bit_masks(void) {
  for (int bits = 0; bits < 256; bits++)
    for (int lane = 0; lane < 8; lane++) cd_bit_masks_16[bits][lane] = (uint16_t)-(bits >> lane & 1);
}
static inline cd_u32 cd_kept_16(cd_u32 v, const uint8_t *keep, size_t i) {
#if CD_BYTES == 32
  return v & (cd_u32)_mm256_set_m128i((__m128i)cd_bit_masks_16[keep[2 * i + 1]], (__m128i)cd_bit_masks_16[keep[2 * i]]);
#else
  return v & (cd_u32)cd_bit_masks_16[keep[i]];
#endif
}
#endif

#else /* without vector types, a "vector" is one 64-bit integer, one element, or two half-precision elements */

typedef uint64_t cd_u64;
typedef uint32_t cd_u32;
typedef float cd_f32;
typedef double cd_f64;

#define CD_LANES(comparison) (0 - (uint32_t)(comparison))
#define CD_FILL(type, value) ((type)(value))
static inline cd_u64 cd_load(const void *p) { return *(const cd_u64 *)p; }
static inline void cd_store(void *p, cd_u64 v) { *(cd_u64 *)p = v; }
static inline cd_u32 cd_load_u32(const void *p) { return *(const cd_u32 *)p; }
static inline cd_f32 cd_load_f32(const void *p) { return *(const cd_f32 *)p; }
static inline cd_f64 cd_load_f64(const void *p) { return *(const cd_f64 *)p; }
static inline void cd_store_u32(void *p, cd_u32 v) { *(cd_u32 *)p = v; }
static inline void cd_store_f32(void *p, cd_f32 v) { *(cd_f32 *)p = v; }
static inline void cd_store_f64(void *p, cd_f64 v) { *(cd_f64 *)p = v; }
static inline cd_f32 cd_select_f32(cd_u32 lanes, cd_f32 v, float other) { return lanes ? v : other; }
static inline cd_u32 cd_at_least_16(cd_u32 v, uint32_t bound) {
  return ((v & 0xFFFF) >= bound ? 0xFFFF : 0) | (v >> 16 >= bound ? 0xFFFF0000 : 0);
}
static inline cd_u32 cd_bits_of(cd_f32 v) {
  cd_u32 u;
  memcpy(&u, &v, 4);
  return u;
}
static inline cd_f32 cd_float_of(cd_u32 v) {
  cd_f32 f;
  memcpy(&f, &v, 4);
  return f;
}
static inline int cd_lowest_bit(uint64_t v) {
  int i = 0;
  for (; !(v & 1); v >>= 1) i++;
  return i;
}
static inline void cd_store_bits(void *p, cd_u64 v) { cd_store_bits64(p, v); }
static inline int cd_any(cd_u64 v) { return v != 0; }
static inline cd_f32 cd_kept_f32(cd_f32 v, const uint8_t *keep, size_t i) {
  return cd_float_of(cd_bits_of(v) & (0 - (cd_load_bits32(keep) >> i & 1)));
}
static inline cd_f64 cd_kept_f64(cd_f64 v, const uint8_t *keep, size_t i) {
  uint64_t u;
  memcpy(&u, &v, 8);
  u &= 0 - (uint64_t)(cd_load_bits32(keep) >> i & 1);
  memcpy(&v, &u, 8);
  return v;
}
static inline void cd_fill_bit_masks(void) {}
static inline cd_u32 cd_kept_16(cd_u32 v, const uint8_t *keep, size_t i) {
  uint32_t bits = cd_load_bits32(keep) >> 2 * i;
  return v & ((0 - (bits & 1) & 0xFFFF) | (0 - (bits >> 1 & 1)) << 16);
}
#endif

/* Copy the first of n elements of 2, 4 or 8 bytes from every second position of x, or to every second position of y; the
 * positions in between are not written. Return the number of copied elements, which may be less than n. The number is 0 if
 * the instruction set has no instructions for this copy. */
#if defined(__AVX512VL__)
static inline size_t cd_load_alternate(void *y, const void *x, size_t n, size_t itemsize) {
  size_t i, lanes = 32 / itemsize;
  for (i = 0; i + lanes <= n; i += lanes) {
    const char *source = (const char *)x + 2 * i * itemsize;
    char *target = (char *)y + i * itemsize;
    if (itemsize == 2)
      _mm256_storeu_si256((__m256i *)target, _mm512_cvtepi32_epi16(_mm512_maskz_loadu_epi16(0x55555555, source)));
    else if (itemsize == 4)
      _mm256_storeu_si256((__m256i *)target, _mm512_cvtepi64_epi32(_mm512_maskz_loadu_epi32(0x5555, source)));
    else
      _mm512_mask_compressstoreu_epi64(target, 0x55, _mm512_maskz_loadu_epi64(0x55, source));
  }
  return i;
}
static inline size_t cd_store_alternate(void *y, const void *x, size_t n, size_t itemsize) {
  size_t i, lanes = 32 / itemsize;
  for (i = 0; i + lanes <= n; i += lanes) {
    char *target = (char *)y + 2 * i * itemsize;
    __m256i v = _mm256_loadu_si256((const __m256i *)((const char *)x + i * itemsize));
    if (itemsize == 2)
      _mm512_mask_storeu_epi16(target, 0x55555555, _mm512_cvtepu16_epi32(v));
    else if (itemsize == 4)
      _mm512_mask_storeu_epi32(target, 0x5555, _mm512_cvtepu32_epi64(v));
    else
      _mm512_mask_storeu_epi64(target, 0x55, _mm512_maskz_expand_epi64(0x55, _mm512_castsi256_si512(v)));
  }
  return i;
}
#else
static inline size_t cd_load_alternate(void *y, const void *x, size_t n, size_t itemsize) {
  size_t i = 0;
#if CD_HAS_VECTORS && defined(__SSE2__)
  for (; itemsize == 4 && i + 4 < n; i += 4) { /* not i + 4 <= n, because a load reads the position after element i + 3 */
    const float *source = (const float *)x + 2 * i;
    _mm_storeu_ps((float *)y + i, _mm_shuffle_ps(_mm_loadu_ps(source), _mm_loadu_ps(source + 4), 0x88));
  }
#endif
  (void)y, (void)x, (void)n, (void)itemsize;
  return i;
}
static inline size_t cd_store_alternate(void *y, const void *x, size_t n, size_t itemsize) {
  (void)y, (void)x, (void)n, (void)itemsize;
  return 0;
}
#endif

static inline void cd_prefetch(const void *p) { /* prefetch a line into the L2 cache */
#if CD_HAS_VECTORS
  __builtin_prefetch(p, 0, 2);
#else
  (void)p;
#endif
}
/* Split the low bits of a, and in vectors of 64 bytes also those of b, into parts of `bits` bits, one part per lane. */
static inline cd_u64 cd_spread_parts(uint64_t a, uint64_t b, uint64_t bits) {
  (void)b;
#if !CD_HAS_VECTORS
  cd_u64 v = a;
#elif CD_BYTES == 64
  cd_u64 v = (cd_u64){a, a, a, a, b, b, b, b} >> ((cd_u64){0, 1, 2, 3, 0, 1, 2, 3} * bits);
#elif CD_BYTES == 32
  cd_u64 v = (cd_u64){a, a, a, a} >> ((cd_u64){0, 1, 2, 3} * bits);
#else
  cd_u64 v = (cd_u64){a, a} >> ((cd_u64){0, 1} * bits);
#endif
  return v & (((uint64_t)1 << bits) - 1);
}
static inline cd_u64 cd_zero(void) { return CD_FILL(cd_u64, 0); }
static inline cd_f32 cd_fill_f32(float v) { return CD_FILL(cd_f32, v); }
static inline cd_f64 cd_fill_f64(double v) { return CD_FILL(cd_f64, v); }

/* Write whole cache lines with streaming stores, which do not read the lines first. `to` must be aligned to 64 bytes. */
#if defined(__SSE2__) && CD_HAS_VECTORS
#define CD_STREAMS 1
#else
#define CD_STREAMS 0
#endif
static inline void cd_store_streaming(void *to, const void *from, size_t bytes) {
#if CD_STREAMS
  for (size_t i = 0; i < bytes / CD_BYTES; i++) {
    cd_u64 v = cd_load((const cd_memory *)from + i);
#if CD_BYTES == 64
    _mm512_stream_si512((__m512i *)to + i, (__m512i)v);
#elif CD_BYTES == 32
    _mm256_stream_si256((__m256i *)to + i, (__m256i)v);
#else
    _mm_stream_si128((__m128i *)to + i, (__m128i)v);
#endif
  }
#else
  memcpy(to, from, bytes);
#endif
}
static inline void cd_end_streaming(void) { /* make streaming stores visible to other threads before later stores */
#if CD_STREAMS
  _mm_sfence();
#endif
}

/* The features of an x86 CPU and the registers that the system saves (see NEEDED in dispatch.pyx): ECX of CPUID leaf 1, EBX
 * of leaf 7, and XCR0. On other CPUs, and in the portable form, all three are 0. __builtin_cpu_supports is not used, because
 * it does not link with clang-cl and returns 0 with Zig. */
typedef struct {
  uint32_t leaf1, leaf7;
  uint64_t xcr0;
} cd_cpu;
#if CD_HAS_VECTORS && (defined(__x86_64__) || defined(__i386__))
static inline uint32_t cd_cpuid(uint32_t leaf, uint32_t *b, uint32_t *c) { /* return EAX */
  uint32_t a, d;
  __asm__ volatile("cpuid" : "=a"(a), "=b"(*b), "=c"(*c), "=d"(d) : "0"(leaf), "2"(0));
  return a;
}
static inline cd_cpu cd_probe_cpu(void) {
  cd_cpu cpu = {0, 0, 0};
  uint32_t b, c, low, high;
  if (cd_cpuid(0, &b, &c) < 7) return cpu; /* EAX of leaf 0 is the number of the highest leaf */
  cd_cpuid(1, &b, &cpu.leaf1);
  cd_cpuid(7, &cpu.leaf7, &c);
  if (cpu.leaf1 >> 27 & 1) { /* OSXSAVE is set: the system has enabled XGETBV */
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    cpu.xcr0 = (uint64_t)high << 32 | low;
  }
#if defined(__APPLE__)
  cpu.xcr0 |= 0xE0; /* on macOS, XCR0 lacks the AVX-512 registers until a thread uses them */
#endif
  return cpu;
}
#else
static inline cd_cpu cd_probe_cpu(void) { return (cd_cpu){0, 0, 0}; }
#endif

/* The name of the compiler, printed by `cdropout info`. */
#define CD_TEXT(number) CD_TEXT_OF(number)
#define CD_TEXT_OF(number) #number
#if defined(__clang__)
#define CD_COMPILER "Clang " CD_TEXT(__clang_major__) "." CD_TEXT(__clang_minor__) "." CD_TEXT(__clang_patchlevel__)
#elif defined(__GNUC__)
#define CD_COMPILER "GCC " CD_TEXT(__GNUC__) "." CD_TEXT(__GNUC_MINOR__) "." CD_TEXT(__GNUC_PATCHLEVEL__)
#elif defined(_MSC_VER)
#define CD_COMPILER "MSVC " CD_TEXT(_MSC_VER)
#else
#define CD_COMPILER "an unknown compiler"
#endif
