// Gated DeltaNet between its two projections, for sequences of one token or of few: split, convolution, gated delta rule, gated
// RMSNorm. One launch.
//
// For a sequence with the tokens i = 0 .. count - 1 and a value head h of the key head g:
//   x_i       the channels q, k (of g) and v (of h) of row `first + i` of mixed
//   y_i       = T(silu(bias + sum over tap of weight[tap] * x_(i - 3 + tap)))     taps before the first token: conv_state
//   q_i, k_i  = y_i / sqrt(|y_i|^2 + 1e-6), q_i also * key_size^-1/2
//   H_i       = d_i * H_(i-1) + (b_i * (v_i - d_i * H_(i-1) k_i)) k_i^T           d = exp(-exp(A_log) * softplus(a + dt_bias))
//   o_i       = T(H_i q_i)                                                        b = sigmoid(b of mixed)
//   out_i     = T(o_i / sqrt(mean(o_i^2) + epsilon) * norm_weight * silu(z_i))
// T(): rounded to the dtype of mixed, where vLLM 0.32.0 rounds (causal_conv1d_update, fused_recurrent_gated_delta_rule,
// RMSNormGated). All else is FP32; two things are not as there. The convolution's products are not rounded. H_i is rounded to the
// state's dtype after each token, so that a call for several tokens gives the bits of as many calls for one.
//
// Columns of mixed, with r = value_heads / key_heads: interleaved, for each key head q [key_size] k [key_size] v [r, value_size]
// z [r, value_size], then for each key head b [r] a [r]; else q of all heads, k, v, z, b, a. Channels of the convolution: q of all
// key heads, k, v of all value heads.
//
// Tokens. Sequence n has the rows starts[n] .. starts[n + 1] - 1, at most `steps` of them, maybe none; without `starts` it has
// `steps`, from row n * steps. Rows after those of the last sequence are padding: out = 0. Whatever `starts` holds, no row outside
// mixed and out is touched.
//
// Slots. slots[n, i] is where the state goes after token i. It is read at slots[n, accepted[n] - 1] (slots[n, 0] without
// `accepted`), accepted - 1 cut to 0 .. steps - 1. conv_state[slots[n, 0]] holds the inputs of tokens before; the last three are
// at accepted - 1 and the two after, and what is left there is the last two of them and x_0 .. x_(count - 1): vLLM's convention for
// verifying drafts. Slot 0 and below, and slots that do not exist, are none: a sequence whose first slot or whose slot to read is
// none gets out = 0 and touches no state, and a token whose slot is none stores no state. Two sequences must not share a slot.
//
// A cluster is a key head of a sequence: `split` blocks for each value head, which have kRows rows of its state each. Four lanes
// share a row, in registers from the load to the store. H_i q_i = d H_(i-1) q_i + (k_i . q_i) u with u the factor of k_i^T above:
// both products of a row with the old state are one pass. Then the squares of o meet: those of a warp by shuffles, and all warps of
// a value head in the shared memory of each of its blocks, sent and counted there: a barrier that orders writes would wait for
// the state's. The cluster's barrier orders no writes; it says that all blocks run, then that they have read the inputs of q and k,
// which the first block overwrites.
//
// At few sequences latency decides, at many the number of instructions: what a thread can know before the wait it computes
// there, and strides are 32 bits.
//
// The order of every sum is that of a tree that kRows does not change: the same bits for every number of sequences and of tokens.
//
// Needs 9.0 (clusters). Read before the kernel ahead in the stream has ended: weights (conv_weight, conv_bias, A_log, dt_bias,
// norm_weight), which no kernel may write then, and `starts`, `slots` and `accepted`, but only to ask L2 for the state, which is
// right whoever writes it: L2 is where all SMs meet. What counts is read after the wait, from L2, when every kernel ahead has ended: a
// kernel of a chain with programmatic launches that waits ends after all before it have.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gb10/ptx.cuh"
#include "gb10/types.cuh"
#include "gdn_decode.h"

