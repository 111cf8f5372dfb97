--- Selection by indices and its gradients on a device against the CPU's.
local H = require "device_helper"
local helper = require "helper"
local mc = require "mascon"
local lib = require "mascon.lib"

local C, check = lib.C, lib.check
local NUMBERS = { "float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8" }
local STORED = { "float64", "float32", "bfloat16", "int32", "uint8", "bool", "float8_e4m3fn" }

local function turned(b) return b:transpose(1, 2) end

-- Small integers: sums of them are exact in every dtype.
local function numbers(dtype, ...)
  local x = mc.randint(0, 4, { ... }, { dtype = "uint8" })
  return dtype:match "^float8" and x:to("float32"):to(dtype) or x:to(dtype)
end

local function ids(limit, shape, dtype) return mc.randint(0, limit, shape, { dtype = dtype or "int64" }) end

-- axis is 1-based.
local function index_add(axis)
  return function(da, dout, index)
    da = da:clone()
    check(C.mc_index_add(da.h, dout.h, axis - 1, index.h), da, dout, index)
    return da
  end
end
local function scatter_add(axis)
  return function(da, dout, index)
    da = da:clone()
    check(C.mc_scatter_add(da.h, dout.h, axis - 1, index.h), da, dout, index)
    return da
  end
end

describe("index_select on a device", function()
  before_each(function() mc.manual_seed(15) end)

  it("takes rows along each axis, for every dtype, row length and index", function()
    for _, dtype in ipairs(STORED) do
      for _, width in ipairs { 1, 3, 16, 33, 160 } do
        for axis = 1, 3 do
          local a = numbers(dtype, 4, 5, width)
          local index = ids(a:size(axis), { 9 }, axis == 1 and "int32" or "int64")
          H.compare(function(t, i) return t:index_select(axis, i) end, { a, index }, { exact = true, what = dtype })
        end
      end
      H.compare(function(t, i) return t:index_select(1, i) end, { numbers(dtype, 6, 48), ids(6, { 3, 4 }) },
        { exact = true })
      H.compare(function(t, i) return t:index_select(1, i) end, { numbers(dtype, 6, 48), ids(6, {}) }, { exact = true })
    end
    H.compare(function(t, i) return t:index_select(1, i) end, { numbers("bfloat16", 3, 9000), ids(3, { 4 }) },
      { exact = true })
  end)

  it("takes from views and by views", function()
    local every = H.view(ids(6, { 10, 2 }), function(b) return b:select(2, 1) end)
    for _, dtype in ipairs(STORED) do
      H.compare(function(t, i) return t:index_select(1, i), t:index_select(2, i) end,
        { H.view(numbers(dtype, 40, 6), function(b) return b:transpose(1, 2):narrow(2, 2, 39) end), every },
        { exact = true, what = dtype })
      H.compare(function(t, i) return t:index_select(1, i) end,
        { H.view(numbers(dtype, 6, 40), function(b) return b:narrow(2, 2, 32) end), every }, { exact = true })
    end
    H.compare(function(t, i) return t:index_select(1, i) end, { numbers("float32", 6, 0), ids(6, { 3 }) })
    H.compare(function(t, i) return t:index_select(1, i) end, { numbers("float32", 6, 4), ids(6, { 0 }) })
  end)
end)

