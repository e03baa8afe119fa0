// Gated DeltaNet between its two projections, for sequences of one token or of few: split, convolution, gated delta rule, gated
// RMSNorm. One launch.
//
// For a sequence with the tokens i = 0 .. steps - 1 and a value head h of the key head g:
//   x_i       the channels q, k (of g) and v (of h) of row `sequence * steps + i` of mixed
//   y_i       = T(silu(bias + sum over tap of weight[tap] * x_(i - 3 + tap)))     taps before the first token: conv_state
//   q_i, k_i  = y_i / sqrt(|y_i|^2 + 1e-6), q_i also * key_size^-1/2
//   H_i       = d_i * H_(i-1) + (b_i * (v_i - d_i * H_(i-1) k_i)) k_i^T           d = exp(-exp(A_log) * softplus(a + dt_bias))
//   o_i       = T(H_i q_i)                                                        b = sigmoid(b of mixed)
//   out_i     = T(o_i / sqrt(mean(o_i^2) + epsilon) * norm_weight * silu(z_i))
// T(): rounded to the dtype of mixed, where vLLM 0.32.0 rounds (causal_conv1d_update, fused_recurrent_gated_delta_rule, RMSNormGated).
// All else is FP32; two things are not as there. The convolution's products are not rounded. H_i is rounded to the state's dtype
// after each token, so that a call for several tokens gives the bits of as many calls for one.
//
// Columns of mixed, with r = value_heads / key_heads: interleaved, for each key head q [key_size] k [key_size] v [r, value_size]
// z [r, value_size], then for each key head b [r] a [r]; else q of all heads, k, v, z, b, a. Channels of the convolution: q of all
// key heads, k, v of all value heads.
//
// Slots. slots[n, i] is where the state goes after token i. It is read at slots[n, accepted[n] - 1] (slots[n, 0] without
// `accepted`), accepted - 1 cut to 0 .. steps - 1. conv_state[slots[n, 0]] holds the inputs of tokens before; the last three are
// at accepted - 1 and the two after, and what is left there is the last two of them and x_0 .. x_(steps - 1): vLLM's convention for
// verifying drafts. Slot 0 and below, and slots that do not exist, are none: a sequence whose first slot or whose slot to read is
// none gets out = 0 and touches no state, and a token whose slot is none stores no state. Two sequences must not share a slot.
//
// A cluster is a key head of a sequence: `split` blocks for each value head, which have 256 / kLanes rows of its state each.
// kLanes lanes share a row, in registers from the load to the store. H_i q_i = d H_(i-1) q_i + (k_i . q_i) u with u the factor
// of k_i^T above: both products of a row with the old state are one pass. Then the squares of o meet: those of a warp by shuffles,
// and all warps of a value head in the shared memory of each of its blocks. One barrier of the cluster does that, and lets its
// first block overwrite the inputs of q and k, which all of them read.
//
// The order of every sum is that of a tree over rows and columns that neither kLanes nor `split` changes: the same bits for
// every number of sequences and of tokens.
//
// Needs 9.0 (clusters). Read before the kernel ahead in the stream has ended: weights (conv_weight, conv_bias, A_log, dt_bias,
// norm_weight), which no kernel may write then, and `slots` and `accepted`, but only to ask L2 for the state, which is right whoever
// writes it: L2 is where all SMs meet. What counts is read after the wait, from L2, when every kernel ahead has ended: a kernel of
// a chain with programmatic launches that waits ends after all before it have.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gb10/ptx.cuh"
#include "gb10/types.cuh"
#include "gdn_decode.h"

namespace gb10::gdn_decode {

inline constexpr int kThreads = 256;
inline constexpr int kTaps = kWidth - 1;  // that the state holds

// 16 bytes of a state.
template <typename S>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(S));

