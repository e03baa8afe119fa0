// Runs the number headers on the GPU against oracles written here in another way, for every input there is.
//
//   floats     E2M1: all 2^32 floats through encode_software, encode8 and encode8_no_nan (whatever route this target has)
//   decode     all 2^16 pairs of bytes, to f16
//   scales     UE4M3: all floats that are not negative, and every NaN
//   division   all 2^23 mantissas of a divisor, with the GPU's own estimate of the reciprocal
//
// Prints "NAME CHECKED WRONG" for each, and gives 1 when something was wrong.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include <gb10/e2m1.cuh>
#include <gb10/ue4m3.cuh>
#include <quantize/block.cuh>

namespace {

using Count = unsigned long long;

__device__ std::uint32_t oracle_code(std::uint32_t bits) {
  std::uint32_t const magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 7;
  std::uint32_t code = 0;
  code += magnitude > 0x3E800000u;   // 0.25
  code += magnitude >= 0x3F400000u;  // 0.75
  code += magnitude > 0x3FA00000u;   // 1.25
  code += magnitude >= 0x3FE00000u;  // 1.75
  code += magnitude > 0x40200000u;   // 2.5
  code += magnitude >= 0x40600000u;  // 3.5
  code += magnitude > 0x40A00000u;   // 5
  return code | (bits >> 31 << 3);
}

__device__ int differing_nibbles(std::uint32_t a, std::uint32_t b) {
  int count = 0;
  for (int j = 0; j < 8; ++j) count += ((a ^ b) >> (4 * j) & 15u) != 0;
  return count;
}

// Thread i takes eight floats from far apart: signs, NaNs and magnitudes mix in a word.
__global__ void floats(Count* wrong) {
  std::uint32_t const i = blockIdx.x * blockDim.x + threadIdx.x;
  float v[8], finite[8];
  std::uint32_t want = 0, want_finite = 0, alone = 0;
  for (int j = 0; j < 8; ++j) {
    std::uint32_t const bits = i + (static_cast<std::uint32_t>(j) << 29);
    std::uint32_t const kept = (bits & 0x7FFFFFFFu) > 0x7F800000u ? bits & 0xFF800000u : bits;
    v[j] = __uint_as_float(bits);
    finite[j] = __uint_as_float(kept);
    want |= oracle_code(bits) << (4 * j);
    want_finite |= oracle_code(kept) << (4 * j);
    alone |= gb10::e2m1::encode_software(v[j]) << (4 * j);
  }
  int const bad[3] = {differing_nibbles(alone, want), differing_nibbles(gb10::e2m1::encode8(v), want),
                      differing_nibbles(gb10::e2m1::encode8_no_nan(finite), want_finite)};
  for (int k = 0; k < 3; ++k) {
    if (bad[k]) atomicAdd(wrong + k, static_cast<Count>(bad[k]));
  }
}

__global__ void decode(Count* wrong) {
  std::uint32_t const halves[8] = {0x0000, 0x3800, 0x3C00, 0x3E00, 0x4000, 0x4200, 0x4400, 0x4600};
  std::uint32_t const i = blockIdx.x * blockDim.x + threadIdx.x;
  std::uint32_t const word = i | (i * 40503u << 16);
  std::uint32_t out[4];
  gb10::e2m1::decode8_f16(word, out);
  int bad = 0;
  for (int j = 0; j < 8; ++j) {
    std::uint32_t const code = word >> (4 * j) & 15u;
    bad += (out[j / 2] >> (16 * (j % 2)) & 0xFFFFu) != (halves[code & 7] | (code >> 3 << 15));
  }
  if (bad) atomicAdd(wrong, static_cast<Count>(bad));
}

__device__ double ue4m3_value(int byte) { return byte < 8 ? ldexp(byte, -9) : ldexp(8 + byte % 8, byte / 8 - 10); }

__global__ void scales(Count* wrong) {
  std::uint32_t const bits = blockIdx.x * blockDim.x + threadIdx.x;
  float const x = __uint_as_float(bits);
  bool bad;
  if (bits > 0x7F800000u) {
    bad = gb10::ue4m3::encode(x) != 0x7F || gb10::ue4m3::encode(__uint_as_float(bits | 0x80000000u)) != 0x7F;
  } else {
    // The byte is right when no neighbour is nearer, and of two as near it is the even one.
    int const byte = static_cast<int>(gb10::ue4m3::encode(x));
    if (x >= 448.0f) {
      bad = byte != 0x7E;
    } else {
      double const here = fabs(ue4m3_value(byte) - x);
      double const below = byte > 0 ? fabs(ue4m3_value(byte - 1) - x) : 1e300;
      double const above = byte < 126 ? fabs(ue4m3_value(byte + 1) - x) : 1e300;
      bad = byte > 126 || below < here || above < here || (byte % 2 && (below == here || above == here));
    }
    bad = bad || gb10::ue4m3::encode_software(x) != gb10::ue4m3::encode(x);
  }
  if (bad) atomicAdd(wrong, Count{1});
}

__device__ int order(float a, float b) { return (a > b) - (a < b); }

__global__ void division(Count* wrong) {
  using namespace gb10::quantize;
  float const s = __uint_as_float(0x3F800000u + blockIdx.x * blockDim.x + threadIdx.x);
  if (awkward(s)) return;
  Reciprocal const by = reciprocal(s);
  int bad = by.low < 0 || (__float_as_uint(by.low) >> 31);
  for (int k = 16; k < 32; ++k) {
    float const step = static_cast<float>(k) / 16;
    std::uint32_t const near = __float_as_uint(__fmul_rn(step, s));
    for (int i = -3; i <= 3; ++i) {
      float const x = __uint_as_float(near + i);
      bad += order(divide(x, by), step) != order(__fdiv_rn(x, s), step);
    }
  }
  if (bad) atomicAdd(wrong, static_cast<Count>(bad));
}

bool all_good = true;

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(status));
  std::exit(3);
}

template <typename Kernel>
void count(Kernel kernel, unsigned threads, int names, char const* const* name, Count checked) {
  Count* wrong = nullptr;
  check(cudaMallocManaged(&wrong, names * sizeof(Count)));
  for (int i = 0; i < names; ++i) wrong[i] = 0;
  kernel<<<threads / 256, 256>>>(wrong);
  check(cudaGetLastError());
  check(cudaDeviceSynchronize());
  for (int i = 0; i < names; ++i) {
    std::printf("%s %llu %llu\n", name[i], checked, wrong[i]);
    all_good = all_good && wrong[i] == 0;
  }
  check(cudaFree(wrong));
}

}  // namespace

int main() {
  char const* const encoders[] = {"encode_software", "encode8", "encode8_no_nan"};
  count(floats, 1u << 29, 3, encoders, Count{1} << 32);
  char const* const decoders[] = {"decode8_f16"};
  count(decode, 1u << 16, 1, decoders, Count{8} << 16);
  char const* const scale[] = {"ue4m3_encode"};
  count(scales, 1u << 31, 1, scale, Count{1} << 31);
  char const* const divisions[] = {"division"};
  count(division, 1u << 23, 1, divisions, (Count{1} << 23) * 16 * 7);
  return all_good ? 0 : 1;
}
