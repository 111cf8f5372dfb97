--- How well a language model predicts a text: its loss over all tokens, each with enough of what comes before it.
local args = require "mascon.args"
local autograd = require "mascon.autograd"
local functional = require "mascon.nn.functional"
local memory = require "mascon.memory"
local ops = require "mascon.ops"
local tensor = require "mascon.tensor"

local IGNORE = -100 -- cross_entropy's: targets that do not count

-- The windows that score every target 1 .. n - 1 once: a list of {first token, targets skipped}. Each but the first
-- skips what the one before has scored, its first length - stride targets; the last one ends with the text.
local function plan(n, length, stride)
  local list, scored, first = {}, 0, 0
  while scored < n - 1 do
    first = math.min(first, n - 1 - length)
    list[#list + 1] = { first, scored - first }
    scored = first + length
    first = first + stride
  end
  return list
end

local function batch(tokens, list, from, to, length)
  local xs, ys = {}, {}
  for i = from, to do
    local first, skip = list[i][1], list[i][2]
    xs[#xs + 1] = tokens:narrow(1, first + 1, length)
    local y = tokens:narrow(1, first + 2, length):clone()
    if skip > 0 then y:narrow(1, 1, skip):fill_(IGNORE) end
    ys[#ys + 1] = y
  end
  return ops.stack(xs, 1), ops.stack(ys, 1)
end

--- The summed loss of a text under a model in its eval mode, each token once, with at least length - stride tokens
-- before it but at the text's beginning. The first token has nothing before it and is not counted.
-- @param model logits [B, T, V] = model(ids [B, T])
-- @tparam Tensor tokens int32 [n], n of 2 or more, on the model's device
-- @tparam table options `length` of a window; `stride` (default length / 2): tokens scored by each; `batch_size`
--   (default 16)
-- @treturn number nats; divided by math.log(2) and the text's bytes: bits per byte
local function held_out_loss(model, tokens, options)
  args.callable("held_out_loss", model)
  tensor.want_tensor("held_out_loss: tokens", tokens)
  local o = args.options("held_out_loss", options, {
    length = { "positive", required = true },
    stride = { "positive" },
    batch_size = { "positive", 16 },
  })
  local n = tokens:numel()
  args.integer("held_out_loss: tokens", n, 2)
  local length = math.min(o.length, n - 1)
  local stride = math.min(o.stride or math.ceil(length / 2), length)
  local list, total = plan(n, length, stride), nil
  local was_training = type(model) == "table" and model.training
  if was_training then model:eval() end
  autograd.no_grad(function()
    for from = 1, #list, o.batch_size do
      local to = math.min(from + o.batch_size - 1, #list)
      local loss = memory.scope(function()
        local x, y = batch(tokens, list, from, to, length)
        return functional.cross_entropy(model(x), y, { reduction = "sum" }):to "float64"
      end)
      total = total and total + loss or loss
    end
  end)
  if was_training then model:train() end
  return total:item()
end

return held_out_loss