template <typename S>
__device__ __forceinline__ void unpack(uint4 raw, float* values) {
  std::uint32_t const words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(S) == 4) {
      values[i] = __uint_as_float(words[i]);
    } else {
      float2 const pair = floats_of<S>(words[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
}

template <typename S>
__device__ __forceinline__ uint4 pack(float const* values) {
  if constexpr (sizeof(S) == 4) {
    return {__float_as_uint(values[0]), __float_as_uint(values[1]), __float_as_uint(values[2]), __float_as_uint(values[3])};
  } else {
    return {word_of_floats<S>(values[0], values[1]), word_of_floats<S>(values[2], values[3]),
            word_of_floats<S>(values[4], values[5]), word_of_floats<S>(values[6], values[7])};
  }
}

template <typename T>
__device__ __forceinline__ float number_at(void const* numbers, bool is_float, int i) {
  return is_float ? __ldg(static_cast<float const*>(numbers) + i) : static_cast<float>(__ldg(static_cast<T const*>(numbers) + i));
}

// Two channels of conv_state in a word.
template <typename T>
__device__ __forceinline__ std::uint32_t load_pair(T const* first, Arguments const& p) {
  if (p.conv_pairs) return __ldcg(reinterpret_cast<std::uint32_t const*>(first));
  auto const* const bits = reinterpret_cast<std::uint16_t const*>(first);
  return __ldcg(bits) | static_cast<std::uint32_t>(__ldcg(bits + p.conv_channel)) << 16;
}
template <typename T>
__device__ __forceinline__ void store_pair(T* first, std::uint32_t pair, Arguments const& p) {
  if (p.conv_pairs) {
    *reinterpret_cast<std::uint32_t*>(first) = pair;
  } else {
    auto* const bits = reinterpret_cast<std::uint16_t*>(first);
    bits[0] = static_cast<std::uint16_t>(pair);
    bits[p.conv_channel] = static_cast<std::uint16_t>(pair >> 16);
  }
}

__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

// Where number k of a key is in shared memory: a vector of 8 is in two halves, so that lanes next to each other read 16 bytes next
// to each other.
template <typename S, int kKeySize>
__device__ __forceinline__ int place_of(int k) {
  if constexpr (kVector<S> == 4) return k;
  return k / 8 * 4 + k % 4 + k % 8 / 4 * (kKeySize / 2);
}

// Shared memory, in floats.
struct Layout {
  int q, k, v, squares, norms, gates, all;

  // norms: |q|^2, |k|^2 and q . k, from each warp that convolves q and k. gates: decay and b. squares: those of o, from each warp
  // of the value head.
  __host__ __device__ constexpr Layout(int steps, int key_size, int value_size, int rows, int lanes)
      : q(0),
        k(q + steps * key_size),
        v(k + steps * key_size),
        squares(v + steps * rows),
        norms(squares + steps * value_size * lanes / 32),
        gates(norms + steps * 3 * (key_size / 64)),
        all((gates + steps * 2 + 3) / 4 * 4) {}
};

// A balanced tree over 8, 16 or 32 numbers.
__device__ __forceinline__ float tree_of_8(float const* numbers) {
  float4 const a = *reinterpret_cast<float4 const*>(numbers), b = *reinterpret_cast<float4 const*>(numbers + 4);
  return ((a.x + a.y) + (a.z + a.w)) + ((b.x + b.y) + (b.z + b.w));
}
__device__ __forceinline__ float tree_of(float const* numbers, int count) {
  float sum = tree_of_8(numbers);
  if (count > 8) sum += tree_of_8(numbers + 8);
  if (count > 16) sum += tree_of_8(numbers + 16) + tree_of_8(numbers + 24);
  return sum;
}

// Where a sequence's state is: the token whose state it goes on from, that state's slot, and the convolution's.
struct Start {
  int token, slot, conv_slot;

  __device__ __forceinline__ Start(Arguments const& p, int sequence) {
    token = 0;
    if (p.accepted != nullptr) {
      token = max(0, min(ptx::load_relaxed(p.accepted + sequence * p.accepted_row) - 1, p.steps - 1));
    }
    auto const* slots = p.slots + sequence * p.slots_row;
    conv_slot = ptx::load_relaxed(slots);
    slot = p.accepted == nullptr ? conv_slot : ptx::load_relaxed(slots + token * p.slots_step);
  }
  __device__ __forceinline__ bool operator==(Start const& other) const {
    return token == other.token && slot == other.slot && conv_slot == other.conv_slot;
  }
  __device__ __forceinline__ bool exists(Arguments const& p) const {
    return slot > 0 && slot < p.slot_count && conv_slot > 0 && conv_slot < p.slot_count;
  }
};

// Blocks that an SM shall hold, of 256 threads: what registers allow without spills.
template <typename S, int kKeySize, int kLanes, int kSteps>
inline constexpr int kResident = kSteps > 1    ? 2
                                 : kLanes == 8 ? (sizeof(S) == 4 ? 3 : 4)
                                               : (sizeof(S) == 4 || kKeySize == 64 ? 2 : 3);

// Grid: the cluster, key heads, sequences. T: mixed, out and the convolution; S: the state.
template <typename T, typename S, int kKeySize, int kLanes, int kSteps>
__global__ void __launch_bounds__(kThreads, (kResident<S, kKeySize, kLanes, kSteps>)) decode(Arguments const p) {
  static_assert(kLanes == 4 || kLanes == 8);
  constexpr int kVec = kVector<S>, kLoads = kKeySize / kLanes / kVec;
  constexpr int kQkThreads = kKeySize / 2;  // each convolves two channels of q and the two of k
  constexpr int kQkWarps = kQkThreads / 32;
  constexpr int kHeld = (kSteps + kLanes - 1) / kLanes;  // tokens whose output a lane writes
  ptx::release_next();

  int const t = threadIdx.x, lane = t % 32, row = t / kLanes, c = t % kLanes;
  constexpr int rows = kThreads / kLanes, warps = kThreads / 32;
  int const steps = kSteps == 1 ? 1 : p.steps;
  int const ratio = p.ratio, part = blockIdx.x & (p.split - 1), in_group = blockIdx.x >> p.split_shift;
  int const g = blockIdx.y, h = g * ratio + in_group, sequence = blockIdx.z;
  int const first_row = part * rows;
  bool const joint = p.split > 1;  // several blocks have a value head
  if (joint) ptx::cluster_arrive();  // this block runs: others may write its shared memory
  auto* const shared = reinterpret_cast<float*>(ptx::dynamic_shared());
  Layout const at(steps, kKeySize, p.value_size, rows, kLanes);

  // What this thread convolves: pairs of channels of q and k, or one pair of v.
  bool const has_qk = t < kQkThreads, has_v = !has_qk && t - kQkThreads < rows / 2;
  int const pairs = has_qk ? 2 : has_v ? 1 : 0;
  int const all_keys = p.key_heads * kKeySize, in_v = first_row + 2 * (t - kQkThreads);
  int const channels[2] = {has_qk ? g * kKeySize + 2 * t : 2 * all_keys + h * p.value_size + in_v,
                           all_keys + g * kKeySize + 2 * t};
  int const group_columns = 2 * kKeySize + 2 * ratio * p.value_size;
  int column_q = channels[0], column_k = channels[1], column_v = channels[0];
  int column_z = 2 * all_keys + (p.value_heads + h) * p.value_size;
  int column_b = p.key_heads * group_columns + h, column_a = column_b + p.value_heads;
  if (p.interleaved) {
    column_q = g * group_columns + 2 * t;
    column_k = column_q + kKeySize;
    column_v = g * group_columns + 2 * kKeySize + in_group * p.value_size + in_v;
    column_z = g * group_columns + 2 * kKeySize + (ratio + in_group) * p.value_size;
    column_b = p.key_heads * group_columns + g * 2 * ratio + in_group;
    column_a = column_b + ratio;
  }
  int const columns[2] = {has_qk ? column_q : column_v, column_k};
  int const gate_step = kThreads - 1 - t;  // the last threads make the gates of a token each
  bool const has_gate = gate_step < steps;

  // Weights, which are there already, and a hint for the state.
  uint4 taps_of[2];
  std::uint32_t bias_of[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (i < pairs) {
      taps_of[i] = __ldg(reinterpret_cast<uint4 const*>(static_cast<T const*>(p.conv_weight) + kWidth * channels[i]));
      if (p.conv_bias != nullptr) {
        bias_of[i] = __ldg(reinterpret_cast<std::uint32_t const*>(static_cast<T const*>(p.conv_bias) + channels[i]));
      }
    }
  }
  float const norm_weight = number_at<T>(p.norm_weight, p.float_norm_weight, first_row + row);
  float rate = 0.0f, step_bias = 0.0f;
  if (has_gate) {
    rate = -expf(__ldg(p.log_decay + h));
    step_bias = number_at<T>(p.step_bias, p.float_step_bias, h);
  }
  auto* const states = static_cast<S*>(p.state) + (static_cast<std::int64_t>(h) * p.value_size + first_row) * kKeySize;
  auto const inputs_before = [&p](Start const& at, int channel) {
    return static_cast<T*>(p.conv_state) + at.conv_slot * p.conv_slot + channel * p.conv_channel;
  };
  Start start(p, sequence);
  if (start.exists(p)) {
    constexpr int kLine = 128 / static_cast<int>(sizeof(S));
    if (t * kLine < rows * kKeySize) ptx::ask_l2(states + start.slot * p.state_slot + t * kLine);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        if (i < pairs) {
          ptx::ask_l2(inputs_before(start, channels[i]) + (start.token + k) * p.conv_tap);
        }
      }
    }
  }
  ptx::wait_for_previous();

  // The state is loaded where it was when the hint was given, and again in the rare case that it is not there.
  uint4 raw[kLoads];
  std::uint32_t old[2][kTaps] = {};  // two channels in a word, like `inputs`
  auto const load_state = [&] {
    if (!start.exists(p)) return;
    S const* const mine = states + start.slot * p.state_slot + row * kKeySize;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) raw[i] = __ldcg(reinterpret_cast<uint4 const*>(mine + (i * kLanes + c) * kVec));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        if (i < pairs) old[i][k] = load_pair(inputs_before(start, channels[i]) + (start.token + k) * p.conv_tap, p);
      }
    }
  };
  load_state();
  T const* const mixed = static_cast<T const*>(p.mixed) + static_cast<std::int64_t>(sequence) * steps * p.mixed_row;
  std::uint32_t inputs[2][kSteps];
  T gate_input[2] = {}, z[kHeld] = {};
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i < pairs && step < steps) {
        inputs[i][step] = __ldcg(reinterpret_cast<std::uint32_t const*>(mixed + step * p.mixed_row + columns[i]));
      }
    }
  }
  if (has_gate) {
    gate_input[0] = __ldcg(mixed + gate_step * p.mixed_row + column_a);
    gate_input[1] = __ldcg(mixed + gate_step * p.mixed_row + column_b);
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (i * kLanes + c < steps) z[i] = __ldcg(mixed + (i * kLanes + c) * p.mixed_row + column_z + first_row + row);
  }
  int const next_slot = kSteps > 1 && lane < steps ? ptx::load_relaxed(p.slots + sequence * p.slots_row + lane * p.slots_step) : 0;
  Start const truth(p, sequence);
  if (!(truth == start)) {
    start = truth;
    load_state();
  }
  T* const out = static_cast<T*>(p.out) + (static_cast<std::int64_t>(sequence) * steps * p.value_heads + h) * p.value_size + first_row + row;
  int const out_row = p.value_heads * p.value_size;
  if (!start.exists(p)) {  // for all blocks of the cluster
    if (joint) ptx::cluster_wait();
    for (int step = c; step < steps; step += kLanes) out[step * out_row] = static_cast<T>(0.0f);
    return;
  }

  // The convolution of all tokens, and what belongs to a token as a whole.
  float past[2][2][kTaps];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int k = 0; k < kTaps; ++k) past[i][e][k] = e == 0 ? floats_of<T>(old[i][k]).x : floats_of<T>(old[i][k]).y;
    }
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    if (step >= steps) break;
    float y[2][2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i >= pairs) continue;
      float2 const now = floats_of<T>(inputs[i][step]), bias = floats_of<T>(bias_of[i]);
      std::uint32_t const taps[4] = {taps_of[i].x, taps_of[i].y, taps_of[i].z, taps_of[i].w};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float2 const w01 = floats_of<T>(taps[2 * e]), w23 = floats_of<T>(taps[2 * e + 1]);
        float(&before)[kTaps] = past[i][e];
        float const x = e == 0 ? now.x : now.y;
        float sum = fmaf(before[0], w01.x, e == 0 ? bias.x : bias.y);
        sum = fmaf(before[1], w01.y, sum);
        sum = fmaf(before[2], w23.x, sum);
        sum = fmaf(x, w23.y, sum);
        y[i][e] = silu(sum);
        before[0] = before[1];
        before[1] = before[2];
        before[2] = x;
      }
      float2 const rounded = floats_of<T>(word_of_floats<T>(y[i][0], y[i][1]));
      y[i][0] = rounded.x;
      y[i][1] = rounded.y;
      int const k = has_qk ? place_of<S, kKeySize>(2 * t) : 2 * (t - kQkThreads);
      float* const to = has_qk ? shared + (i == 0 ? at.q : at.k) + step * kKeySize : shared + at.v + step * rows;
      *reinterpret_cast<float2*>(to + k) = rounded;
    }
    if (has_qk) {
      float sums[3] = {fmaf(y[0][0], y[0][0], y[0][1] * y[0][1]), fmaf(y[1][0], y[1][0], y[1][1] * y[1][1]),
                       fmaf(y[0][0], y[1][0], y[0][1] * y[1][1])};
#pragma unroll
      for (int d = 16; d > 0; d /= 2) {
#pragma unroll
        for (int j = 0; j < 3; ++j) sums[j] += __shfl_xor_sync(0xFFFFFFFFu, sums[j], d);
      }
      if (lane < 3) shared[at.norms + (step * 3 + lane) * kQkWarps + t / 32] = lane == 0 ? sums[0] : lane == 1 ? sums[1] : sums[2];
    }
  }
  if (has_gate) {
    float const x = static_cast<float>(gate_input[0]) + step_bias;
    float const softplus = x <= 20.0f ? log1pf(expf(x)) : x;
    shared[at.gates + 2 * gate_step] = expf(rate * softplus);
    shared[at.gates + 2 * gate_step + 1] = 1.0f / (1.0f + expf(-static_cast<float>(gate_input[1])));
  }
  __syncthreads();
  bool const alone = gridDim.x == 1;
  if (!joint && !alone) ptx::cluster_arrive();  // this block has read the inputs of q and k

  // The state, token by token.
  float o[kHeld] = {};
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    float const* const key = shared + at.k + step * kKeySize;
    float const* const query = shared + at.q + step * kKeySize;
    float const* const norms = shared + at.norms + step * 3 * kQkWarps;
    // Two sums where a thread has the columns of two lanes of the wider kernel.
    constexpr int kSums = 8 / kLanes;
    float with_key[kSums] = {}, with_query[kSums] = {};
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      float old_state[kVec];
      unpack<S>(raw[i], old_state);
