--- functional: the mixture-of-experts ops: choosing experts, moving rows to them and back, balancing losses.
--
-- T tokens, E experts, k of them per token. A slot is one (token, choice) pair: slot t * k + j. `rows` [T, k] and
-- `slots` [T * k] are the two directions of the stable sort of the slots by expert.
local lib = require "mascon.lib"
local args = require "mascon.args"
local memory = require "mascon.memory"
local autograd = require "mascon.autograd"
local tensor = require "mascon.tensor"
local shapes = require "mascon.nn.functional.shapes"

local C, failed = lib.C, lib.failed
local raise = args.raise
local new = memory.new
local tape, record, save = autograd.state, autograd.record, autograd.save
local want_tensor = tensor.want_tensor

local M = {}

local function h(t) return t and t.h or nil end

-- -- the router ------------------------------------------------------------------------------------

local ROUTER = {
  name = "router_topk",
  backward = function(node, grads)
    local dweights = grads[1] and grads[1]:contiguous() or nil
    local dscores = grads[3] and grads[3]:contiguous() or nil
    local dx = new()
    local st = C.mc_router_topk_backward(dx.h, h(dweights), h(dscores), node.scores.h, node.weights.h, node.ids.h,
      node.logits.h, node.code, node.scale)
    if st ~= 0 then
      failed(st, "mc_router_topk_backward", dx, dweights, dscores, node.scores, node.weights, node.ids, node.logits,
        node.code, node.scale)
    end
    return dx
  end,
}

local router_spec = {
  k = { "positive", required = true },
  score_function = { { "softmax", "sigmoid" }, "softmax" },
  use_pre_softmax = { "boolean", false },
  scaling_factor = { "number", 1 },
  num_groups = { "positive", 1 },
  group_topk = { "positive", 1 },
  bias = { tensor.is_tensor, want = "a tensor [E]" },
}

--- The k best experts of each token, and how much each counts.
-- softmax: weights are a softmax over the k chosen logits; with use_pre_softmax, the chosen part of the softmax over
-- all.
-- sigmoid: weights are sigmoid(logit), divided by their sum + 1e-20 when k > 1 (DeepSeek-V3).
-- Ties go to the lowest id; NaN ranks last; no expert is chosen twice.
-- @tparam Tensor logits [T, E]
-- @tparam table options k; score_function = "softmax" | "sigmoid"; use_pre_softmax = false; scaling_factor = 1 of the
--   weights; bias [E], added for the choice only; num_groups and group_topk: only experts of the best groups take part
-- @treturn Tensor weights [T, k], float32 (float64 for float64 logits), best first
-- @treturn Tensor ids int32 [T, k], 0-based
-- @treturn Tensor scores [T, E]: softmax over all experts, or sigmoid
function M.router_topk(logits, options)
  want_tensor("router_topk: logits", logits)
  local o = args.options("router_topk", options, router_spec)
  local code = C.MC_SCORE_SIGMOID
  if o.score_function == "softmax" then
    code = o.use_pre_softmax and C.MC_SCORE_SOFTMAX_PRE or C.MC_SCORE_SOFTMAX_POST
  elseif o.use_pre_softmax then
    raise("router_topk: use_pre_softmax = true goes with score_function = \"softmax\"")
  end
  local weights, ids, scores = new(), new(), new()
  local st = C.mc_router_topk(weights.h, ids.h, scores.h, logits.h, h(o.bias), o.k, code, o.scaling_factor,
    o.num_groups, o.group_topk)
  if st ~= 0 then
    failed(st, "mc_router_topk", weights, ids, scores, logits, o.bias, o.k, code, o.scaling_factor, o.num_groups,
      o.group_topk)
  end
  if tape.on and logits.rg then
    local node = autograd.record_many({ weights, false, scores }, ROUTER, { logits })
    node.scores, node.weights, node.ids = save(node, scores), save(node, weights), save(node, ids)
    node.logits, node.code, node.scale = save(node, logits), code, o.scaling_factor
  end
  return weights, ids, scores
end

-- -- rows to experts and back -----------------------------------------------------------------------

--- Sorts the slots by expert, stably. A negative id is a slot that goes nowhere.
-- @tparam Tensor ids int32 or int64 [T, k]
-- @tparam int experts E
-- @treturn Tensor counts int64 [E]: rows of each expert, the splits of a GroupedLinear
-- @treturn Tensor rows int64 [T, k]: the row of each slot, -1 where it goes nowhere
-- @treturn Tensor slots int64 [T * k]: the slot of each row, -1 past the last
-- @raise for an id of E or more
function M.moe_sort(ids, experts)
  shapes.want_index("moe_sort: ids", ids)
  args.integer("moe_sort: experts", experts, 1)
  local counts, rows, slots = new(), new(), new()
  local st = C.mc_moe_sort(counts.h, rows.h, slots.h, ids.h, experts)
  if st ~= 0 then failed(st, "mc_moe_sort", counts, rows, slots, ids, experts) end
  return counts, rows, slots
end

-- Sums each token's rows: permute's backward, and unpermute without weights.
local function gather_sum(rows_of, rows, weights)
  local y = new()
  local st = C.mc_moe_unpermute(y.h, rows_of.h, rows.h, h(weights))
  if st ~= 0 then failed(st, "mc_moe_unpermute", y, rows_of, rows, weights) end
  return y