describe("index_add on a device", function()
  before_each(function() mc.manual_seed(16) end)

  it("adds rows along each axis, for every dtype and row length", function()
    for _, dtype in ipairs(NUMBERS) do
      for _, width in ipairs { 1, 3, 16, 33 } do
        for axis = 1, 3 do
          local shape = { 4, 5, width }
          local da = numbers(dtype, unpack(shape))
          local index = ids(shape[axis], { 9 }, axis == 1 and "int32" or "int64")
          shape[axis] = 9
          H.compare(index_add(axis), { da, numbers(dtype, unpack(shape)), index }, { exact = true, what = dtype })
        end
      end
      H.compare(index_add(1), { numbers(dtype, 6, 48), numbers(dtype, 3, 4, 48), ids(6, { 3, 4 }) }, { exact = true })
      H.compare(index_add(1), { numbers(dtype, 6, 8), numbers(dtype, 8), ids(6, {}) }, { exact = true })
    end
  end)

  it("adds to many targets, some of which take rows of many windows, and gives the same bits again", function()
    for _, dtype in ipairs { "float64", "float32", "bfloat16" } do
      local n = 700
      local index = ids(5000, { n })
      index:narrow(1, 40, 400):fill_(4097)
      index:narrow(1, 600, 33):fill_(300)
      local da, dout = mc.zeros({ 5000, 8 }, { dtype = dtype }), numbers(dtype, n, 8)
      if dtype == "bfloat16" then dout = dout * 0.25 end
      H.compare(index_add(1), { da, dout, index }, { n = 400, what = dtype, exact = dtype ~= "bfloat16" })
      local there = { da:to(H.device), mc.randn(n, 8):to(dtype):to(H.device), index:to(H.device) }
      helper.same(index_add(1)(unpack(there)):to("cpu"), index_add(1)(unpack(there)):to("cpu"), dtype)
    end
    H.compare(index_add(1), { mc.zeros { 70000 }, mc.ones { 5000 }, ids(70000, { 5000 }) }, { exact = true })
  end)

  it("sorts any number of items, few and many", function()
    for _, n in ipairs { 1, 255, 256, 257, 512, 768, 769, 1025, 1536, 1537, 3000 } do
      for _, targets in ipairs { 1, 200, 300, 70000 } do
        H.compare(index_add(1), { mc.zeros { targets }, numbers("float32", n), ids(targets, { n }) },
          { exact = true, what = ("%d of %d"):format(n, targets) })
      end
    end
  end)

  it("adds in float32 and rounds 16-bit sums once", function()
    local da, dout = mc.ones({ 2, 8 }, { dtype = "bfloat16" }), mc.full({ 256, 8 }, 2 ^ -8, { dtype = "bfloat16" })
    local got = index_add(1)(da:to(H.device), dout:to(H.device), mc.zeros({ 256 }, { dtype = "int32" }):to(H.device))
    if H.device ~= "fake" then assert.equal(2, got:to("cpu"):select(1, 1):select(1, 1):item()) end
  end)

  it("adds to and from views", function()
    for _, dtype in ipairs(NUMBERS) do
      local rows = H.view(numbers(dtype, 30, 40), turned)
      H.compare(function(base, dout, index)
        local da = base:clone()
        local view = da:transpose(1, 2):narrow(2, 2, 30)
        check(C.mc_index_add(view.h, dout.h, 0, index.h), view, dout, index)
        return da
      end, { numbers(dtype, 33, 7), rows, ids(7, { 40 }) }, { exact = true, what = dtype })
    end
    H.compare(index_add(1), { numbers("float32", 6, 4), numbers("float32", 0, 4), ids(6, { 0 }) })
  end)
end)

describe("gather and scatter_add on a device", function()
  before_each(function() mc.manual_seed(17) end)

  it("gather takes elements along each axis, for every dtype and layout", function()
    for _, dtype in ipairs(STORED) do
      for axis = 1, 3 do
        local shape, a = { 3, 4, 6 }, numbers(dtype, 5, 4, 7)
        shape[axis] = 11
        local index = ids(a:size(axis), shape, axis == 2 and "int32" or "int64")
        H.compare(function(t, i) return t:gather(axis, i) end, { a, index }, { exact = true, what = dtype })
      end
      H.compare(function(t, i) return t:gather(1, i) end,
        { H.view(numbers(dtype, 9, 5), turned), H.view(ids(5, { 9, 4 }), turned) }, { exact = true })
      H.compare(function(t, i) return t:gather(1, i) end, { numbers(dtype, 9), ids(9, { 0 }) }, { exact = true })
    end
  end)

  it("scatter_add adds along each axis, line by line and sorted", function()
    for _, dtype in ipairs(NUMBERS) do
      for _, long in ipairs { 11, 75 } do
        for axis = 1, 3 do
          local shape, a = { 3, 4, 6 }, numbers(dtype, 5, 4, 7)
          shape[axis] = long
          local index = ids(a:size(axis), shape, axis == 2 and "int32" or "int64")
          H.compare(scatter_add(axis), { a, numbers(dtype, unpack(shape)), index },
            { exact = true, what = ("%s axis %d of %d"):format(dtype, axis, long) })
        end
      end
      H.compare(scatter_add(1), { numbers(dtype, 9), numbers(dtype, 1000), ids(9, { 1000 }) },
        { n = 1000, what = dtype })
      H.compare(scatter_add(2), { numbers(dtype, 40, 9), H.view(numbers(dtype, 50, 40), turned), ids(9, { 40, 50 }) },
        { exact = true })
    end
  end)
end)