namespace gb10::gdn_decode {

inline constexpr int kLanes = 4;          // that share a row of the state; the kernel's shifts know it
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
__device__ __forceinline__ std::uint32_t load_apart(T const* first, int apart) {
  auto const* const bits = reinterpret_cast<std::uint16_t const*>(first);
  return __ldcg(bits) | static_cast<std::uint32_t>(__ldcg(bits + apart)) << 16;
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

__device__ __forceinline__ float silu(float x) { return x * ptx::reciprocal(1.0f + ptx::power_of_2(-1.44269504f * x)); }

// Where number k of a key is in shared memory: a vector of 8 is in two halves, so that lanes next to each other read 16 bytes next
// to each other.
template <typename S, int kKeySize>
__device__ __forceinline__ int place_of(int k) {
  if constexpr (kVector<S> == 4) return k;
  return (k >> 3) * 4 + (k & 3) + ((k >> 2) & 1) * (kKeySize / 2);
}

// Shared memory, in floats.
struct Layout {
  int q, k, v, squares, mail, norms, gates, all;

  // norms: |q|^2, |k|^2 and q . k, from each warp that convolves q and k. gates: decay and b. squares: those of o, from each warp
  // of the value head; mail counts them in.
  __host__ __device__ constexpr Layout(int steps, int key_size, int value_size, int rows)
      : q(0),
        k(q + steps * key_size),
        v(k + steps * key_size),
        squares(v + steps * rows),
        mail(squares + steps * value_size * kLanes / 32),
        norms(mail + 2),
        gates(norms + steps * 3 * (key_size / 64)),
        all((gates + steps * 2 + 3) / 4 * 4) {}
};

// Where a sequence is: its first row and its tokens; the token whose state it goes on from, that state's slot, and the convolution's.
template <int kSteps>
struct Start {
  int first, count, token, slot, conv_slot;

  __device__ __forceinline__ Start(Arguments const& p, int sequence, std::int32_t const* slots, std::int32_t const* accepted)
      : first(sequence * p.steps), count(p.steps) {
    if constexpr (kSteps == 1) {
      first = sequence, count = 1;
    } else if (p.starts != nullptr) {
      first = max(0, min(ptx::load_relaxed(p.starts + sequence), p.rows));
      count = min(max(first, min(ptx::load_relaxed(p.starts + sequence + 1), p.rows)) - first, p.steps);
    }
    token = accepted == nullptr ? 0 : max(0, min(ptx::load_relaxed(accepted) - 1, p.steps - 1));
    conv_slot = ptx::load_relaxed(slots);
    slot = accepted == nullptr ? conv_slot : ptx::load_relaxed(slots + token * p.slots_step);
  }
  __device__ __forceinline__ bool operator==(Start const& other) const {
    return first == other.first && count == other.count && token == other.token && slot == other.slot &&
           conv_slot == other.conv_slot;
  }
  __device__ __forceinline__ bool exists(Arguments const& p) const {
    return count > 0 && slot > 0 && slot < p.slot_count && conv_slot > 0 && conv_slot < p.slot_count;
  }
};

// 64 bits of two factors of 32.
__device__ __forceinline__ std::int64_t product(int a, int b) { return static_cast<std::int64_t>(a) * b; }

// Blocks that an SM shall hold: what registers allow without spills.
template <typename S, int kRows, int kSteps>
inline constexpr int kResident = (kSteps > 1 || sizeof(S) == 4 ? 4 : 5) * 32 / kRows;

// Grid: the cluster, key heads, sequences. T: mixed, out and the convolution; S: the state.
template <typename T, typename S, int kKeySize, int kRows, int kSteps>
__global__ void __launch_bounds__(kLanes* kRows, (kResident<S, kRows, kSteps>)) decode(Arguments const p) {
  constexpr int kThreads = kLanes * kRows, kWarps = kThreads / 32;
  constexpr int kVec = kVector<S>, kLoads = kKeySize / kLanes / kVec;
  constexpr int kQkThreads = kKeySize / 2;  // each convolves two channels of q and the two of k
  constexpr int kQkWarps = kQkThreads / 32;
  static_assert(kQkThreads + kRows / 2 + kMaxSteps <= kThreads);
  constexpr int kHeld = (kSteps + kLanes - 1) / kLanes;  // tokens whose output a lane writes
  ptx::release_next();

  int const t = threadIdx.x, lane = t & 31, row = t >> 2, c = t & 3;
  int const steps = kSteps == 1 ? 1 : p.steps;
  int const part = blockIdx.x & (p.split - 1), in_group = blockIdx.x >> p.split_shift;
  int const g = blockIdx.y, h = g * p.ratio + in_group, sequence = blockIdx.z;
  int const first_row = part * kRows;
  bool const joint = p.split > 1, clustered = gridDim.x > 1;  // several blocks have a value head, a key head
  auto* const shared = reinterpret_cast<float*>(ptx::dynamic_shared());
  Layout const at(steps, kKeySize, p.value_size, kRows);
  auto* const mail = reinterpret_cast<std::uint64_t*>(shared + at.mail);
  int const value_warps = p.value_size >> 3;  // 8 rows a warp
  if (clustered) {
    if (joint && t == 0) ptx::expect_bytes(mail, steps * value_warps * static_cast<int>(sizeof(float)));
    __syncwarp();
    ptx::cluster_arrive();  // this block runs and takes mail
  }

  auto const* const slots = p.slots + product(sequence, p.slots_row);
  auto const* const accepted = p.accepted == nullptr ? nullptr : p.accepted + product(sequence, p.accepted_row);
  Start<kSteps> start(p, sequence, slots, accepted);

  // What this thread convolves: pairs of channels of q and k, or one pair of v. The last threads make the gates of a token each.
  int const warp = __shfl_sync(0xFFFFFFFFu, t >> 5, 0);  // the compiler sees that lanes agree
  bool const has_qk = warp < kQkWarps, has_v = !has_qk && t < kQkThreads + kRows / 2, convolves = has_qk || has_v;
  int const pairs = has_qk ? 2 : has_v ? 1 : 0;
  int const gate_step = kThreads - 1 - t;
  bool const has_gate = gate_step < steps;
  int const within = has_qk ? 2 * t : in_group * p.value_size + first_row + 2 * (t - kQkThreads);
  int const all_keys = p.key_heads * kKeySize;
  int const channels[2] = {has_qk ? g * kKeySize + within : 2 * all_keys + g * p.ratio * p.value_size + within,
                           all_keys + g * kKeySize + within};
  int const columns[2] = {(has_qk ? g * p.key_stride : p.v_base + g * p.value_stride) + within,
                          p.k_base + g * p.key_stride + within};

  // Weights, which are there already.
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

  // Where the state is, and a hint for it.
  int const block_state = (h * p.value_size + first_row) * kKeySize, mine = row * kKeySize + c * kVec;
  S* state = nullptr;  // this block's
  T* inputs_before[2] = {};
  auto const locate = [&] {
    state = static_cast<S*>(p.state) + product(start.slot, p.state_slot) + block_state;
    T* const conv = static_cast<T*>(p.conv_state) + product(start.conv_slot, p.conv_slot);
#pragma unroll
    for (int i = 0; i < 2; ++i) inputs_before[i] = conv + channels[i] * p.conv_channel;
  };
  locate();
  if (start.exists(p)) {
    constexpr int kLine = 128 / static_cast<int>(sizeof(S));
    if (t * kLine < kRows * kKeySize) ptx::ask_l2(state + t * kLine);
    if (convolves) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int k = 0; k < kTaps; ++k) {
          if (i < pairs) ptx::ask_l2(inputs_before[i] + (start.token + k) * p.conv_tap);
        }
      }
    }
  }
  ptx::wait_for_previous();

  // All is loaded from where it was when the hint was given; in the rare case that it is not there, once more.
  uint4 raw[kLoads];
  std::uint32_t inputs[2][kSteps], old[2][kTaps] = {};  // two channels in a word
  T gate_input[2] = {}, z[kHeld] = {};
  auto const load_tokens = [&] {
    T const* const mixed = static_cast<T const*>(p.mixed) + product(start.first, p.mixed_row);
    if (convolves) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (i < pairs && step < start.count)
            inputs[i][step] = __ldcg(reinterpret_cast<std::uint32_t const*>(mixed + columns[i] + step * p.mixed_row));
        }
      }
    }
    if (gate_step < start.count) {
      T const* const gates = mixed + gate_step * p.mixed_row + g * p.gate_stride + in_group;
      gate_input[0] = __ldcg(gates + p.a_base);
      gate_input[1] = __ldcg(gates + p.b_base);
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      int const step = i * kLanes + c;
      if (step < start.count)
        z[i] = __ldcg(mixed + step * p.mixed_row + p.z_base + g * p.value_stride + in_group * p.value_size + first_row + row);
    }
  };
  load_tokens();
  int const next_slot = kSteps > 1 && lane < steps ? ptx::load_relaxed(slots + lane * p.slots_step) : 0;
