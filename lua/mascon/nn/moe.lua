--- MoE: a mixture of SwiGLU experts, dropless. Every token goes through its k best experts, whatever their load:
--
--   y_t = sum_j w_tj down_e(swiglu(gate_up_e(x_t))),  e = the j-th choice of token t
--
-- Rows are sorted by expert and all experts run as one GroupedLinear. The rows per expert are counted on the device and
-- stay there.
local args = require "mascon.args"
local common = require "mascon.nn.common"
local functional = require "mascon.nn.functional"
local GroupedLinear = require "mascon.nn.grouped_linear"
local Router = require "mascon.nn.router"
local module = require "mascon.nn.module"
local tensor = require "mascon.tensor"

local Experts = module.Module:extend "Experts"
function Experts:init(gate_up, down)
  self.gate_up = gate_up -- one by one: Lua assigns from the right, and modules register in assignment order
  self.down = down
end
--- x: rows sorted by expert [R, hidden]; counts int64 [E]
function Experts:forward(x, counts)
  return self.down(functional.swiglu(self.gate_up(x, counts)), counts)
end

local MoE = module.Module:extend "MoE"

local spec = {
  hidden_size = { "positive", required = true },
  ffn_hidden_size = { "positive", required = true },
  num_experts = { "positive", required = true },
  top_k = { "positive", 2 },
  score_function = { { "softmax", "sigmoid" }, "softmax" },
  use_pre_softmax = { "boolean", false },
  scaling_factor = { "number", 1 },
  expert_bias = { "boolean", false },
  num_groups = { "positive", 1 },
  group_topk = { "positive", 1 },
  aux_loss_coeff = { "number", 0 },
  z_loss_coeff = { "number", 0 },
  bias = { "boolean", false },
  single_grouped_weight = { "boolean", false },
  single_grouped_bias = { "boolean", false },
  fuse_wgrad_accumulation = { "boolean", false },
  dtype = common.DTYPE,
  router_dtype = common.DTYPE,
  device = { "string" },
  init_method = { "function" },
  output_init_method = { "function" },
}

--- mc.nn.MoE{hidden_size =, ffn_hidden_size =, num_experts =, top_k = 2, aux_loss_coeff = 0, z_loss_coeff = 0, ...}.
-- Router options as in mc.nn.Router; bias = false, single_grouped_weight, single_grouped_bias and
-- fuse_wgrad_accumulation as in mc.nn.GroupedLinear; router_dtype = "float32" (float64 for a float64 model);
-- init_method for gate_up, output_init_method (default: init_method) for down, called per expert.
-- Parameters: router.weight [E, hidden]; experts.gate_up.* [2 ffn, hidden] per expert, the gate half first;
-- experts.down.* [hidden, ffn].
--
-- After each forward: m.aux, aux_loss_coeff * aux_loss + z_loss_coeff * z_loss as a tensor to add to the loss, or 0
-- when both coefficients are 0; m.metrics = {counts = int64 [E], scores = [T, E], aux_loss =, z_loss =}, outside the
-- graph: the balance loss (1 when even) and the mean squared logsumexp, nil where its coefficient is 0.
function MoE:init(opts)
  local o = args.options("MoE", opts, spec)
  if o.dtype == "float64" then o.router_dtype = "float64" end
  self.hidden_size, self.num_experts = o.hidden_size, o.num_experts
  self.aux_loss_coeff, self.z_loss_coeff = o.aux_loss_coeff, o.z_loss_coeff
  self.router = Router {
    hidden_size = o.hidden_size, num_experts = o.num_experts, top_k = o.top_k, score_function = o.score_function,
    use_pre_softmax = o.use_pre_softmax, scaling_factor = o.scaling_factor, expert_bias = o.expert_bias,
    num_groups = o.num_groups, group_topk = o.group_topk, dtype = o.router_dtype, device = o.device,
    init_method = o.init_method,
  }
  local function grouped(n_in, n_out, init)
    return GroupedLinear {
      num_gemms = o.num_experts, in_features = n_in, out_features = n_out, bias = o.bias,
      single_grouped_weight = o.single_grouped_weight, single_grouped_bias = o.single_grouped_bias,
      fuse_wgrad_accumulation = o.fuse_wgrad_accumulation, params_dtype = o.dtype, device = o.device,
      init_method = init,
    }
  end
  self.experts = Experts(
    grouped(o.hidden_size, 2 * o.ffn_hidden_size, o.init_method),
    grouped(o.ffn_hidden_size, o.hidden_size, o.output_init_method or o.init_method))
  self.aux, self.metrics = 0, {}
end

-- A tensor outside the graph that no mc.scope frees.
local function noted(t)
  t = t:detach()
  t.kept = true
  return t
end

function MoE:_balance(logits, scores, counts)
  local metrics = { counts = noted(counts), scores = noted(scores) }
  local aux = 0
  if self.aux_loss_coeff ~= 0 then
    local loss = functional.moe_aux_loss(scores, counts)
    metrics.aux_loss = noted(loss)
    aux = loss * self.aux_loss_coeff
  end
  if self.z_loss_coeff ~= 0 then
    local loss = functional.moe_z_loss(logits)
    metrics.z_loss = noted(loss)
    aux = loss * self.z_loss_coeff + aux
  end
  if aux ~= 0 then aux.kept = true end
  self.aux, self.metrics = aux, metrics
end

--- x [.., hidden_size] -> y of its shape.
function MoE:forward(x)
  local shape = tensor.want_tensor("MoE: x", x):shape()
  if #shape == 0 or shape[#shape] ~= self.hidden_size then
    args.raise(("MoE: x is [%s], its last axis must be hidden_size = %d"):format(table.concat(shape, ", "),
      self.hidden_size))
  end
  local flat = #shape == 2 and x or x:reshape(-1, self.hidden_size)
  local weights, ids, scores, logits = self.router(flat)
  local counts, rows, slots = functional.moe_sort(ids, self.num_experts)
  local sorted = functional.moe_permute(flat, rows, slots)
  local y = functional.moe_unpermute(self.experts(sorted, counts), rows, slots, weights)
  self:_balance(logits, scores, counts)
  return #shape == 2 and y or y:view(shape)
end

--- m:set_layout{weight = "single" | "per_expert", bias = ...}: of both grouped layers.
function MoE:set_layout(layout)
  local before = self.experts.gate_up:layout()
  self.experts.gate_up:set_layout(layout)
  local ok, err = pcall(self.experts.down.set_layout, self.experts.down, layout)
  if not ok then
    self.experts.gate_up:set_layout(before)
    error(err, 0)
  end
  return self
end

--- {weight =, bias = or nil}, as of a GroupedLinear.
function MoE:layout() return self.experts.gate_up:layout() end

function MoE:extra_repr()
  return ("aux_loss_coeff = %g, z_loss_coeff = %g"):format(self.aux_loss_coeff, self.z_loss_coeff)
end

return MoE
