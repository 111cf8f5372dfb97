--- What a transformer's training step computes: parameters that a token meets, and operations.
local args = require "mascon.args"
local module = require "mascon.nn.module"

local M = {}

local function elements(tensor_list)
  local n = 0
  for _, t in ipairs(tensor_list) do n = n + t:numel() end
  return n
end

local function parameters_of(m)
  local list = {}
  for _, slot in ipairs(m:slots()) do
    if slot.kind == "parameter" then list[#list + 1] = slot.tensor end
  end
  return list
end

--- Counts a model's parameters.
-- @tparam Module model
-- @treturn int all of them, shared ones once
-- @treturn int those that a token is multiplied with: top_k of num_experts of each MoE layer, nothing of an Embedding
--   (it is looked up; where it is the output layer too, add it)
function M.parameter_counts(model)
  if not module.is_module(model) then
    args.raise("parameter_counts: wanted a module, got " .. args.show(model))
  end
  local share = {}
  for _, m in model:named_modules() do
    if m.router and m.experts and m.num_experts then
      for _, t in ipairs(parameters_of(m.experts)) do share[t] = m.router.top_k / m.num_experts end
    elseif m.embedding_dim then
      for _, t in ipairs(parameters_of(m)) do share[t] = 0 end
    end
  end
  local all, active, seen = parameters_of(model), 0, {}
  for i = #all, 1, -1 do
    local t = all[i]
    if seen[t] then table.remove(all, i) else active = active + t:numel() * (share[t] or 1) end
    seen[t] = true
  end
  return elements(all), active
end

local spec = {
  active = { "positive", required = true },
  layers = { "positive", required = true },
  width = { "positive", required = true },
  context = { "positive", required = true },
  causal = { "boolean", true },
}

--- Floating-point operations for each token of a training step, forward and backward: 6 * active + 12 * layers *
-- width * context (Chowdhery et al. 2022, appendix B), the second term halved for causal attention, which needs only
-- half of the scores. Recomputation does not count.
-- @tparam table options `active` parameters (see parameter_counts), `layers`, `width` (heads * head size), `context`,
--   `causal` (default true)
function M.flops_per_token(options)
  local o = args.options("flops_per_token", options, spec)
  return 6 * o.active + 12 * o.layers * o.width * o.context * (o.causal and 0.5 or 1)
end

return M