#pragma unroll 1
  while (true) {
    if (start.exists(p)) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) raw[i] = __ldcg(reinterpret_cast<uint4 const*>(state + mine + i * kLanes * kVec));
      // Two loops: a choice within one would wait for each load before the next.
      if (convolves && p.conv_pairs) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int k = 0; k < kTaps; ++k) {
            if (i < pairs)
              old[i][k] = __ldcg(reinterpret_cast<std::uint32_t const*>(inputs_before[i] + (start.token + k) * p.conv_tap));
          }
        }
      } else if (convolves) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int k = 0; k < kTaps; ++k) {
            if (i < pairs) old[i][k] = load_apart(inputs_before[i] + (start.token + k) * p.conv_tap, p.conv_channel);
          }
        }
      }
    }
    Start<kSteps> const truth(p, sequence, slots, accepted);
    if (truth == start) break;
    bool const moved = kSteps > 1 && (truth.first != start.first || truth.count != start.count);
    start = truth;
    locate();
    if (moved) load_tokens();
  }
  int const count = start.count, out_row = p.value_heads * p.value_size;
  T* const out = static_cast<T*>(p.out) + product(start.first, out_row) + h * p.value_size + first_row + row;
  if (kSteps > 1 && sequence == p.sequences - 1) {  // padding
#pragma unroll 1
    for (int step = count + c; step < p.rows - start.first; step += kLanes) out[product(step, out_row)] = static_cast<T>(0.0f);
  }
  if (!start.exists(p)) {  // for all blocks of the cluster
    if (clustered) ptx::cluster_wait();
#pragma unroll 1
    for (int step = c; step < count; step += kLanes) out[step * out_row] = static_cast<T>(0.0f);
    return;
  }

  // The convolution of all tokens, and what belongs to a token as a whole.
  if (convolves) {
    float past[2][2][kTaps];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        float2 const pair = floats_of<T>(old[i][k]);
        past[i][0][k] = pair.x;
        past[i][1][k] = pair.y;
      }
    }
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      if (step >= count) break;
      float y[2][2] = {};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (i >= pairs) continue;
        float2 const now = floats_of<T>(inputs[i][step]), bias = floats_of<T>(bias_of[i]);
        std::uint32_t const taps[4] = {taps_of[i].x, taps_of[i].y, taps_of[i].z, taps_of[i].w};
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float2 const w01 = floats_of<T>(taps[2 * e]), w23 = floats_of<T>(taps[2 * e + 1]);
          float (&before)[kTaps] = past[i][e];
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
        float* const to = has_qk ? shared + (i == 0 ? at.q : at.k) + step * kKeySize : shared + at.v + step * kRows;
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
        if (lane < 3) shared[at.norms + (step * 3 + lane) * kQkWarps + warp] = lane == 0 ? sums[0] : lane == 1 ? sums[1] : sums[2];
      }
    }
  }
  if (gate_step < count) {
    float const x = static_cast<float>(gate_input[0]) + step_bias;
    float const softplus = x <= 20.0f ? log1pf(expf(x)) : x;
    shared[at.gates + 2 * gate_step] = expf(rate * softplus);
    shared[at.gates + 2 * gate_step + 1] = ptx::reciprocal(1.0f + expf(-static_cast<float>(gate_input[1])));
  }
  __syncthreads();
  if (clustered) {
    ptx::cluster_wait();
    ptx::cluster_arrive();  // this block has read the inputs of q and k
  }

  // The state, token by token.
  float o[kHeld] = {};
