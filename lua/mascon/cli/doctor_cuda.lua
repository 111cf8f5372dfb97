--- doctor: the GPU: what it is, and a self-test of about a second against the CPU.
local M = {}

local GIB = 2 ^ 30

--- The device's facts in a line.
-- @treturn string "ok" or "none"
-- @treturn string what there is, or what is missing
function M.device()
  local mc = require "mascon"
  local there, why = pcall(mc.zeros, 1, {device = "cuda"})
  if not there then return "none", (tostring(why):gsub("\n.*", ""):gsub("^.-:%d+: ", "")) end
  local count, facts, memory = mc.cuda.device_count(), mc.cuda.info(), mc.cuda.memory_stats()
  return "ok", ("%s%s, capability %s, %.0f GiB of which %.0f are free; driver for CUDA %s, runtime %s; products by %s; "
    .. "attention by %s"):format(count > 1 and count .. " devices, the first: " or "", facts.name, facts.capability,
    memory.total_bytes / GIB, memory.free_bytes / GIB, facts.driver, facts.runtime, facts.blas or "own kernels",
    facts.attention)
end

-- {name, tolerance, fn(device) -> tensor}: the same numbers on both devices.
local function tests(mc)
  local F = mc.nn.functional
  local function draw(seed, shape, device, dtype)
    mc.manual_seed(seed)
    return mc.randn(shape, {device = "cpu"}):to {dtype = dtype or "float32", device = device}
  end
  return {
    {"elementwise", 1e-5, function(d) return (draw(1, {1000}, d) * 2 + 1):gelu() end},
    {"a float32 product", 1e-4, function(d) return mc.matmul(draw(1, {129, 65}, d), draw(2, {65, 33}, d)) end},
    {"a bfloat16 product", 2e-2, function(d)
      return mc.matmul(draw(1, {128, 64}, d, "bfloat16"), draw(2, {64, 128}, d, "bfloat16"))
    end},
    {"attention", 2e-2, function(d)
      local q = draw(3, {1, 130, 2, 64}, d, "bfloat16")
      return (F.attention(q, q, q, {causal = true}))
    end},
    {"a grouped layer", 2e-2, function(d)
      local layer = mc.nn.GroupedLinear {num_gemms = 3, in_features = 64, out_features = 72, params_dtype = "bfloat16",
        device = "cpu", init_method = function(t) t:copy_(draw(4, t:shape(), "cpu")) end}:to(d)
      return layer(draw(5, {40, 64}, d, "bfloat16"), mc.tensor({17, 0, 23}, {dtype = "int32", device = d}))
    end},
    {"uniform numbers", 0, function(d)
      mc.manual_seed(6)
      return mc.rand(1001, {device = d})
    end},
  }
end

local function graph_works(mc)
  local x = mc.ones(4, {device = "cuda"})
  local graph = mc.cuda.graph(function() return x:mul_(2) end)
  for _ = 1, 3 do graph:replay() end
  local value = x:sum():item()
  graph:free()
  return value == 32
end

-- Bytes read and written per second by a large copy.
local function copy_rate(mc)
  local system = require "system"
  local a = mc.zeros(2 ^ 26, {device = "cuda"})
  local b = a:clone()
  mc.cuda.synchronize()
  local start = system.monotime()
  for _ = 1, 10 do b:copy_(a) end
  mc.cuda.synchronize()
  return 10 * 2 * 4 * 2 ^ 26 / (system.monotime() - start)
end

--- Runs a handful of ops on both devices, a graph, and a large copy.
-- @treturn string "ok", "none" (no GPU) or "PROBLEM"
-- @treturn string
function M.self_test()
  local mc = require "mascon"
  if not (pcall(mc.zeros, 1, {device = "cuda"})) then return "none", "no GPU" end
  local state = mc.get_rng_state()
  for _, test in ipairs(tests(mc)) do
    local name, tolerance, fn = unpack(test)
    local want, got = fn "cpu":to "float64", fn "cuda":to {dtype = "float64", device = "cpu"}
    local worst = (want - got):abs():max():item()
    local close = worst <= tolerance * math.max(1, want:abs():max():item()) -- not so for NaN
    if not close then
      return "PROBLEM", ("%s differs from the CPU's by %g"):format(name, worst)
    end
  end
  mc.set_rng_state(state)
  if not graph_works(mc) then return "PROBLEM", "a graph did not replay right" end
  return "ok", ("%d results are the CPU's, a graph replays, a copy moves %.0f GB/s"):format(#tests(mc),
    copy_rate(mc) / 1e9)
end

return M
