// torch.ops.gb10.attention_front and attention_gate
#include <cmath>

#include "attention_front.h"
#include "gb10/op_checks.h"
#include "gb10/torch_op.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

namespace front = gb10::attention_front;

// Its last dimension is dense, all others are multiples of `unit` elements apart.
void check_strides(char const* op, char const* name, Tensor const& tensor, std::int64_t unit) {
  std::int64_t const last = tensor.dim() - 1;
  gb10::torch_op::require(tensor.stride(last) == 1, op,
                          std::string(name) + " has a last stride of " + std::to_string(tensor.stride(last)) + "; it must be 1");
  for (std::int64_t i = 0; i < last; ++i) {
    gb10::torch_op::require(tensor.stride(i) % unit == 0, op,
                            std::string(name) + " has a stride of " + std::to_string(tensor.stride(i)) +
                                "; it must be a multiple of " + std::to_string(unit));
  }
}

std::int64_t check_rows(char const* op, char const* name, Tensor const& tensor) {
  gb10::torch_op::require(tensor.size(0) >= 1 && tensor.size(0) <= front::kMaxTokens, op,
                          std::string(name) + " has " + std::to_string(tensor.size(0)) + " rows (tokens); it must have 1 to " +
                              std::to_string(front::kMaxTokens));
  return tensor.size(0);
}

void check_both(char const* op, char const* names, bool one, bool other) {
  gb10::torch_op::require(one == other, op, std::string("of ") + names + " one is given and one is not; give both or none");
}