#pragma unroll 1
  for (int step = 0; step < count; ++step) {
    float const* const key = shared + at.k + step * kKeySize + place_of<S, kKeySize>(c * kVec);
    float const* const query = shared + at.q + step * kKeySize + place_of<S, kKeySize>(c * kVec);
    float const* const norms = shared + at.norms + step * 3 * kQkWarps;
    float with_key[2] = {}, with_query[2] = {};
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      float values[kVec];
      unpack<S>(raw[i], values);
#pragma unroll
      for (int e = 0; e < kVec; e += 4) {
        int const k = place_of<S, kKeySize>(i * kLanes * kVec + e);
        float4 const keys = *reinterpret_cast<float4 const*>(key + k), queries = *reinterpret_cast<float4 const*>(query + k);
        float& a = with_key[i % 2];
        float& b = with_query[i % 2];
        a = fmaf(values[e], keys.x, a), b = fmaf(values[e], queries.x, b);
        a = fmaf(values[e + 1], keys.y, a), b = fmaf(values[e + 1], queries.y, b);
        a = fmaf(values[e + 2], keys.z, a), b = fmaf(values[e + 2], queries.z, b);
        a = fmaf(values[e + 3], keys.w, a), b = fmaf(values[e + 3], queries.w, b);
      }
    }
    float known = with_key[0] + with_key[1], seen = with_query[0] + with_query[1];
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
    float const q_scale = ptx::inverse_root(sums[0] + 1e-6f) * p.query_scale, k_scale = ptx::inverse_root(sums[1] + 1e-6f);
    float const decay = shared[at.gates + 2 * step], strength = shared[at.gates + 2 * step + 1];
    float const v = shared[at.v + step * kRows + row];
    float const change = strength * (v - decay * k_scale * known) * k_scale;  // times y of k
    float const result = q_scale * fmaf(decay, seen, change * sums[2]);
    float const rounded = static_cast<float>(static_cast<T>(result));
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (step == i * kLanes + c) o[i] = rounded;
    }
    float square = rounded * rounded;
