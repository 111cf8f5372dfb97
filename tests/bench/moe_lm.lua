--- moe_lm.lua: training steps of the example's 1.32 B-parameter net (scripts/examples/moe_lm_model.lua) on a GPU.
--
--   scripts/mascon tests/bench/moe_lm.lua [all|mascon|torch] [steps] [model] [device]
--   scripts/mascon tests/bench/moe_lm.lua graph-bf16|graph-fp32|eager-bf16|eager-fp32 [steps] [model] [device]
--
-- One line a case, each in a process of its own: tokens/s, ms a step, TFLOP/s by mc.train.flops_per_token, the peak of
-- the tensors' memory, that of live graphs, and what the device has given away in all. bf16: no master weights, moments
-- in bfloat16; fp32: master weights and moments in float32. Peer: moe_lm_torch.py, the same net, sizes and data.
local system = require "system"
local mc = require "mascon"

local here = arg[0]:match "^.*/" or "./"
local what, steps, size, device = arg[1] or "all", tonumber(arg[2]) or 20, arg[3] or "1.3b", arg[4] or "cuda"
local WARM_UP = 4

local function run(mode, state)
  local lm = dofile(here .. "../../scripts/examples/moe_lm_model.lua")
  local o = lm.sizes[size]
  mc.set_default_device(device)
  mc.manual_seed(1)
  local model = lm.Model(o)
  local optimizer = lm.optimizer(model, state, o.lr, o.weight_decay)
  local batches = require "mascon.data.device_windows" { length = o.context, batch_size = o.batch, seed = 1,
    data = mc.randint(0, o.vocab, { 2 ^ 22 }, { dtype = "int32" }) }
  local x, y = batches:next()
  x, y = x:clone(), y:clone()
  local function one() return mc.scope(lm.train_step, model, optimizer, x, y) end
  local graph
  local function step()
    local bx, by = batches:next()
    x:copy_(bx)
    y:copy_(by)
    return graph and graph:replay() or one()
  end
  local function wait()
    if device:match "^cuda" then mc.cuda.synchronize(device) end
    return system.monotime()
  end

  for _ = 1, WARM_UP do mc.scope(step) end
  if mode == "graph" then
    graph = mc.cuda.graph(one, { device = device })
    for _ = 1, WARM_UP do mc.scope(step) end
  end
  local start, host, loss = wait(), os.clock(), nil
  for _ = 1, steps do loss = mc.scope(step).lm_loss end
  host = os.clock() - host
  local seconds = wait() - start
  local memory = device:match "^cuda" and mc.cuda.memory_stats(device) or mc.memory_stats()
  local rate, gib = steps * o.batch * o.context / seconds, 2 ^ 30
  print(("moe_lm mascon %-11s %s %s %-8s %9.0f tokens/s  %7.1f ms/step  %5.0f TFLOP/s  peak %5.1f GiB, graphs %.1f, "
    .. "device %.1f  host %.1f ms  loss %.4f"):format(mc.version, size, state, mode, rate, seconds / steps * 1e3,
    rate * lm.cost(model, o) / 1e12, memory.peak_bytes / gib, (memory.graph_bytes or 0) / gib,
    ((memory.total_bytes or 0) - (memory.free_bytes or 0)) / gib, host / steps * 1e3, loss:item()))
end

local function shell(...) os.execute((...):format(select(2, ...))) end

local mode, state = what:match "^(%w+)-(%w+)$"
if mode then return run(mode, state) end
if what ~= "torch" then
  for _, case in ipairs { "eager-bf16", "graph-bf16", "eager-fp32", "graph-fp32" } do
    shell("luajit '%s' %s %d %s %s", arg[0], case, steps, size, device)
  end
end
if what ~= "mascon" then
  if os.execute "python3 -c 'import torch' 2>/dev/null" == 0 then
    shell("python3 '%smoe_lm_torch.py' --model %s --steps %d", here, size, steps)
  else
    print "moe_lm torch: peer not installed"
  end
end