void attention_front(Tensor qkv, Tensor q_weight, Tensor k_weight, double epsilon, bool norm_plus_one, Tensor cos_sin,
                     Tensor positions, std::int64_t height_section, std::int64_t width_section, std::int64_t heads,
                     std::int64_t kv_heads, bool gated, Tensor query, std::optional<Tensor> key_out,
                     std::optional<Tensor> key_cache, std::optional<Tensor> value_cache, std::optional<Tensor> slots,
                     std::optional<Tensor> q_scale, std::optional<Tensor> k_scale, std::optional<Tensor> v_scale) {
  using namespace gb10::torch_op;
  constexpr char kOp[] = "attention_front";
  ScalarType const dtype = qkv.scalar_type();
  bool const eight = key_cache && key_cache->scalar_type() != dtype;
  check_both(kOp, "key_cache and value_cache", key_cache.has_value(), value_cache.has_value());
  check_both(kOp, "key_cache and slots", key_cache.has_value(), slots.has_value());
  check_both(kOp, "k_scale and v_scale", k_scale.has_value(), v_scale.has_value());
  Argument const strided[] = {
      {"qkv", &qkv, {ScalarType::BFloat16, ScalarType::Half}, 16},
      {"key_cache", given(key_cache), {dtype, ScalarType::Byte, ScalarType::Float8_e4m3fn}, 16},
      {"value_cache", given(value_cache), {dtype, ScalarType::Byte, ScalarType::Float8_e4m3fn}, 8},
      {"positions", &positions, {ScalarType::Long, ScalarType::Int}, 4},
  };
  Argument const contiguous[] = {{"q_weight", &q_weight, {dtype}, 16},
                                 {"k_weight", &k_weight, {dtype}, 16},
                                 {"cos_sin", &cos_sin, {dtype}, 16},
                                 {"query", &query, {dtype, ScalarType::Float8_e4m3fn}, 16},
                                 {"key_out", given(key_out), {dtype}, 16},
                                 {"slots", given(slots), {ScalarType::Long}, 8},
                                 {"q_scale", given(q_scale), {ScalarType::Float}, 4},
                                 {"k_scale", given(k_scale), {ScalarType::Float}, 4},
                                 {"v_scale", given(v_scale), {ScalarType::Float}, 4}};
  check_dtypes(kOp, strided);
  check_dtypes(kOp, contiguous);
  require(!value_cache || value_cache->scalar_type() == key_cache->scalar_type(), kOp,
          "key_cache and value_cache have different dtypes; they must have the same");
  require(eight == k_scale.has_value(), kOp,
          std::string("k_scale and v_scale are ") + (k_scale ? "" : "not ") + "given with a cache of " +
              (key_cache ? name_of(key_cache->scalar_type()) : "none") + "; a cache of 8 bits needs them, no other takes them");
  require((query.scalar_type() != dtype) == q_scale.has_value(), kOp,
          std::string("q_scale is ") + (q_scale ? "" : "not ") + "given with a query of " + name_of(query.scalar_type()) +
              "; a query of 8 bits needs it, no other takes it");

  check_shape(kOp, "qkv", qkv, {-1, -1});
  std::int64_t const tokens = check_rows(kOp, "qkv", qkv);
  require(heads >= 1 && kv_heads >= 1 && heads + 2 * kv_heads <= front::kMaxHeads, kOp,
          "heads is " + std::to_string(heads) + " and kv_heads is " + std::to_string(kv_heads) +
              "; each must be at least 1, and those of q, k and v together at most " + std::to_string(front::kMaxHeads));
  check_shape(kOp, "q_weight", q_weight, {-1});
  std::int64_t const head_size = q_weight.size(0);
  require(head_size == 64 || head_size == 128 || head_size == 256, kOp,
          "q_weight has " + std::to_string(head_size) + " numbers (the size of a head); it must have 64, 128 or 256");
  check_shape(kOp, "k_weight", k_weight, {head_size});
  check_shape(kOp, "qkv", qkv, {tokens, (heads * (gated ? 2 : 1) + 2 * kv_heads) * head_size});
  check_shape(kOp, "query", query, {tokens, heads * head_size});
  if (key_out) check_shape(kOp, "key_out", *key_out, {tokens, kv_heads * head_size});
  check_shape(kOp, "cos_sin", cos_sin, {-1, -1});
  std::int64_t const rotary = cos_sin.size(1), vector = head_size / 32;
  require(cos_sin.size(0) >= 1 && cos_sin.size(0) <= std::numeric_limits<std::int32_t>::max(), kOp,
          "cos_sin has " + std::to_string(cos_sin.size(0)) + " rows (positions); it must have at least one");
  require(rotary >= 2 * vector && rotary % (2 * vector) == 0 && rotary <= head_size, kOp,
          "cos_sin has " + std::to_string(rotary) + " columns (numbers that rotate); it must be a multiple of " +
              std::to_string(2 * vector) + ", at most " + std::to_string(head_size));
  bool const several = positions.dim() == 2;
  if (several) check_shape(kOp, "positions", positions, {3, tokens});
  else check_shape(kOp, "positions", positions, {tokens});
  require(several ? height_section >= 0 && width_section >= 0 && height_section + width_section <= rotary / 2
                  : height_section == 0 && width_section == 0,
          kOp,
          "height_section is " + std::to_string(height_section) + " and width_section is " + std::to_string(width_section) +
              "; with three rows of positions they are parts of " + std::to_string(rotary / 2) + ", else 0");
  if (key_cache) {
    check_shape(kOp, "key_cache", *key_cache, {-1, -1, kv_heads, head_size});
    check_shape(kOp, "value_cache", *value_cache, {key_cache->size(0), key_cache->size(1), kv_heads, head_size});
    require(key_cache->size(0) >= 1 && key_cache->size(1) >= 1 && key_cache->size(0) <= std::numeric_limits<std::int32_t>::max() &&
                key_cache->size(1) <= std::numeric_limits<std::int32_t>::max(),
            kOp, "key_cache has shape " + shape_of(*key_cache) + "; it must have blocks, and these tokens");
    check_shape(kOp, "slots", *slots, {-1});
  }
  if (q_scale) check_one(kOp, "q_scale", *q_scale);
  if (k_scale) check_one(kOp, "k_scale", *k_scale);
  if (v_scale) check_one(kOp, "v_scale", *v_scale);
  require(std::isfinite(epsilon) && epsilon >= 0, kOp, "epsilon is " + std::to_string(epsilon) + "; it must be 0 or more");

  check_strides(kOp, "qkv", qkv, 8);
  if (key_cache) {
    check_strides(kOp, "key_cache", *key_cache, 8);
    check_strides(kOp, "value_cache", *value_cache, 8);
  }
  std::int64_t const words = positions.scalar_type() == ScalarType::Long ? 2 : 1;
  std::int64_t const token_stride = words * positions.stride(several ? 1 : 0),
                     row_stride = several ? words * positions.stride(0) : 0;
  require(token_stride < (std::int64_t{1} << 31) && row_stride < (std::int64_t{1} << 30) && (!several || row_stride > 0), kOp,
          "positions has strides that are too large, or none; copy it first");
  for (Argument const& a : strided) {
    if (a.tensor) check_begin(kOp, a.name, *a.tensor, a.alignment);
  }
  for (Argument const& a : contiguous) {
    if (a.tensor) check_layout(kOp, a.name, *a.tensor, a.alignment);
  }
  for (Argument const& a : strided) {
    if (a.tensor) check_device(kOp, a.name, *a.tensor, qkv);
  }
  for (Argument const& a : contiguous) {
    if (a.tensor) check_device(kOp, a.name, *a.tensor, qkv);
  }

  auto const floats_of = [](std::optional<Tensor> const& tensor) {
    return tensor ? static_cast<float const*>(tensor->data_ptr()) : nullptr;
  };
  front::Arguments p{};
  p.qkv = qkv.data_ptr();
  p.q_weight = q_weight.data_ptr();
  p.k_weight = k_weight.data_ptr();
  p.cos_sin = cos_sin.data_ptr();
  p.positions = static_cast<std::int32_t const*>(positions.data_ptr());
  p.query = query.data_ptr();
  p.key_out = key_out ? key_out->data_ptr() : nullptr;
  p.q_scale = floats_of(q_scale);
  p.k_scale = floats_of(k_scale);
  p.v_scale = floats_of(v_scale);
  p.qkv_row = qkv.stride(0);
  if (key_cache) {
    p.key_cache = key_cache->data_ptr();
    p.value_cache = value_cache->data_ptr();
    p.slots = static_cast<std::int64_t const*>(slots->data_ptr());
    p.slot_count = static_cast<int>(std::min<std::int64_t>(slots->size(0), tokens));
    p.blocks = static_cast<int>(key_cache->size(0));
    p.block_size = static_cast<int>(key_cache->size(1));
    p.key_block = key_cache->stride(0), p.key_token = key_cache->stride(1), p.key_head = key_cache->stride(2);
    p.value_block = value_cache->stride(0), p.value_token = value_cache->stride(1), p.value_head = value_cache->stride(2);
  }
  p.position_token = static_cast<int>(token_stride);
  p.position_row = static_cast<int>(row_stride);
  p.height_section = static_cast<int>(height_section);
  p.width_section = static_cast<int>(width_section);
  p.tokens = static_cast<int>(tokens);
  p.heads = static_cast<int>(heads);
  p.kv_heads = static_cast<int>(kv_heads);
  p.head_size = static_cast<int>(head_size);
  p.rotary = static_cast<int>(rotary);
  p.position_count = static_cast<int>(cos_sin.size(0));
  p.epsilon = static_cast<float>(epsilon);
  p.norm_plus_one = norm_plus_one;
  p.gated = gated;

  OnDeviceOf const device(kOp, qkv);
  device.check(front::launch(p, number_of(qkv), device.stream()));
}

