// Runs the kernels' number headers on the host and compares them with oracles written here in another way.
//
//   floats      E2M1: all 2^32 floats through encode_software, encode8 and encode8_no_nan, against a table of thresholds
//   oracle      reads float32 from standard input, writes that table's code for each: so that Python can check the table
//   decode      E2M1: every code alone and at every place of a word, to float and to f16
//   scales      UE4M3: all floats that are not negative, and every NaN, against a search in the table of its 127 values
//   division    all 2^23 mantissas of a divisor: the quotient's order against every k / 16 that rounding asks for
//   blocks      random blocks through quantize_short against the formula
//
// Prints one line "NAME CHECKED WRONG" for each thing it checked, and gives 1 when something was wrong.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <gb10/e2m1.cuh>
#include <gb10/ue4m3.cuh>
#include <quantize/block.cuh>

namespace {

using std::int64_t;
using std::uint32_t;
using std::uint64_t;
using std::uint8_t;

float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

uint32_t as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

bool all_good = true;

void say(char const* name, int64_t checked, int64_t wrong) {
  std::printf("%s %lld %lld\n", name, static_cast<long long>(checked), static_cast<long long>(wrong));
  all_good = all_good && wrong == 0;
}

// Runs work(first, last) on two halves of 0..count at the same time and adds up what they give.
int64_t in_two(uint64_t count, std::function<int64_t(uint64_t, uint64_t)> const& work) {
  int64_t other = 0;
  std::thread second([&] { other = work(count / 2, count); });
  int64_t const first = work(0, count / 2);
  second.join();
  return first + other;
}

// Where the code steps up, and whether the step's own value steps too (ties go to the even code).
uint32_t oracle_code(uint32_t bits) {
  uint32_t const magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 7;
  uint32_t code = 0;
  code += magnitude > 0x3E800000u;   // 0.25
  code += magnitude >= 0x3F400000u;  // 0.75
  code += magnitude > 0x3FA00000u;   // 1.25
  code += magnitude >= 0x3FE00000u;  // 1.75
  code += magnitude > 0x40200000u;   // 2.5
  code += magnitude >= 0x40600000u;  // 3.5
  code += magnitude > 0x40A00000u;   // 5
  return code | (bits >> 31 << 3);
}

void floats() {
  uint64_t const words = uint64_t{1} << 29;
  std::vector<int64_t> wrong(3);
  int64_t const one = in_two(words, [](uint64_t first, uint64_t last) {
    int64_t bad = 0;
    for (uint64_t i = first * 8; i < last * 8; ++i) {
      uint32_t const bits = static_cast<uint32_t>(i);
      bad += gb10::e2m1::encode_software(as_float(bits)) != oracle_code(bits);
    }
    return bad;
  });
  say("encode_software", words * 8, one);
  // Neighbours in a word come from far apart: signs, NaNs and magnitudes mix.
  auto const check8 = [](bool nan_too, uint64_t first, uint64_t last) {
    int64_t bad = 0;
    for (uint64_t i = first; i < last; ++i) {
      float v[8];
      uint32_t want = 0;
      for (int j = 0; j < 8; ++j) {
        uint32_t bits = static_cast<uint32_t>(i) + (static_cast<uint32_t>(j) << 29);
        if (!nan_too && (bits & 0x7FFFFFFFu) > 0x7F800000u) bits &= 0xFF800000u;
        v[j] = as_float(bits);
        want |= oracle_code(bits) << (4 * j);
      }
      uint32_t const word = nan_too ? gb10::e2m1::encode8(v) : gb10::e2m1::encode8_no_nan(v);
      for (int j = 0; j < 8; ++j) bad += ((word ^ want) >> (4 * j) & 15u) != 0;
    }
    return bad;
  };
  say("encode8", words * 8, in_two(words, [&](uint64_t a, uint64_t b) { return check8(true, a, b); }));
  say("encode8_no_nan", words * 8, in_two(words, [&](uint64_t a, uint64_t b) { return check8(false, a, b); }));
}

void oracle() {
  std::vector<uint32_t> bits(1 << 16);
  std::vector<uint8_t> codes(bits.size());
  while (size_t const count = std::fread(bits.data(), 4, bits.size(), stdin)) {
    for (size_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(oracle_code(bits[i]));
    std::fwrite(codes.data(), 1, count, stdout);
  }
}

void decode() {
  float const values[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0f, -0.5, -1, -1.5, -2, -3, -4, -6};
  uint32_t const halves[8] = {0x0000, 0x3800, 0x3C00, 0x3E00, 0x4000, 0x4200, 0x4400, 0x4600};
  int64_t wrong = 0;
  for (uint32_t code = 0; code < 16; ++code) wrong += as_bits(gb10::e2m1::decode(code)) != as_bits(values[code]);
  say("decode", 16, wrong);
  wrong = 0;
  std::mt19937 random(3);
  for (int i = 0; i < 1 << 20; ++i) {
    uint32_t const word = random();
    uint32_t out[4];
    gb10::e2m1::decode8_f16(word, out);
    for (int j = 0; j < 8; ++j) {
      uint32_t const code = word >> (4 * j) & 15u;
      wrong += (out[j / 2] >> (16 * (j % 2)) & 0xFFFFu) != (halves[code & 7] | (code >> 3 << 15));
    }
  }
  say("decode8_f16", int64_t{8} << 20, wrong);
}

double ue4m3_value(int byte) { return byte < 8 ? std::ldexp(byte, -9) : std::ldexp(8 + byte % 8, byte / 8 - 10); }

void scales() {
  // The largest float that still rounds to each byte.
  std::vector<uint32_t> last(127);
  for (int byte = 0; byte < 126; ++byte) {
    float const middle = static_cast<float>((ue4m3_value(byte) + ue4m3_value(byte + 1)) / 2);  // exact
    last[byte] = byte % 2 == 0 ? as_bits(middle) : as_bits(middle) - 1;
  }
  last[126] = 0x7F800000u;
  int64_t wrong = 0;
  int byte = 0;
  for (uint32_t bits = 0; bits <= 0x7FFFFFFFu; ++bits) {
    uint32_t want;
    if (bits > 0x7F800000u) {
      want = 0x7F;
      wrong += gb10::ue4m3::encode(as_float(bits | 0x80000000u)) != want;
    } else {
      while (bits > last[byte]) ++byte;
      want = byte;
    }
    wrong += gb10::ue4m3::encode(as_float(bits)) != want;
  }
  wrong += gb10::ue4m3::encode(-0.0f) != 0;
  say("ue4m3_encode", (int64_t{1} << 31) + (1 << 23), wrong);
  wrong = 0;
  for (uint32_t i = 0; i < 127; ++i) {
    wrong += gb10::ue4m3::decode(i) != static_cast<float>(ue4m3_value(i));
    wrong += gb10::ue4m3::decode_finite(i) != static_cast<float>(ue4m3_value(i));
  }
  wrong += !std::isnan(gb10::ue4m3::decode(0x7F));
  say("ue4m3_decode", 128, wrong);
}

int order(float a, float b) { return (a > b) - (a < b); }

void division() {
  using namespace gb10::quantize;
  int64_t const checked = (int64_t{1} << 23) * 3 * 16 * 7;
  int64_t const wrong = in_two(1u << 23, [](uint64_t first, uint64_t last) {
    int64_t bad = 0;
    for (uint64_t mantissa = first; mantissa < last; ++mantissa) {
      float const s = as_float(0x3F800000u | static_cast<uint32_t>(mantissa));
      if (awkward(s)) continue;
      for (int off = -1; off <= 1; ++off) {
        Reciprocal const by = reciprocal(s, as_float(as_bits(1.0f / s) + off));
        bad += std::signbit(by.low) || by.low < 0;
        for (int k = 16; k < 32; ++k) {
          float const step = static_cast<float>(k) / 16;
          uint32_t const near = as_bits(step * s);
          for (int i = -3; i <= 3; ++i) {
            float const x = as_float(near + i);
            bad += order(divide(x, by), step) != order(x / s, step);
          }
        }
      }
    }
    return bad;
  });
  say("division", checked, wrong);
  int64_t awkward_ones = 0;
  for (uint32_t mantissa = 0; mantissa < 1u << 23; ++mantissa) awkward_ones += awkward(as_float(0x3F800000u | mantissa));
  say("awkward_divisors", int64_t{1} << 23, awkward_ones - 16);
}

struct Block {
  float v[16];
  float at(int i) const { return v[i]; }
};

// Blocks of all magnitudes and of bf16 numbers and ties; the formula in plain float arithmetic.
void blocks() {
  using namespace gb10::quantize;
  std::mt19937_64 random(20261122);
  int64_t const count = 3'000'000;
  int64_t wrong = 0, covered = 0;
  for (int64_t n = 0; n < count; ++n) {
    uint64_t const kind = random();
    float g = std::ldexp(1.0f + static_cast<float>(random() >> 41) * 0x1p-23f, static_cast<int>(kind % 64) - 32);
    if (kind >> 8 & 1) g = std::ldexp(1.0f, static_cast<int>(kind % 64) - 32);
    Block block;
    float amax = 0;
    int const spread = static_cast<int>(kind >> 16 & 7);
    for (float& x : block.v) {
      uint64_t const r = random();
      switch (kind >> 12 & 3) {
        case 0: x = std::ldexp(static_cast<float>(static_cast<int32_t>(r)) * 0x1p-31f, spread + 5) * g; break;
        case 1: x = static_cast<float>(static_cast<int>(r % 97) - 48) * 0.25f * g * std::ldexp(1.0f, spread); break;
        case 2: x = as_float(as_bits(std::ldexp(static_cast<float>(static_cast<int32_t>(r)) * 0x1p-31f, spread) * 448 * g) & 0xFFFF0000u); break;
        default: x = std::ldexp(static_cast<float>(static_cast<int>(r & 255) - 128), static_cast<int>(r >> 8 & 31) - 24) * g;
      }
      amax = std::max(amax, std::fabs(x));
    }
    Quantized out;
    if (!quantize_short(out, block, amax, prepare(g))) continue;
    ++covered;
    float wanted = amax / (6.0f * g);
    wanted = wanted < 0x1p-9f ? 0x1p-9f : wanted > 448.0f ? 448.0f : wanted;
    uint32_t const scale = gb10::ue4m3::encode_software(wanted);
    float const step = gb10::ue4m3::decode(scale) * g;
    wrong += out.scale != scale;
    for (int i = 0; i < 16; ++i) {
      uint32_t const code = (i < 8 ? out.low : out.high) >> (4 * (i % 8)) & 15u;
      wrong += code != oracle_code(as_bits(block.v[i] / step));
    }
  }
  say("blocks", covered * 17, wrong);
  say("blocks_left_to_the_long_way", count, covered > count - count / 1000 ? 0 : count - covered);
}

}  // namespace

int main(int count, char** arguments) {
  std::string const what = count == 2 ? arguments[1] : "";
  if (what == "floats") floats();
  else if (what == "oracle") oracle();
  else if (what == "decode") decode();
  else if (what == "scales") scales();
  else if (what == "division") division();
  else if (what == "blocks") blocks();
  else return std::fprintf(stderr, "one of: floats oracle decode scales division blocks\n"), 2;
  return all_good ? 0 : 1;
}