#pragma unroll
    for (int d = kLanes; d < 32; d *= 2) square += __shfl_xor_sync(0xFFFFFFFFu, square, d);
    float* const place = shared + at.squares + step * value_warps + part * kWarps + warp;
    if (joint) {
      if (lane < p.split) ptx::send(place, mail, in_group * p.split + lane, square);
    } else if (lane == 0) {
      *place = square;
    }

    bool stored = true;
    S* to = state;
    if constexpr (kSteps > 1) {
      int const slot = __shfl_sync(0xFFFFFFFFu, next_slot, step);
      stored = slot > 0 && slot < p.slot_count;
      to = static_cast<S*>(p.state) + product(slot, p.state_slot) + block_state;
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      float values[kVec];
      unpack<S>(raw[i], values);
#pragma unroll
      for (int e = 0; e < kVec; e += 4) {
        float4 const keys = *reinterpret_cast<float4 const*>(key + place_of<S, kKeySize>(i * kLanes * kVec + e));
        values[e] = fmaf(change, keys.x, decay * values[e]);
        values[e + 1] = fmaf(change, keys.y, decay * values[e + 1]);
        values[e + 2] = fmaf(change, keys.z, decay * values[e + 2]);
        values[e + 3] = fmaf(change, keys.w, decay * values[e + 3]);
      }
      raw[i] = pack<S>(values);
      if (stored) *reinterpret_cast<uint4*>(to + mine + i * kLanes * kVec) = raw[i];
    }
  }

  // The inputs that the next call wants; those of q and k when the whole cluster has read them.
  auto const leave_inputs = [&] {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (i >= pairs) continue;
      store_pair(inputs_before[i], old[i][1], p);
      store_pair(inputs_before[i] + p.conv_tap, old[i][2], p);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        if (step < count) store_pair(inputs_before[i] + (2 + step) * p.conv_tap, inputs[i][step], p);
      }
    }
  };
  if (has_v) leave_inputs();
  if (joint) {
    if constexpr (kSteps > 1) {  // what was announced when the count was not known
      for (int step = count; step < steps; ++step) {
        float* const place = shared + at.squares + step * value_warps + part * kWarps + warp;
        if (lane < p.split) ptx::send(place, mail, in_group * p.split + lane, 0.0f);
      }
    }
    ptx::wait_for_bytes(mail);
  } else {
    __syncthreads();
  }
  float scale[kHeld] = {};
#pragma unroll 1
  for (int step = 0; step < count; ++step) {
    float sum = shared[at.squares + step * value_warps + (lane & (value_warps - 1))];  // 8 or 16 of them
#pragma unroll
    for (int d = 1; d < 16; d *= 2) {
      float const other = __shfl_xor_sync(0xFFFFFFFFu, sum, d);
      if (d < value_warps) sum += other;
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (step == i * kLanes + c) scale[i] = ptx::inverse_root(fmaf(sum, p.mean_factor, p.epsilon));
    }
  }
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    int const step = i * kLanes + c;
    if (step < count) out[step * out_row] = static_cast<T>(o[i] * scale[i] * norm_weight * silu(static_cast<float>(z[i])));
  }
  if (clustered) ptx::cluster_wait();
  if (has_qk && blockIdx.x == 0) leave_inputs();
}

}  // namespace gb10::gdn_decode
