--- cuda_ops.lua: what single ops reach on a GPU, beside the rate of a plain copy and beside PyTorch.
--
--   scripts/mascon tests/bench/cuda_ops.lua [all|memory|small|attention|matmul|grouped] [scale] [device]
--
-- memory     bytes that an op must read and write, over its time: GB/s, and % of a copy in the same run
-- small      microseconds of the host for a + b of 4 floats, 10,000 of them without waiting
-- attention  causal, batch 16, 1024 tokens, 16 heads of 64 and 128: TFLOP/s, forward and backward
-- matmul     8192^3 and the shapes of moe_lm_model.lua: TFLOP/s
-- grouped    32 experts, 65536 rows, K = 1024, N = 2048, splits on the device and on the host: TFLOP/s
--
-- Random data; a number is the median of rounds of launches, the device waited for around each round. Half of the
-- scores count in attention. scale (default 1) divides the sizes, for a machine without a GPU. The peer's column is
-- cuda_ops_torch.py's, run after ours; a ratio above 1 is in our favour.
local system = require "system"
local mc = require "mascon"
local nn, F = mc.nn, mc.nn.functional

local here = arg[0]:match "^.*/" or "./"
local section, scale, device = arg[1] or "all", tonumber(arg[2]) or 1, arg[3] or "cuda"
mc.set_default_device(device)
mc.manual_seed(1)
io.stdout:setvbuf "line"
local ROUNDS, ROUND = 7, 0.02 -- rounds, and seconds of one at least
local BF16 = { dtype = "bfloat16" }

local function wait()
  if device:match "^cuda" then mc.cuda.synchronize(device) end
  return system.monotime()
end

-- Median seconds of one fn().
local function time(fn)
  mc.scope(fn)
  local start = wait()
  mc.scope(fn)
  local launches = math.max(1, math.min(1000, math.ceil(ROUND / (wait() - start))))
  local rounds = {}
  for i = 1, ROUNDS do
    start = wait()
    for _ = 1, launches do mc.scope(fn) end
    rounds[i] = (wait() - start) / launches
  end
  table.sort(rounds)
  return rounds[math.ceil(ROUNDS / 2)]
end

-- The peer's numbers of a section, by name.
local function peers(name)
  local found = {}
  local pipe = io.popen(("python3 '%scuda_ops_torch.py' %s %g 2>/dev/null"):format(here, name, scale))
  for line in pipe:lines() do
    local case, value = line:match "^(.-)\t(%S+)$"
    if case then found[case] = tonumber(value) end
  end
  pipe:close()
  return found
end

-- Prints {case, value} rows with the peer's beside; `better`: "more" or "less".
local function table_of(name, unit, rows, better)
  collectgarbage()
  mc.collect_garbage()
  local theirs = peers(name)
  print(("%-40s %12s %12s %7s"):format(name .. ", " .. unit, "mascon", "torch", "ratio"))
  for _, row in ipairs(rows) do
    local case, value = row[1], row[2]
    local other = theirs[case]
    local ratio = other and (better == "less" and other / value or value / other)
    print(("%-40s %12.2f %12s %7s"):format(case, value, other and ("%.2f"):format(other) or "-",
      ratio and ("%.2f"):format(ratio) or "-"))
  end
end

local function normal(t) t:normal_(0, 0.02) end
local function rand(...)
  local t = mc.empty(...)
  return t:normal_(0, 1)
end
local function sized(n) return math.max(64, math.floor(n / scale / 64) * 64) end

-- The backward half alone of y = fn(inputs ...): a function to be timed.
local function backward(fn, inputs, dy)
  for _, t in ipairs(inputs) do t:requires_grad_(true) end
  local y = fn()
  dy = dy or rand(y:shape(), { dtype = y.dtype })
  return function()
    y:backward(dy, { retain_graph = true })
    for _, t in ipairs(inputs) do t.grad = nil end
  end
end

local sections = {}