#pragma unroll
      for (int e = 0; e < kVec; e += 4) {
        int const k = place_of<S, kKeySize>((i * kLanes + c) * kVec + e);
        float4 const keys = *reinterpret_cast<float4 const*>(key + k), queries = *reinterpret_cast<float4 const*>(query + k);
        float& a = with_key[i % kSums];
        float& b = with_query[i % kSums];
        a = fmaf(old_state[e], keys.x, a), b = fmaf(old_state[e], queries.x, b);
        a = fmaf(old_state[e + 1], keys.y, a), b = fmaf(old_state[e + 1], queries.y, b);
        a = fmaf(old_state[e + 2], keys.z, a), b = fmaf(old_state[e + 2], queries.z, b);
        a = fmaf(old_state[e + 3], keys.w, a), b = fmaf(old_state[e + 3], queries.w, b);
      }
    }
    float known = with_key[0], seen = with_query[0];
    if constexpr (kSums == 2) known += with_key[1], seen += with_query[1];
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2) {
      known += __shfl_xor_sync(0xFFFFFFFFu, known, d);
      seen += __shfl_xor_sync(0xFFFFFFFFu, seen, d);
    }
    float sums[3];
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      sums[j] = norms[j * kQkWarps];
      if constexpr (kQkWarps == 2) sums[j] += norms[j * kQkWarps + 1];
    }
    float const q_scale = rsqrtf(sums[0] + 1e-6f) * p.query_scale, k_scale = rsqrtf(sums[1] + 1e-6f);
    float const decay = shared[at.gates + 2 * step], strength = shared[at.gates + 2 * step + 1];
    float const v = shared[at.v + step * rows + row];
    float const change = strength * (v - decay * k_scale * known) * k_scale;  // times y of k
    float const result = q_scale * fmaf(decay, seen, change * sums[2]);
    float const rounded = static_cast<float>(static_cast<T>(result));
    if constexpr (kHeld == 1) {
      if (step == c) o[0] = rounded;
    } else {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) {
        if (step == i * kLanes + c) o[i] = rounded;
      }
    }
    float square = rounded * rounded;