end

local PERMUTE = {
  name = "moe_permute",
  backward = function(node, g) return gather_sum(g:contiguous(), node.rows) end,
}

--- Copies each token's row to its experts: out[r] = x[slots[r] / k], zero where slots[r] is negative.
-- @tparam Tensor x [T, d]
-- @tparam Tensor rows, slots of moe_sort
-- @treturn Tensor [T * k, d]
function M.moe_permute(x, rows, slots)
  want_tensor("moe_permute: x", x)
  shapes.want_index("moe_permute: rows", rows)
  shapes.want_index("moe_permute: slots", slots)
  local k = rows:size(2)
  local out = new()
  local st = C.mc_moe_permute(out.h, x.h, slots.h, k)
  if st ~= 0 then failed(st, "mc_moe_permute", out, x, slots, k) end
  if tape.on and x.rg then
    local node = record(out, PERMUTE, x)
    node.rows = save(node, rows)
  end
  return out
end

local UNPERMUTE = {
  name = "moe_unpermute",
  backward = function(node, g)
    local dy = g:contiguous()
    local dh, dweights = new(), node[2] and new() or nil
    local st = C.mc_moe_unpermute_backward(dh.h, h(dweights), dy.h, h(node.x), node.rows.h, node.slots.h,
      h(node.weights))
    if st ~= 0 then
      failed(st, "mc_moe_unpermute_backward", dh, dweights, dy, node.x, node.rows, node.slots, node.weights)
    end
    return dh, dweights
  end,
}

--- Brings rows back and adds them up: y[t] = sum_j weights[t, j] * x[rows[t, j]], in slot order.
-- @tparam Tensor x [T * k, d]
-- @tparam Tensor rows, slots of moe_sort
-- @tparam[opt] Tensor weights [T, k]; each counts 1 without
-- @treturn Tensor [T, d]
function M.moe_unpermute(x, rows, slots, weights)
  want_tensor("moe_unpermute: x", x)
  shapes.want_index("moe_unpermute: rows", rows)
  shapes.want_index("moe_unpermute: slots", slots)
  if weights then want_tensor("moe_unpermute: weights", weights) end
  local y = gather_sum(x, rows, weights)
  if tape.on and (x.rg or (weights and weights.rg)) then
    local node = record(y, UNPERMUTE, x, weights)
    node.rows, node.slots = save(node, rows), save(node, slots)
    if weights then node.x, node.weights = save(node, x), save(node, weights) end
  end
  return y
end

-- -- balancing --------------------------------------------------------------------------------------

local AUX = {
  name = "moe_aux_loss",
  backward = function(node, g)
    local dx = new()
    local st = C.mc_moe_aux_loss_backward(dx.h, g.h, node.scores.h, node.counts.h, node.coefficient)
    if st ~= 0 then failed(st, "mc_moe_aux_loss_backward", dx, g, node.scores, node.counts, node.coefficient) end
    return dx
  end,
}

--- Load-balancing loss: coefficient * E * sum_e f_e P_e, f_e the share of slots that expert e got, P_e the mean of its
-- normalised scores (Switch Transformer, Fedus et al. 2021, eq. 4). 1 at balance.
-- @tparam Tensor scores [T, E]
-- @tparam Tensor counts int64 [E]
-- @tparam[opt=1] number coefficient
-- @treturn Tensor []
function M.moe_aux_loss(scores, counts, coefficient)
  want_tensor("moe_aux_loss: scores", scores)
  shapes.want_index("moe_aux_loss: counts", counts)
  coefficient = args.number("moe_aux_loss: coefficient", coefficient or 1)
  local loss = new()
  local st = C.mc_moe_aux_loss(loss.h, scores.h, counts.h, coefficient)
  if st ~= 0 then failed(st, "mc_moe_aux_loss", loss, scores, counts, coefficient) end
  if tape.on and scores.rg then
    local node = record(loss, AUX, scores)
    node.scores, node.counts, node.coefficient = save(node, scores), save(node, counts), coefficient
  end
  return loss
end

local Z = {
  name = "moe_z_loss",
  backward = function(node, g)
    local dx = new()
    local st = C.mc_moe_z_loss_backward(dx.h, g.h, node.logits.h, node.lse.h, node.coefficient)
    if st ~= 0 then failed(st, "mc_moe_z_loss_backward", dx, g, node.logits, node.lse, node.coefficient) end
    return dx
  end,
}

--- Router z loss: coefficient * mean over tokens of logsumexp(logits)^2 (ST-MoE, Zoph et al. 2022, eq. 5).
-- @tparam Tensor logits [T, E]
-- @tparam[opt=1] number coefficient
-- @treturn Tensor []
function M.moe_z_loss(logits, coefficient)
  want_tensor("moe_z_loss: logits", logits)
  coefficient = args.number("moe_z_loss: coefficient", coefficient or 1)
  local loss, lse = new(), new()
  local st = C.mc_moe_z_loss(loss.h, lse.h, logits.h, coefficient)
  if st ~= 0 then failed(st, "mc_moe_z_loss", loss, lse, logits, coefficient) end
  if tape.on and logits.rg then
    local node = record(loss, Z, logits)
    node.logits, node.lse, node.coefficient = save(node, logits), save(node, lse), coefficient
  end
  return loss
end

return M
