--- rms_norm and layer_norm on a device against the CPU's: outputs, statistics, and all gradients.
local H = require "device_helper"
local helper = require "helper"
local lib = require "mascon.lib"
local mc = require "mascon"
local memory = require "mascon.memory"

local C, check, new = lib.C, lib.check, memory.new
local EPS = 1e-5

local function numbers(dtype, ...)
  return mc.randn({ ... }, { dtype = "float64" }):to(dtype)
end
local function handle(t) return t and t.h or nil end
local function cut(b) return b:narrow(b:dim(), 2, b:size(-1) - 1) end
local function turned(b) return b:transpose(1, 2) end
local function doubled(b) return b:view(b:size(1), -1, 2):select(3, 1) end

-- y, rstd, and for dy: dx, dweight (nil without a weight)
local function rms_norm(x, dy, w)
  local y, rstd, dx, dw = new(), new(), new(), w and new()
  check(C.mc_rms_norm(y.h, rstd.h, x.h, handle(w), EPS))
  check(C.mc_rms_norm_backward(dx.h, handle(dw), dy.h, x.h, handle(w), rstd.h))
  return y, rstd, dx, dw
end

-- y, mean, rstd, and for dy: dx, dbias, dweight (nil without a weight)
local function layer_norm(x, dy, w, b)
  local y, mean, rstd, dx, dw, db = new(), new(), new(), new(), w and new(), new()
  check(C.mc_layer_norm(y.h, mean.h, rstd.h, x.h, handle(w), handle(b), EPS))
  check(C.mc_layer_norm_backward(dx.h, handle(dw), db.h, dy.h, x.h, handle(w), mean.h, rstd.h))
  return y, mean, rstd, dx, db, dw
end

local function compare(dtype, rows, n, what)
  local x, dy = numbers(dtype, rows, n), numbers(dtype, rows, n)
  local w, b = numbers(dtype, n), numbers(dtype, n)
  local opts = { n = math.max(n, rows), what = ("%s [%d, %d]%s"):format(dtype, rows, n, what or "") }
  if n == 1 then -- what rounding leaves of x - mean is multiplied by rstd = 1 / sqrt(EPS)
    opts.tolerance = helper.tolerance(dtype, opts.n) / math.sqrt(EPS)
  end
  H.compare(rms_norm, { x, dy, w }, opts)
  H.compare(layer_norm, { x, dy, w, b }, opts)
end

describe("norms on a device", function()
  before_each(function() mc.manual_seed(21) end)

  it("agree at every length about a vector, a warp, a block and what registers hold", function()
    for _, dtype in ipairs(H.floats) do
      for _, n in ipairs { 1, 7, 8, 16, 33, 256, 264, 1000, 1024, 1032, 2048, 2056 } do compare(dtype, 3, n) end
    end
  end)

  it("agree on long rows, in registers or not", function()
    for _, dtype in ipairs { "float32", "bfloat16" } do
      for _, n in ipairs { 4096, 4104, 8192, 8195, 8200 } do compare(dtype, 2, n) end
    end
  end)

  it("agree at every number of rows, and where a team has many", function()
    for _, dtype in ipairs(H.floats) do
      for _, rows in ipairs { 1, 2, 5, 9, 64, 301 } do compare(dtype, rows, 24) end
    end
    compare("bfloat16", 150, 1032, " blocks")
    compare("float64", 150, 9, " plain")
  end)

  it("agree without weight and bias", function()
    for _, dtype in ipairs(H.floats) do
      for _, n in ipairs { 40, 1032, 5 } do
        local x, dy = numbers(dtype, 6, n), numbers(dtype, 6, n)
        H.compare(rms_norm, { x, dy }, { n = n, what = "rms_norm" })
        H.compare(layer_norm, { x, dy }, { n = n, what = "layer_norm" })
      end
    end
  end)

  it("agree on rows in more axes, strided, cut, turned and broadcast", function()
    for _, dtype in ipairs(H.floats) do
      local w, b = numbers(dtype, 64), numbers(dtype, 64)
      local dy = numbers(dtype, 5, 64)
      for what, x in pairs {
        cut = H.view(numbers(dtype, 5, 65), cut),
        turned = H.view(numbers(dtype, 64, 5), turned),
        doubled = H.view(numbers(dtype, 5, 128), doubled),
        broadcast = H.view(numbers(dtype, 1, 64), function(t) return t:expand(5, 64) end),
        padded = H.view(numbers(dtype, 5, 80), function(t) return t:narrow(2, 17, 64) end),
      } do
        H.compare(rms_norm, { x, dy, w }, { n = 64, what = "x " .. what })
        H.compare(layer_norm, { x, dy, w, b }, { n = 64, what = "x " .. what })
        H.compare(layer_norm, { dy, x, w, b }, { n = 64, what = "dy " .. what })
      end
      local x = numbers(dtype, 5, 64)
      H.compare(layer_norm, { x, dy, H.view(numbers(dtype, 65), cut), H.view(numbers(dtype, 128), function(t)
        return t:view(-1, 2):select(2, 1)
      end) }, { n = 64, what = "weight" })
      local axes = H.view(numbers(dtype, 3, 4, 2, 16), function(t) return t:transpose(1, 3) end)
      H.compare(rms_norm, { axes, numbers(dtype, 2, 4, 3, 16), numbers(dtype, 16) }, { n = 64, what = "axes" })
    end
  end)

  it("agree in the memory of their input", function()
    for _, n in ipairs { 40, 1032, 5 } do
      H.compare(function(x, w)
        local y, rstd = x:clone(), new()
        check(C.mc_rms_norm(y.h, rstd.h, y.h, w.h, EPS))
        return y, rstd
      end, { numbers("bfloat16", 3, n), numbers("bfloat16", n) }, { n = n })
    end
  end)

  it("agree on nothing, on NaN and on infinities", function()
    for _, dtype in ipairs(H.floats) do
      compare(dtype, 0, 16)
      compare(dtype, 4, 0)
      local x = mc.ones(4, 16)
      mc.no_grad(function()
        x:select(1, 1):select(1, 3):fill_(0 / 0)
        x:select(1, 2):select(1, 3):fill_(math.huge)
        x:select(1, 3):fill_(0)
      end)
      local w = numbers(dtype, 16)
      H.compare(function(t, v)
        local y, rstd = new(), new()
        check(C.mc_rms_norm(y.h, rstd.h, t.h, v.h, EPS))
        return y, rstd
      end, { x:to(dtype), w }, { n = 16, what = dtype })
      H.compare(function(t, v)
        local y, mean, rstd = new(), new(), new()
        check(C.mc_layer_norm(y.h, mean.h, rstd.h, t.h, v.h, nil, EPS))
        return y, mean, rstd
      end, { x:to(dtype), w }, { n = 16, what = dtype })
    end
  end)

  it("give the same bits when they run again", function()
    local x, dy, w = numbers("bfloat16", 90, 72), numbers("bfloat16", 90, 72), numbers("bfloat16", 72)
    x, dy, w = x:to(H.device), dy:to(H.device), w:to(H.device)
    local first, second = { layer_norm(x, dy, w, w) }, { layer_norm(x, dy, w, w) }
    for i = 1, 6 do assert.is_true(mc.equal(first[i], second[i])) end
  end)
end)