#pragma unroll
    for (int d = kLanes; d < 32; d *= 2) square += __shfl_xor_sync(0xFFFFFFFFu, square, d);
    float* const place = shared + at.squares + step * (p.value_size * kLanes / 32) + part * warps + t / 32;
    if (joint) {
      if (step == 0) ptx::cluster_wait();  // all blocks run
      if (lane < p.split) ptx::store_in_cluster(place, in_group * p.split + lane, square);
    } else if (lane == 0) {
      *place = square;
    }

    int const slot = kSteps == 1 ? start.slot : __shfl_sync(0xFFFFFFFFu, next_slot, step);
    bool const stored = kSteps == 1 || (slot > 0 && slot < p.slot_count);
    S* const mine = states + slot * p.state_slot + row * kKeySize;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      float values[kVec];
      unpack<S>(raw[i], values);
#pragma unroll
      for (int e = 0; e < kVec; e += 4) {
        int const k = place_of<S, kKeySize>((i * kLanes + c) * kVec + e);
        float4 const keys = *reinterpret_cast<float4 const*>(key + k);
        values[e] = fmaf(change, keys.x, decay * values[e]);
        values[e + 1] = fmaf(change, keys.y, decay * values[e + 1]);
        values[e + 2] = fmaf(change, keys.z, decay * values[e + 2]);
        values[e + 3] = fmaf(change, keys.w, decay * values[e + 3]);
      }
      raw[i] = pack<S>(values);
      if (stored) *reinterpret_cast<uint4*>(mine + (i * kLanes + c) * kVec) = raw[i];
    }
  }

  // The inputs that the next call wants; those of q and k when the whole cluster has read them.
  auto const leave_inputs = [&] {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i >= pairs) continue;
      T* const to = inputs_before(start, channels[i]);
      store_pair(to, old[i][1], p);
      store_pair(to + p.conv_tap, old[i][2], p);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        if (step < steps) store_pair(to + (2 + step) * p.conv_tap, inputs[i][step], p);
      }
    }
  };
  if (has_v) leave_inputs();
  if (joint) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    int const step = i * kLanes + c;
    if (step < steps) {
      int const count = p.value_size * kLanes / 32;
      float const mean = tree_of(shared + at.squares + step * count, count) * p.mean_factor;
      out[step * out_row] = static_cast<T>(o[i] * rsqrtf(mean + p.epsilon) * norm_weight * silu(static_cast<float>(z[i])));
    }
  }
  if (!joint && !alone) ptx::cluster_wait();
  if (has_qk && blockIdx.x == 0) leave_inputs();
}

}  // namespace gb10::gdn_decode
