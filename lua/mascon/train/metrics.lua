--- How well a mixture-of-experts layer is used: what the loss does not show.
--
-- With n_e the tokens that expert e got and E experts, per layer:
--   utilisation_e      n_e / (sum(n) / E): 1 is a fair share, 0 a dead expert
--   cv                 standard deviation of n over its mean (population form): 0 when even
--   dead_expert_frac   share of the experts with no token
--   expert_diversity   exp(H) / E, H the entropy of n / sum(n) in nats: 1 when even, 1 / E when one takes all
-- These are the names and definitions of NeMo Automodel's MoE metrics. A layer that got no token at all
-- has no cv, utilisation or diversity: they are NaN.
local args = require "mascon.args"
local module = require "mascon.nn.module"
local tensor = require "mascon.tensor"

local M = {}

local function to_list(v)
  if tensor.is_tensor(v) then return (v:totable()) end
  return v
end

-- counts -> a list of layers, each a list of numbers.
local function to_layers(what, counts)
  local list = to_list(counts)
  if type(list) ~= "table" or #list == 0 then
    args.raise(("%s: wanted numbers by expert, got %s"):format(what, args.show(counts)))
  end
  if type(list[1]) == "number" then return { list } end
  local layers = {}
  for i, layer in ipairs(list) do
    layers[i] = to_list(layer)
    if type(layers[i]) ~= "table" or type(layers[i][1]) ~= "number" then
      args.raise(("%s: layer %d is %s, wanted numbers by expert"):format(what, i, args.show(layer)))
    end
  end
  return layers
end

local function median(list)
  local sorted = {}
  for i, v in ipairs(list) do sorted[i] = v end
  table.sort(sorted)
  local middle = #sorted / 2
  if middle == math.floor(middle) then return (sorted[middle] + sorted[middle + 1]) / 2 end
  return sorted[middle + 0.5]
end

local function layer_metrics(counts)
  local experts, sum, dead = #counts, 0, 0
  for _, n in ipairs(counts) do
    sum = sum + n
    if n == 0 then dead = dead + 1 end
  end
  local mean = sum / experts
  local squares, entropy, most, least, utilisation = 0, 0, 0, math.huge, {}
  for e, n in ipairs(counts) do
    squares = squares + (n - mean) ^ 2
    if n > 0 then entropy = entropy - n / sum * math.log(n / sum) end
    utilisation[e] = n / mean
    most, least = math.max(most, n), math.min(least, n)
  end
  local nan = 0 / 0
  local empty = sum == 0
  return {
    cv = empty and nan or math.sqrt(squares / experts) / mean,
    dead_expert_frac = dead / experts,
    expert_diversity = empty and nan or math.exp(entropy) / experts,
    utilisation_max = empty and nan or most / mean,
    utilisation_min = empty and nan or least / mean,
    utilisation_median = empty and nan or median(utilisation),
    utilisation = utilisation,
  }
end

-- How the layers' values become one: the worst where a worst exists, else the mean.
local function max_of(a, b) return a ~= a and a or b ~= b and b or math.max(a, b) end
local function min_of(a, b) return a ~= a and a or b ~= b and b or math.min(a, b) end
local function add(a, b) return a + b end
local SUMMARY = {
  cv = add, dead_expert_frac = add, expert_diversity = add, utilisation_median = add,
  utilisation_max = max_of, utilisation_min = min_of,
}

-- What the MoE layers of a model noted at their last forward: their counts, and the metrics that only they can give.
local function of_model(model)
  local counts, scores, out, sums = {}, {}, {}, {}
  for _, m in model:named_modules() do
    local noted = m.metrics
    if type(noted) == "table" and noted.counts and noted.scores then
      counts[#counts + 1] = to_list(noted.counts)
      for _, row in ipairs(to_list(noted.scores)) do scores[#scores + 1] = row end
      for _, name in ipairs{ "aux_loss", "z_loss" } do
        if noted[name] then
          sums[name] = sums[name] or { sum = 0, n = 0 }
          sums[name].sum, sums[name].n = sums[name].sum + noted[name]:item(), sums[name].n + 1
        end
      end
    end
  end
  if #counts == 0 then args.raise("moe_metrics: the model has no MoE layer that ran forward") end
  for name, v in pairs(sums) do out[name] = v.sum / v.n end
  for name, value in pairs(M.router_metrics(scores)) do out[name] = value end
  out["moe/load"] = counts
  return counts, out
end

--- Balance of the experts, as flat metrics for Logger.
-- @param counts tokens by expert: a list of numbers or an integer tensor [E] for one layer; a list of them,
--   or a tensor [layers, E], for several; or a module, whose MoE layers are read: their last forward also gives
--   "moe/load" (tokens by expert, a list by layer), router_metrics over all layers' tokens, and "aux_loss" and
--   "z_loss", the means over the layers that have them
-- @tparam[opt] table options `detailed = true` adds every layer's own values ("moe/layer_0/cv", ...) and its
--   list "moe/layer_0/utilisation"
-- @treturn table "moe/cv", "moe/dead_expert_frac", "moe/expert_diversity" and "moe/utilisation_median": the mean
--   over the layers; "moe/utilisation_max" and "moe/utilisation_min": the extremes
function M.moe_metrics(counts, options)
  local o = args.options("moe_metrics", options, { detailed = { "boolean", false } })
  local out = {}
  if module.is_module(counts) then counts, out = of_model(counts) end
  local layers = to_layers("moe_metrics", counts)
  for i, layer in ipairs(layers) do
    local metrics = layer_metrics(layer)
    for name, combine in pairs(SUMMARY) do
      local key = "moe/" .. name
      out[key] = i == 1 and metrics[name] or combine(out[key], metrics[name])
    end
    if o.detailed then
      for name, value in pairs(metrics) do out[("moe/layer_%d/%s"):format(i - 1, name)] = value end
    end
  end
  for name, combine in pairs(SUMMARY) do
    if combine == add then out["moe/" .. name] = out["moe/" .. name] / #layers end
  end
  return out
end

--- How sure the router is, from its scores.
-- @param scores tensor [T, E] or its nested table, one layer; rows need not sum to 1 (sigmoid scores)
-- @treturn table "moe/router_entropy" (mean entropy of a token's probabilities, nats) and
--   "moe/router_top1" (mean probability of the best expert); NaN for no tokens
function M.router_metrics(scores)
  local rows = to_list(scores)
  if type(rows) ~= "table" or (rows[1] ~= nil and type(rows[1]) ~= "table") then
    args.raise("router_metrics: wanted scores [T, E], got " .. args.show(scores))
  end
  local entropy, top = 0, 0
  for _, row in ipairs(rows) do
    local sum, best = 0, 0
    for _, s in ipairs(row) do
      sum = sum + s
      best = math.max(best, s)
    end
    for _, s in ipairs(row) do
      if s > 0 then entropy = entropy - s / sum * math.log(s / sum) end
    end
    top = top + best / sum
  end
  return { ["moe/router_entropy"] = entropy / #rows, ["moe/router_top1"] = top / #rows }
end

return M