describe("bad indices on a device", function()
  local x = mc.zeros { 4, 3, 8 }

  it("are named with their position and the legal range", function()
    local bad = mc.tensor({ 0, 1, 4, 2 }, { dtype = "int64" })
    local below = mc.tensor({ { 0, 1 }, { -1, 2 } }, { dtype = "int32" })
    local range = " is 4, legal are 0 to 3 (0-based)"
    H.raises("index_select: index[2]" .. range, function(t, i) return t:index_select(1, i) end, { x, bad })
    H.raises("index_select: index[1, 0] is -1, legal are 0 to 3 (0-based)",
      function(t, i) return t:index_select(1, i) end, { x, below })
    H.raises("index_select: index[] is 4, legal are 0 to 3 (0-based)",
      function(t, i) return t:index_select(1, i) end, { x, mc.tensor(4, { dtype = "int32" }) })
    H.raises("index_add: index[2]" .. range, index_add(1), { x, mc.zeros { 4, 3, 8 }, bad })
    H.raises("gather: index[1, 0] is -1, legal are 0 to 3 (0-based)", function(t, i) return t:gather(1, i) end,
      { mc.zeros { 4, 3 }, below })
    H.raises("scatter_add: index[1, 0] is -1, legal are 0 to 3 (0-based)", scatter_add(1),
      { mc.zeros { 4, 3 }, mc.zeros { 2, 2 }, below })
    local long = mc.zeros({ 2, 50 }, { dtype = "int64" })
    long:select(1, 2):select(1, 48):fill_(9)
    H.raises("scatter_add: index[1, 47] is 9, legal are 0 to 3 (0-based)", scatter_add(2),
      { mc.zeros { 2, 4 }, mc.zeros { 2, 50 }, long })
    H.raises("scatter_add: index[47, 1] is 9, legal are 0 to 3 (0-based)", scatter_add(1),
      { mc.zeros { 4, 2 }, mc.zeros { 50, 2 }, long:transpose(1, 2):contiguous() })
  end)

  it("are found where there is nothing to move or no row to take", function()
    local bad = mc.tensor({ 7 }, { dtype = "int64" })
    H.raises("index_select: index[0] is 7, legal are 0 to 3 (0-based)",
      function(t, i) return t:index_select(1, i) end, { mc.zeros { 4, 0 }, bad })
    H.raises("index_select: index[0] is 7, none is legal: the axis has size 0",
      function(t, i) return t:index_select(1, i) end, { mc.zeros { 0, 4 }, bad })
    H.raises("index_add: index[0] is 7, none is legal: the axis has size 0", index_add(1),
      { mc.zeros { 0, 4 }, mc.zeros { 1, 4 }, bad })
  end)

  it("leave the legal ones done", function()
    if H.device == "fake" then return end
    local da, index = mc.zeros({ 4, 8 }):to(H.device), mc.tensor({ 1, 99, 3, 1, -5 }, { dtype = "int32" }):to(H.device)
    local out = index_add(1)(da, mc.ones({ 5, 8 }):to(H.device), index)
    pcall(mc.cuda.synchronize, H.device)
    assert.same({ 0, 2, 0, 1 }, out:to("cpu"):select(2, 1):totable())
  end)
end)