-- -- memory -----------------------------------------------------------------------------------------

-- Each case is made, timed and let go before the next: they do not fit side by side.
local function memory_cases()
  local rows, width, vocab = sized(2 ^ 18), 1024, 32000
  local n = rows * width -- 2^28
  local tokens = sized(2 ^ 14)
  local function big(dtype, count) return rand(count or n, { dtype = dtype }) end
  local function matrix() return rand(rows, width, BF16) end
  local function elementwise(fn, dtype, bytes)
    return function()
      local a, b = big(dtype), big(dtype)
      return function() return fn(a, b) end, bytes * n
    end
  end
  local function grads_of(count, state) -- an optimizer over `count` parameters, with gradients
    local p = nn.Parameter(big("bfloat16", count))
    local g = big("bfloat16", count)
    local opt = mc.optim.AdamW { params = { p }, lr = 1e-4, master_weights = state == "float32", state_dtype = state }
    p.grad = g
    return p, opt
  end
  local function adamw(state, bytes)
    return function()
      local _, opt = grads_of(n / 2, state)
      return function() opt:step() end, bytes * n / 2
    end
  end
  local function moe(fn)
    return function()
      local x, k = rand(tokens * 4, width, BF16), 4
      local weights, ids = F.router_topk(rand(tokens * 4, 32), { k = k })
      local _, to, slots = F.moe_sort(ids, 32)
      return fn(x, weights, to, slots, k, tokens * 4 * width * 2)
    end
  end
  return {
    { "copy bf16", function()
      local a, b = big "bfloat16", big "bfloat16"
      return function() b:copy_(a) end, 4 * n
    end },
    { "copy fp32", function()
      local a, b = big "float32", big "float32"
      return function() b:copy_(a) end, 8 * n
    end },
    { "a + b bf16", elementwise(function(a, b) return a + b end, "bfloat16", 6) },
    { "a + b fp32", elementwise(function(a, b) return a + b end, "float32", 12) },
    { "a:add_(b) bf16", elementwise(function(a, b) a:add_(b) end, "bfloat16", 6) },
    { "a * 0.5 bf16", elementwise(function(a) return a * 0.5 end, "bfloat16", 4) },
    { "silu bf16", elementwise(function(a) return F.silu(a) end, "bfloat16", 4) },
    { "bf16 to fp32", elementwise(function(a) return a:to "float32" end, "bfloat16", 6) },
    { "fp32 to bf16", elementwise(function(a) return a:to "bfloat16" end, "float32", 6) },
    { "dropout bf16", elementwise(function(a) return F.dropout(a, 0.1) end, "bfloat16", 5) },
    { "sum of all, fp32", elementwise(function(a) return a:sum() end, "float32", 4) },
    { "transposed copy bf16", function()
      local a = matrix():transpose(1, 2)
      return function() return a:contiguous() end, 4 * n
    end },
    { "sum over rows bf16", function()
      local a = matrix()
      return function() return a:sum(1) end, 2 * n
    end },
    { "swiglu forward bf16", function()
      local a = matrix()
      return function() return F.swiglu(a) end, 3 * n
    end },
    { "swiglu backward bf16", function()
      local a = matrix()
      return backward(function() return F.swiglu(a) end, { a }), 5 * n
    end },
    { "rms_norm forward, width 1024", function()
      local x, w = matrix(), rand(width, BF16)
      return function() return F.rms_norm(x, w) end, 4 * n
    end },
    { "rms_norm backward", function()
      local x, w = matrix(), rand(width, BF16)
      return backward(function() return F.rms_norm(x, w) end, { x, w }), 6 * n
    end },
    { "softmax, width 1024", function()
      local x = matrix()
      return function() return x:softmax() end, 4 * n
    end },
    { "cross_entropy forward, 32000 classes", function()
      local x, y = rand(tokens, vocab, BF16), mc.randint(0, vocab, { tokens }, { dtype = "int32" })
      return function() return F.cross_entropy(x, y) end, 2 * tokens * vocab
    end },
    { "cross_entropy backward", function()
      local x, y = rand(tokens, vocab, BF16), mc.randint(0, vocab, { tokens }, { dtype = "int32" })
      return backward(function() return F.cross_entropy(x, y) end, { x }, mc.ones {}), 4 * tokens * vocab
    end },
    { "embedding forward, width 1024", function()
      local w, ids = rand(vocab, width, BF16), mc.randint(0, vocab, { rows }, { dtype = "int32" })
      return function() return F.embedding(ids, w) end, 4 * n
    end },
    { "embedding backward", function()
      local w, ids = rand(vocab, width, BF16), mc.randint(0, vocab, { tokens }, { dtype = "int32" })
      return backward(function() return F.embedding(ids, w) end, { w }), 2 * width * (tokens + vocab)
    end },
    { "moe_permute, top 4", moe(function(x, _, to, slots, k, bytes)
      return function() return F.moe_permute(x, to, slots) end, bytes * (1 + k)
    end) },
    { "moe_unpermute, weights", moe(function(x, weights, to, slots, k, bytes)
      local rows_of = F.moe_permute(x, to, slots)
      return function() return F.moe_unpermute(rows_of, to, slots, weights) end, bytes * (1 + k)
    end) },
    { "moe_unpermute backward", moe(function(x, weights, to, slots, k, bytes)
      local rows_of = F.moe_permute(x, to, slots)
      weights = weights:detach()
      return backward(function() return F.moe_unpermute(rows_of, to, slots, weights) end, { rows_of, weights }),
        bytes * (1 + 2 * k)
    end) },
    { "clip_grad_norm_ bf16", function()
      local p = grads_of(n, "bfloat16")
      return function() mc.optim.clip_grad_norm_({ p }, 1e9) end, 6 * n
    end },
    { "AdamW bf16, fp32 master and moments", adamw("float32", 2 + 2 + 8 + 8 + 8) },
    { "AdamW bf16 throughout", adamw("bfloat16", 2 + 4 + 4 + 4) },
  }
