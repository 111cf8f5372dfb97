--- Router: which experts each token goes to, and how much each counts.
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local common = require "mascon.nn.common"
local create = require "mascon.create"
local functional = require "mascon.nn.functional"
local module = require "mascon.nn.module"

local Router = module.Module:extend "Router"

local spec = {
  hidden_size = { "positive", required = true },
  num_experts = { "positive", required = true },
  top_k = { "positive", 2 },
  score_function = { { "softmax", "sigmoid" }, "softmax" },
  use_pre_softmax = { "boolean", false },
  scaling_factor = { "number", 1 },
  expert_bias = { "boolean", false },
  num_groups = { "positive", 1 },
  group_topk = { "positive", 1 },
  dtype = common.DTYPE,
  device = { "string" },
  init_method = { "function" },
}

--- mc.nn.Router{hidden_size =, num_experts =, top_k = 2, score_function = "softmax" | "sigmoid",
-- use_pre_softmax = false, scaling_factor = 1, expert_bias = false, num_groups = 1, group_topk = 1, dtype =, device =,
-- init_method =}.
-- See mc.nn.functional.router_topk for what they mean. Parameter: weight [num_experts, hidden_size]; it starts normal,
-- deviation 0.02. expert_bias = true: a buffer expert_bias [num_experts] of zeros, for sigmoid scores, that is added
-- for the choice only and moved by update_expert_bias, not by gradients. x is cast to the weight's dtype, so that a
-- router kept in float32 inside a bfloat16 model scores in float32.
function Router:init(opts)
  local o = args.options("Router", opts, spec)
  if o.top_k > o.num_experts then
    args.raise(("Router: top_k = %d of num_experts = %d"):format(o.top_k, o.num_experts))
  end
  if o.expert_bias and o.score_function ~= "sigmoid" then
    args.raise("Router: expert_bias = true goes with score_function = \"sigmoid\"")
  end
  if o.num_groups > 1 then
    local in_group = o.num_experts / o.num_groups
    if o.num_experts % o.num_groups ~= 0 or o.group_topk > o.num_groups or o.top_k % o.group_topk ~= 0
      or o.top_k / o.group_topk > in_group then
      args.raise(("Router: num_experts = %d, top_k = %d, num_groups = %d, group_topk = %d do not go together; wanted "
        .. "num_experts a multiple of num_groups, group_topk at most num_groups, and top_k / group_topk an integer of "
        .. "at most num_experts / num_groups"):format(o.num_experts, o.top_k, o.num_groups, o.group_topk))
    end
  end
  self.num_experts, self.top_k = o.num_experts, o.top_k
  self.options = { k = o.top_k, score_function = o.score_function, use_pre_softmax = o.use_pre_softmax,
    scaling_factor = o.scaling_factor, num_groups = o.num_groups, group_topk = o.group_topk }
  self.weight = common.parameter("weight", { o.num_experts, o.hidden_size }, o,
    o.init_method or function(t) t:normal_(0, 0.02) end)
  if o.expert_bias then
    self:register_buffer("expert_bias", create.zeros(o.num_experts, {
      dtype = o.dtype == "float64" and "float64" or "float32", device = o.device,
    }))
  end
end

--- x [T, hidden_size] -> weights [T, k], ids int32 [T, k], scores [T, E], logits [T, E].
function Router:forward(x)
  local logits = functional.linear(x:to(self.weight.dtype), self.weight)
  local o = self.options
  o.bias = self.expert_bias
  local weights, ids, scores = functional.router_topk(logits, o)
  return weights, ids, scores, logits
end

--- Balancing without a loss (Wang et al. 2024): experts with fewer than the mean count gain `rate`, the others lose it.
-- @tparam Tensor counts int64 [E], of one or more steps
-- @tparam[opt=1e-3] number rate
function Router:update_expert_bias(counts, rate)
  local bias = self.expert_bias
  if not bias then args.raise("update_expert_bias: the router was built with expert_bias = false") end
  autograd.no_grad(function()
    local n = counts:to(bias.dtype)
    bias:add_((n:mean() - n):sign() * (rate or 1e-3))
  end)
end

function Router:absent_names()
  return not self.expert_bias and { expert_bias = "expert_bias = false" } or {}
end

function Router:extra_repr()
  return ("num_experts = %d, top_k = %d, score_function = %s"):format(self.num_experts, self.top_k,
    self.options.score_function)
end

return Router
