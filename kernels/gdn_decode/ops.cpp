// torch.ops.gb10.gdn_decode
#include <cmath>

#include "gb10/torch_op.h"
#include "gdn_decode.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

namespace gdn = gb10::gdn_decode;

constexpr char kOp[] = "gdn_decode";
constexpr std::int64_t kMaxStride = std::int64_t{1} << 30;  // in elements

void gdn_decode(Tensor mixed, Tensor conv_state, Tensor conv_weight, std::optional<Tensor> conv_bias, Tensor A_log, Tensor dt_bias,
                Tensor state, Tensor norm_weight, double epsilon, Tensor slots, std::int64_t key_heads, std::int64_t value_heads,
                bool interleaved, Tensor out, std::optional<Tensor> accepted, std::optional<Tensor> starts) {
  using namespace gb10::torch_op;
  ScalarType const dtype = mixed.scalar_type();
  Argument const strided[] = {{"mixed", &mixed, {ScalarType::BFloat16, ScalarType::Half}, 4},
                              {"conv_state", &conv_state, {dtype}, 2},
                              {"state", &state, {dtype, ScalarType::Float}, 16},
                              {"slots", &slots, {ScalarType::Int}, 4},
                              {"accepted", given(accepted), {ScalarType::Int}, 4}};
  Argument const contiguous[] = {{"conv_weight", &conv_weight, {dtype}, 16},
                                 {"conv_bias", given(conv_bias), {dtype}, 4},
                                 {"A_log", &A_log, {ScalarType::Float}, 4},
                                 {"dt_bias", &dt_bias, {dtype, ScalarType::Float}, 2},
                                 {"norm_weight", &norm_weight, {dtype, ScalarType::Float}, 2},
                                 {"out", &out, {dtype}, 2},
                                 {"starts", given(starts), {ScalarType::Int}, 4}};
  check_dtypes(kOp, strided);
  check_dtypes(kOp, contiguous);

  check_shape(kOp, "state", state, {-1, value_heads, -1, -1});
  std::int64_t const value_size = state.size(2), key_size = state.size(3);
  require((value_size == 64 || value_size == 128) && (key_size == 64 || key_size == 128), kOp,
          "state has shape " + shape_of(state) + "; its last two sizes (a value head, a key head) must be 64 or 128");
  require(state.size(0) >= 1 && state.size(0) <= gdn::kMaxSlots, kOp,
          "state has " + std::to_string(state.size(0)) + " slots; it must have 1 to " + std::to_string(gdn::kMaxSlots));
  require(value_heads >= 1 && value_heads <= gdn::kMaxHeads, kOp,
          "value_heads is " + std::to_string(value_heads) + "; it must be 1 to " + std::to_string(gdn::kMaxHeads));
  require(key_heads >= 1 && value_heads % key_heads == 0, kOp,
          "key_heads is " + std::to_string(key_heads) + "; it must divide value_heads, which is " + std::to_string(value_heads));
  std::int64_t const group = value_heads / key_heads * value_size;
  require(group <= gdn::kMaxGroup, kOp,
          "the value heads of a key head have " + std::to_string(group) + " rows of state together; it must be at most " +
              std::to_string(gdn::kMaxGroup));
  require(slots.dim() == 1 || slots.dim() == 2, kOp, "slots has shape " + shape_of(slots) + "; it must be [any] or [any, any]");
  std::int64_t const sequences = slots.size(0), steps = slots.dim() == 2 ? slots.size(1) : 1;
  require(sequences >= 1 && sequences <= gdn::kMaxSequences, kOp,
          "slots has " + std::to_string(sequences) + " rows (sequences); it must have 1 to " + std::to_string(gdn::kMaxSequences));
  require(steps >= 1 && steps <= gdn::kMaxSteps, kOp,
          "slots has " + std::to_string(steps) + " columns (tokens of a sequence); it must have 1 to " +
              std::to_string(gdn::kMaxSteps));
  if (accepted) check_shape(kOp, "accepted", *accepted, {sequences});
  std::int64_t const channels = 2 * key_heads * key_size + value_heads * value_size;
  std::int64_t const columns = channels + value_heads * value_size + 2 * value_heads;
  std::int64_t const rows = starts ? mixed.size(0) : sequences * steps;
  if (starts) check_shape(kOp, "starts", *starts, {sequences + 1});
  check_shape(kOp, "mixed", mixed, {rows, -1});
  require(rows >= 1 && rows <= gdn::kMaxSequences * gdn::kMaxSteps, kOp,
          "mixed has " + std::to_string(rows) + " rows (tokens); it must have 1 to " +
              std::to_string(gdn::kMaxSequences * gdn::kMaxSteps));
  require(mixed.size(1) >= columns, kOp,
          "mixed has " + std::to_string(mixed.size(1)) + " columns; q, k, v, z, b and a take " + std::to_string(columns));
  check_shape(kOp, "conv_weight", conv_weight, {channels, gdn::kWidth});
  if (conv_bias) check_shape(kOp, "conv_bias", *conv_bias, {channels});
  check_shape(kOp, "conv_state", conv_state, {state.size(0), channels, -1});
  std::int64_t const taps = gdn::kWidth - 2 + steps;
  require(conv_state.size(2) >= taps, kOp,
          "conv_state has shape " + shape_of(conv_state) + "; for " + std::to_string(steps) +
              " tokens of a sequence its last size must be at least " + std::to_string(taps));
  check_shape(kOp, "A_log", A_log, {value_heads});
  check_shape(kOp, "dt_bias", dt_bias, {value_heads});
  check_shape(kOp, "norm_weight", norm_weight, {value_size});
  check_shape(kOp, "out", out, {rows, value_heads * value_size});
  require(std::isfinite(epsilon) && epsilon >= 0, kOp, "epsilon is " + std::to_string(epsilon) + "; it must be 0 or more");

  require(mixed.stride(1) == 1 && mixed.stride(0) % 2 == 0, kOp,
          "mixed has strides " + std::to_string(mixed.stride(0)) + " and " + std::to_string(mixed.stride(1)) +
              "; its columns must be next to each other, its rows an even number apart");
  std::int64_t const vector = 16 / (state.scalar_type() == ScalarType::Float ? 4 : 2);
  require(state.stride(3) == 1 && state.stride(2) == key_size && (value_heads == 1 || state.stride(1) == value_size * key_size),
          kOp, "state is not dense within a slot; only its slots may lie apart");
  require(state.stride(0) % vector == 0, kOp,
          "state has slots " + std::to_string(state.stride(0)) + " numbers apart; that must be a multiple of " +
              std::to_string(vector));
  require(steps * mixed.stride(0) < kMaxStride && state.stride(0) < kMaxStride && slots.stride(0) < kMaxStride &&
              steps * slots.stride(slots.dim() - 1) < kMaxStride && conv_state.stride(0) < kMaxStride &&
              channels * conv_state.stride(1) < kMaxStride && conv_state.size(2) * conv_state.stride(2) < kMaxStride,
          kOp, "a stride of mixed, conv_state, state or slots is too large; copy the tensor first");
  for (Argument const& a : strided) {
    if (a.tensor) check_begin(kOp, a.name, *a.tensor, a.alignment);
  }
  for (Argument const& a : contiguous) {
    if (a.tensor) check_layout(kOp, a.name, *a.tensor, a.alignment);
  }
  for (Argument const& a : strided) {
    if (a.tensor) check_device(kOp, a.name, *a.tensor, mixed);
  }
  for (Argument const& a : contiguous) {
    if (a.tensor) check_device(kOp, a.name, *a.tensor, mixed);
  }

  gdn::Arguments p{};
  p.mixed = mixed.data_ptr();
  p.conv_state = conv_state.data_ptr();
  p.conv_weight = conv_weight.data_ptr();
  p.conv_bias = conv_bias ? conv_bias->data_ptr() : nullptr;
  p.log_decay = static_cast<float const*>(A_log.data_ptr());
  p.step_bias = dt_bias.data_ptr();
  p.state = state.data_ptr();
  p.norm_weight = norm_weight.data_ptr();
  p.slots = static_cast<std::int32_t const*>(slots.data_ptr());
  p.accepted = accepted ? static_cast<std::int32_t const*>(accepted->data_ptr()) : nullptr;
  p.starts = starts ? static_cast<std::int32_t const*>(starts->data_ptr()) : nullptr;
  p.out = out.data_ptr();
  p.mixed_row = static_cast<int>(mixed.stride(0));
  p.conv_slot = static_cast<int>(conv_state.stride(0));
  p.conv_channel = static_cast<int>(conv_state.stride(1));
  p.conv_tap = static_cast<int>(conv_state.stride(2));
  p.state_slot = static_cast<int>(state.stride(0));
  p.slots_row = static_cast<int>(slots.stride(0));
  p.slots_step = slots.dim() == 2 ? static_cast<int>(slots.stride(1)) : 0;
  p.accepted_row = accepted ? static_cast<int>(accepted->stride(0)) : 0;
  p.epsilon = static_cast<float>(epsilon);
  p.query_scale = 1.0f / std::sqrt(static_cast<float>(key_size));
  p.rows = static_cast<int>(rows);
  p.sequences = static_cast<int>(sequences);
  p.steps = static_cast<int>(steps);
  p.slot_count = static_cast<int>(state.size(0));
  p.key_heads = static_cast<int>(key_heads);
  p.value_heads = static_cast<int>(value_heads);
  p.key_size = static_cast<int>(key_size);
  p.value_size = static_cast<int>(value_size);
  p.interleaved = interleaved;
  p.float_step_bias = dt_bias.scalar_type() == ScalarType::Float;
  p.float_norm_weight = norm_weight.scalar_type() == ScalarType::Float;
  p.conv_pairs =
      p.conv_channel == 1 && p.conv_slot % 2 == 0 && p.conv_tap % 2 == 0 && reinterpret_cast<std::uintptr_t>(p.conv_state) % 4 == 0;

  OnDeviceOf const device(kOp, mixed);
  device.check(gdn::launch(p, number_of(mixed), number_of(state), device.stream()));
}

}  // namespace

GB10_OPERATOR(
    gdn_decode,
    "gdn_decode(Tensor mixed, Tensor(a!) conv_state, Tensor conv_weight, Tensor? conv_bias, Tensor A_log, Tensor dt_bias, "
    "Tensor(b!) state, Tensor norm_weight, float epsilon, Tensor slots, int key_heads, int value_heads, bool interleaved, "
    "Tensor(c!) out, Tensor? accepted=None, Tensor? starts=None) -> ()",
    gdn_decode)
