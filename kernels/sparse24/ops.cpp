// torch.ops.gb10.sparse24_gemv and torch.ops.gb10.sparse24_moe
#include <limits>

#include "gb10/device.h"
#include "gb10/op_checks.h"
#include "gb10/torch_op.h"
#include "moe.h"
#include "sparse24.h"

namespace {

using gb10::torch_op::ScalarType;
using gb10::torch_op::Tensor;

namespace sparse = gb10::sparse24;

// A packed matrix, or a stack of `count` of them; `prefix` stands before its parts' names.
sparse::Packed packed_of(char const* op, std::string const& prefix, Tensor const& values, Tensor const& positions,
                         Tensor const& scales, std::optional<std::int64_t> count, std::int64_t rows, std::int64_t columns) {
  using namespace gb10::torch_op;
  std::int64_t const row_tiles = (rows + sparse::kTileRows - 1) / sparse::kTileRows;
  std::int64_t const column_tiles = (columns + sparse::kTileColumns - 1) / sparse::kTileColumns;
  auto const check = [&](char const* part, Tensor const& tensor, std::int64_t bytes) {
    std::string const name = prefix + part;
    if (count) check_shape(op, name.c_str(), tensor, {*count, row_tiles, column_tiles, bytes});
    else check_shape(op, name.c_str(), tensor, {row_tiles, column_tiles, bytes});
    return static_cast<std::uint8_t const*>(tensor.data_ptr());
  };
  sparse::Packed const packed{check("values", values, sparse::kTileValueBytes),
                              check("positions", positions, sparse::kTilePositionBytes),
                              check("scales", scales, sparse::kTileScaleBytes)};
  std::int64_t const tiles = count.value_or(1) * row_tiles * column_tiles;
  require(tiles <= std::numeric_limits<std::int32_t>::max(), op,
          prefix + "values has " + std::to_string(tiles) + " tiles; it must have fewer than 2^31");
  return packed;
}

constexpr char kOp[] = "sparse24_gemv";

void sparse24_gemv(Tensor x, Tensor values, Tensor positions, Tensor scales, Tensor global_scale, std::optional<Tensor> bias,
                   Tensor out) {
  using namespace gb10::torch_op;

  Argument const arguments[] = {{"x", &x, {ScalarType::BFloat16, ScalarType::Half}, 16},
                                {"values", &values, {ScalarType::Byte}, 16},
                                {"positions", &positions, {ScalarType::Byte}, 8},
                                {"scales", &scales, {ScalarType::Float8_e4m3fn}, 8},
                                {"global_scale", &global_scale, {ScalarType::Float}, 4},
                                {"bias", given(bias), {x.scalar_type()}, 2},
                                {"out", &out, {x.scalar_type()}, 2}};
  check_dtypes(kOp, arguments);

  std::int64_t const tokens = check_tokens(kOp, x);
  std::int64_t const columns = check_columns(kOp, x, sparse::kColumnUnit, sparse::kMaxColumns);
  check_shape(kOp, "out", out, {tokens, -1});
  std::int64_t const rows = out.size(1);
  require(rows >= 1 && rows <= sparse::kMaxRows, kOp,
          "out has " + std::to_string(rows) + " columns (N); N must be 1 to " + std::to_string(sparse::kMaxRows));
  sparse::Packed const packed = packed_of(kOp, "", values, positions, scales, {}, rows, columns);
  check_one(kOp, "global_scale", global_scale);
  if (bias) check_shape(kOp, "bias", *bias, {rows});

  check_layouts_and_devices(kOp, arguments);

  sparse::Arguments a{};
  a.x = x.data_ptr();
  a.weight = packed;
  a.global_scale = static_cast<float const*>(global_scale.data_ptr());
  a.bias = bias ? bias->data_ptr() : nullptr;
  a.out = out.data_ptr();
  a.tokens = static_cast<int>(tokens);
  a.rows = static_cast<int>(rows);
  a.columns = static_cast<int>(columns);

  OnDeviceOf const device(kOp, x);
  device.check(sparse::launch(a, number_of(x), device.stream()));
}

// ---- sparse24_moe

constexpr char kMoe[] = "sparse24_moe";

// What moe::activate<true> has.
bool offered(gb10::torch_op::NamedActivation const& named) {
  return named.gated && !named.interleaved && named.activation <= gb10::moe::Activation::kGeluTanh;
}

void sparse24_moe(Tensor x, Tensor w13_values, Tensor w13_positions, Tensor w13_scales, Tensor w13_global, Tensor w2_values,
                  Tensor w2_positions, Tensor w2_scales, Tensor w2_global, std::int64_t intermediate, Tensor topk_ids,
                  Tensor topk_weights, std::optional<Tensor> expert_map, std::string activation, double limit, double alpha,
                  double beta, bool up_first, bool router_weight_on_input, Tensor workspace, Tensor out) {
  using namespace gb10::torch_op;
  sparse::MoeArguments a{};
  NamedActivation const& named = find_activation(kMoe, activation, offered);
  static_cast<gb10::moe::ActivationNumbers&>(a) = check_activation_numbers(kMoe, named, limit, alpha, beta);

  std::size_t const id_bytes = topk_ids.scalar_type() == ScalarType::Long ? 8 : 4;
  Argument const arguments[] = {{"x", &x, {ScalarType::BFloat16, ScalarType::Half}, 16},
                                {"w13_values", &w13_values, {ScalarType::Byte}, 16},
                                {"w13_positions", &w13_positions, {ScalarType::Byte}, 8},
                                {"w13_scales", &w13_scales, {ScalarType::Float8_e4m3fn}, 8},
                                {"w13_global", &w13_global, {ScalarType::Float}, 4},
                                {"w2_values", &w2_values, {ScalarType::Byte}, 16},
                                {"w2_positions", &w2_positions, {ScalarType::Byte}, 8},
                                {"w2_scales", &w2_scales, {ScalarType::Float8_e4m3fn}, 8},
                                {"w2_global", &w2_global, {ScalarType::Float}, 4},
                                {"topk_ids", &topk_ids, {ScalarType::Int, ScalarType::Long}, id_bytes},
                                {"topk_weights", &topk_weights, {ScalarType::Float}, 4},
                                {"expert_map", given(expert_map), {ScalarType::Int}, 4},
                                {"workspace", &workspace, {ScalarType::Float}, 16},
                                {"out", &out, {x.scalar_type()}, 2}};
  check_dtypes(kMoe, arguments);

  std::int64_t const tokens = check_tokens(kMoe, x), hidden = x.size(1);
  check_width(kMoe, "hidden (the columns of x)", hidden, sparse::kTileRows, sparse::kMaxWidth);
  check_width(kMoe, "intermediate", intermediate, sparse::kTileRows, sparse::kMaxWidth);
  check_shape(kMoe, "w2_values", w2_values, {-1, -1, -1, -1});
  std::int64_t const experts = w2_values.size(0);
  require(experts >= 1 && experts <= sparse::kMaxExperts, kMoe,
          "w2_values holds " + std::to_string(experts) + " experts; it must hold 1 to " + std::to_string(sparse::kMaxExperts));
  a.w13 = packed_of(kMoe, "w13_", w13_values, w13_positions, w13_scales, experts, 2 * intermediate, hidden);
  a.w2 = packed_of(kMoe, "w2_", w2_values, w2_positions, w2_scales, experts, hidden, intermediate);
  bool const two = w13_global.dim() == 2;
  if (two) check_shape(kMoe, "w13_global", w13_global, {experts, 2});
  else check_shape(kMoe, "w13_global", w13_global, {experts});
  check_shape(kMoe, "w2_global", w2_global, {experts});
  static_cast<gb10::moe::Routing&>(a) =
      check_routing(kMoe, topk_ids, topk_weights, expert_map, tokens, experts, router_weight_on_input);
  check_shape(kMoe, "workspace", workspace, {-1});
  std::int64_t const needed = tokens * a.topk * intermediate;
  require(workspace.numel() >= needed, kMoe,
          "workspace has " + std::to_string(workspace.numel()) + " elements; it must have at least " + std::to_string(needed));
  check_shape(kMoe, "out", out, {tokens, hidden});

  check_layouts_and_devices(kMoe, arguments);

  a.x = x.data_ptr();
  a.w13_globals = static_cast<float const*>(w13_global.data_ptr());
  a.w2_globals = static_cast<float const*>(w2_global.data_ptr());
  a.act = static_cast<float*>(workspace.data_ptr());
  a.out = out.data_ptr();
  a.hidden = static_cast<int>(hidden);
  a.intermediate = static_cast<int>(intermediate);
  a.global_columns = two ? 2 : 1;
  a.up_first = up_first;

  OnDeviceOf const device(kMoe, x);
  gb10::Device properties{};
  device.check(gb10::current_device(properties));
  std::size_t const bytes = sparse::moe_token_bytes(a.topk, a.hidden, a.intermediate);
  require(bytes <= properties.block_shared_bytes, kMoe,
          "one token takes " + std::to_string(bytes) +
              " bytes of shared memory with this hidden, intermediate and topk; this GPU has " +
              std::to_string(properties.block_shared_bytes));
  device.check(sparse::launch_moe(a, number_of(x), device.stream()));
}

}  // namespace

GB10_OPERATOR(sparse24_gemv,
              "sparse24_gemv(Tensor x, Tensor values, Tensor positions, Tensor scales, Tensor global_scale, Tensor? bias, "
              "Tensor(a!) out) -> ()",
              sparse24_gemv)

GB10_OPERATOR(sparse24_moe,
              "sparse24_moe(Tensor x, Tensor w13_values, Tensor w13_positions, Tensor w13_scales, Tensor w13_global, "
              "Tensor w2_values, Tensor w2_positions, Tensor w2_scales, Tensor w2_global, int intermediate, Tensor topk_ids, "
              "Tensor topk_weights, Tensor? expert_map, str activation, float limit, float alpha, float beta, bool up_first, "
              "bool router_weight_on_input, Tensor(a!) workspace, Tensor(b!) out) -> ()",
              sparse24_moe)