end

function sections.memory()
  print(("%-40s %12s %9s %9s"):format("memory", "microseconds", "GB/s", "% of copy"))
  local copy
  for _, case in ipairs(memory_cases()) do
    local fn, bytes = case[2]()
    local seconds = time(fn)
    fn = nil -- luacheck: ignore 311
    mc.collect_garbage()
    copy = copy or bytes / seconds
    print(("%-40s %12.1f %9.0f %9.0f"):format(case[1], seconds * 1e6, bytes / seconds / 1e9,
      100 * bytes / seconds / copy))
  end
end

-- -- small ------------------------------------------------------------------------------------------

function sections.small()
  local a, b = mc.randn(4), mc.zeros(4)
  local leaf = mc.randn(4, { requires_grad = true })
  local cases = {
    { "a + b", function(calls) for _ = 1, calls do local _ = a + b end end },
    { "a + b, recorded", function(calls) for _ = 1, calls do local _ = leaf + b end end },
    { "a.add_(b)", function(calls) for _ = 1, calls do a:add_(b) end end },
  }
  local rows = {}
  for i, case in ipairs(cases) do
    local best = math.huge
    for _ = 1, 5 do
      local start = wait()
      case[2](10000)
      best = math.min(best, system.monotime() - start)
      wait()
    end
    rows[i] = { case[1], best / 10000 * 1e6 }
  end
  table_of("small", "us of the host", rows, "less")
end

-- -- attention --------------------------------------------------------------------------------------