void attention_gate(Tensor out, Tensor gates) {
  using namespace gb10::torch_op;
  constexpr char kOp[] = "attention_gate";
  check_dtype(kOp, "out", out, {ScalarType::BFloat16, ScalarType::Half});
  check_dtype(kOp, "gates", gates, {out.scalar_type()});
  check_shape(kOp, "out", out, {-1, -1, -1});
  std::int64_t const tokens = check_rows(kOp, "out", out), heads = out.size(1), head_size = out.size(2);
  require(heads >= 1 && heads <= front::kMaxHeads && head_size >= 8 && head_size % 8 == 0 && head_size <= front::kMaxHeadSize, kOp,
          "out has shape " + shape_of(out) + "; it must have 1 to " + std::to_string(front::kMaxHeads) +
              " heads of a multiple of 8 numbers, at most " + std::to_string(front::kMaxHeadSize));
  check_shape(kOp, "gates", gates, {tokens, heads, head_size});
  check_strides(kOp, "gates", gates, 8);
  check_begin(kOp, "gates", gates, 16);
  check_layout(kOp, "out", out, 16);
  check_device(kOp, "out", out, out);
  check_device(kOp, "gates", gates, out);
  front::GateArguments p{};
  p.out = out.data_ptr();
  p.gates = gates.data_ptr();
  p.row = gates.stride(0);
  p.head = gates.stride(1);
  p.tokens = static_cast<int>(tokens);
  p.heads = static_cast<int>(heads);
  p.head_size = static_cast<int>(head_size);
  OnDeviceOf const device(kOp, out);
  device.check(front::launch_gate(p, number_of(out), device.stream()));
}

}  // namespace

GB10_OPERATOR(attention_front,
              "attention_front(Tensor qkv, Tensor q_weight, Tensor k_weight, float epsilon, bool norm_plus_one, Tensor cos_sin, "
              "Tensor positions, int height_section, int width_section, int heads, int kv_heads, bool gated, Tensor(a!) query, "
              "Tensor(b!)? key_out, Tensor(c!)? key_cache, Tensor(d!)? value_cache, Tensor? slots, Tensor? q_scale, "
              "Tensor? k_scale, Tensor? v_scale) -> ()",
              attention_front)
GB10_OPERATOR(attention_gate, "attention_gate(Tensor(a!) out, Tensor gates) -> ()", attention_gate)
