--- What the golden files hold: a small model and its AdamW state, a tensor of every dtype, and plain values.
local mc = require "mascon"

local M = {}

local G, N, K = 11, 3, 4

-- value(i) for i = 0 .. n - 1, in t's order
local function coded(t, value)
  local flat = {}
  for i = 1, t:numel() do flat[i] = value(i - 1) end
  mc.no_grad(function() t:copy_(mc.tensor(flat, { dtype = "float64" }):view(t:shape())) end)
end

-- expert * 100 + row * 10 + column, plus `shift`
function M.weight_at(i, shift)
  return math.floor(i / (N * K)) * 100 + math.floor(i / K) % N * 10 + i % K + shift
end
function M.bias_at(i, shift) return math.floor(i / N) * 10 + i % N + shift end

local Model = mc.nn.Module:extend "Model"
function Model:init(layout)
  local single = layout == "single"
  self.embed = mc.nn.Embedding { num_embeddings = 5, embedding_dim = K }
  self.experts = mc.nn.GroupedLinear { num_gemms = G, in_features = K, out_features = N, single_grouped_weight = single,
    single_grouped_bias = single }
end

--- A model and its optimizer in a layout, with other values than the files'.
function M.model(layout)
  local model = Model(layout)
  return model, mc.optim.AdamW { params = model, lr = 0.25 }
end

--- The values of the files, by slot name; calls fn(name, tensor, value(i)).
function M.each(model, optimizer, fn)
  local function index(i) return i end
  fn("embed.weight", model.embed.weight, index)
  fn("experts.weight", model.experts.weight, function(i) return M.weight_at(i, 0) end)
  fn("experts.bias", model.experts.bias, function(i) return M.bias_at(i, 0) end)
  for _, slot in ipairs(optimizer:slots()) do
    local which, name = slot.name:match "^(exp_avg[_sq]*)%.(.*)$"
    local shift = which == "exp_avg" and 0.25 or 0.5
    if name == "experts.weight" then
      fn(slot.name, slot.tensor, function(i) return M.weight_at(i, shift) end)
    elseif name == "experts.bias" then
      fn(slot.name, slot.tensor, function(i) return M.bias_at(i, shift) end)
    elseif name then
      fn(slot.name, slot.tensor, function(i) return i + shift end)
    end
  end
end

M.DTYPES = { "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool", "float8_e4m3fn",
  "float8_e5m2", "float8_e8m0fnu" }
-- exact in every dtype but bool (1 and 0) and float8_e8m0fnu (powers of two only)
function M.numbers(dtype)
  if dtype == "bool" then return { true, false, true } end
  return { 1, 2, 4 }
end

function M.object(layout)
  local model, optimizer = M.model(layout)
  M.each(model, optimizer, function(_, t, value) coded(t, value) end)
  optimizer.step_count:fill_(7)
  local dtypes = {}
  for _, dtype in ipairs(M.DTYPES) do dtypes[dtype] = mc.tensor(M.numbers(dtype), { dtype = dtype }) end
  return {
    model = model:state_dict(), optimizer = optimizer:state_dict(), dtypes = dtypes,
    step = 7, name = "golden", done = true, rate = 0.125, nested = { ["1"] = "text", [2] = { deep = -3 } },
    empty = mc.zeros(0, 3), scalar = mc.tensor(2.5),
  }
end

return M