function sections.attention()
  local B, T, H, rows = math.max(1, 16 / scale), sized(1024), 16, {}
  for _, D in ipairs { 64, 128 } do
    local q, k, v = rand(B, T, H, D, BF16), rand(B, T, H, D, BF16), rand(B, T, H, D, BF16)
    local function run() return F.attention(q, k, v, { causal = true }) end
    local flops = 4 * B * H * T * T * D / 2
    rows[#rows + 1] = { ("forward, head size %d"):format(D), flops / time(run) / 1e12 }
    rows[#rows + 1] = { ("backward, head size %d"):format(D), 2.5 * flops / time(backward(run, { q, k, v })) / 1e12 }
  end
  table_of("attention", "TFLOP/s", rows)
end

-- -- matmul -----------------------------------------------------------------------------------------

function sections.matmul()
  local n, tokens, rows = sized(8192), sized(16384), {}
  local function add(name, flops, fn) rows[#rows + 1] = { name, flops / time(fn) / 1e12 } end
  for _, case in ipairs { { "bf16", "bfloat16" }, { "fp32", "float32" }, { "tf32", "float32" } } do
    local a, b = rand(n, n, { dtype = case[2] }), rand(n, n, { dtype = case[2] })
    local before = mc.allow_tf32(case[1] == "tf32")
    add("8192^3 " .. case[1], 2 * n ^ 3, function() return mc.matmul(a, b) end)
    mc.allow_tf32(before)
  end
  for _, case in ipairs { { "qkv", 1024, 3072 }, { "o", 1024, 1024 }, { "head", 1024, 32000 } } do
    local name, k, m = case[1], sized(case[2]), sized(case[3])
    local x, w, dy = rand(tokens, k, BF16), rand(m, k, BF16), rand(tokens, m, BF16)
    local flops = 2 * tokens * k * m
    add(name .. " forward", flops, function() return F.linear(x, w) end)
    add(name .. " dgrad", flops, function() return mc.matmul(dy, w) end)
    add(name .. " wgrad", flops, function() return mc.matmul(dy:transpose(1, 2), x) end)
  end
  table_of("matmul", "TFLOP/s", rows)
end

-- -- grouped ----------------------------------------------------------------------------------------

-- Rows of each of E experts: all alike, or as 1 / (rank + 1).
local function splits_of(kind, M, E)
  local list, left, harmonic = {}, M, 0
  for e = 1, E do harmonic = harmonic + 1 / e end
  for e = 1, E do
    list[e] = e == E and left or math.floor(kind == "even" and M / E or M / e / harmonic)
    left = left - list[e]
  end
  return list
end

function sections.grouped()
  local E, M, K, N, rows = 32, sized(65536), sized(1024), sized(2048), {}
  local flops = 2 * M * K * N
  local layer = nn.GroupedLinear { num_gemms = E, in_features = K, out_features = N, bias = false,
    single_grouped_weight = true, params_dtype = "bfloat16", init_method = normal }
  local x, dy = rand(M, K, BF16), rand(M, N, BF16)
  for _, kind in ipairs { "even", "zipf" } do
    local list = splits_of(kind, M, E)
    for _, where in ipairs { "device", "host" } do
      local splits = where == "host" and list or mc.tensor(list, { dtype = "int64" })
      local function run() return layer(x, splits) end
      local function add(pass, fn)
        rows[#rows + 1] = { ("%s, %s splits, %s"):format(pass, kind, where), flops / time(fn) / 1e12 }
      end
      add("forward", function() return mc.no_grad(run) end)
      layer.weight:requires_grad_(false)
      add("dgrad", backward(run, { x }, dy))
      x:requires_grad_(false)
      layer.weight:requires_grad_(true)
      add("wgrad", backward(run, { layer.weight }, dy))
    end
  end
  table_of("grouped", "TFLOP/s", rows)
end

local ORDER = { "memory", "small", "attention", "matmul", "grouped" }
if section ~= "all" and not sections[section] then
  io.stderr:write("cuda_ops: no section ", section, "; there are: all ", table.concat(ORDER, " "), "\n")
  os.exit(2)
end
for _, name in ipairs(ORDER) do
  if section == "all" or section == name then
    sections[name]()
    mc.collect_garbage()
  end
end
