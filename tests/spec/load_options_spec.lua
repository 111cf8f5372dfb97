-- Options of loads from files: progress, prefetch, decode_limit, rest, verify, the planner's own; and what stands by a
-- load: views, targets without slots.
local hdf5 = require "mascon.checkpoint.hdf5"
local helper = require "helper"
local mc = require "mascon"

local path = os.tmpname()

local function layer(opts)
  local m = mc.nn.GroupedLinear { num_gemms = 3, in_features = 4, out_features = 5, bias = false,
    single_grouped_weight = opts.single, params_dtype = opts.dtype or "float32" }
  mc.no_grad(function() m.weight:fill_(opts.value or 0) end)
  return m
end

-- Runs fn with hdf5.open replaced by wrap(open).
local function with_open(wrap, fn)
  local open = hdf5.open
  hdf5.open = wrap(open)
  local ok, err = pcall(fn)
  hdf5.open = open
  if not ok then error(err, 0) end
end

describe("a load", function()
  teardown(function() os.remove(path) end)

  it("tells how many bytes of all it has done", function()
    mc.save(path, { m = layer { value = 2 }:state_dict(), x = mc.ones(7) })
    for _, dtype in ipairs { "float32", "float64" } do
      local calls, m = {}, layer { single = true, dtype = dtype }
      mc.checkpoint.load_into(path, { m = m }, { progress = function(...) calls[#calls + 1] = { ... } end })
      local size = dtype == "float32" and 4 or 8
      assert.are.same({ { 20 * size, 60 * size }, { 40 * size, 60 * size }, { 60 * size, 60 * size } }, calls)
    end
    local calls = {}
    mc.load(path, { progress = function(...) calls[#calls + 1] = { ... } end })
    assert.are.equal(4, #calls)
    assert.are.same({ 268, 268 }, calls[4])
  end)

  it("tells of large tensors piece by piece", function()
    local n = 2 ^ 24 + 3 -- float32: one piece of 64 MiB and 12 bytes
    local t = mc.zeros(n)
    mc.no_grad(function() t:narrow(1, n - 3, 4):copy_(mc.tensor { 1, 2, 3, 4 }) end)
    mc.save(path, { x = t })
    local calls = {}
    local x = mc.load(path, { progress = function(done) calls[#calls + 1] = done end }).x
    assert.are.same({ 2 ^ 26, 2 ^ 26 + 12 }, calls)
    assert.are.same({ 1, 2, 3, 4 }, x:narrow(1, n - 3, 4):totable())
    helper.same(x, t)
  end)

  it("casts many small tensors and one that is larger than the stage", function()
    local n = 2 ^ 22 + 5 -- elements; the stage holds 2^22
    local sd, bare = { big = mc.arange(n) }, {}
    for i = 1, 40 do sd["t" .. i] = mc.full({ 3, i }, i) end
    mc.save(path, { m = sd, n = { h = mc.full({ 7 }, 2.5, { dtype = "float16" }) } })
    local Net = mc.nn.Module:extend("Net")
    function Net:init() -- luacheck: ignore 212
      for name, t in pairs(sd) do self[name] = mc.nn.Parameter(mc.zeros(t:shape(), { dtype = "float64" })) end
    end
    local Other = mc.nn.Module:extend("Other")
    function Other:init() self.h = mc.nn.Parameter(mc.zeros(7)) end
    local m, other, done = Net(bare), Other(bare), 0
    mc.checkpoint.load_into(path, { m = m, n = other }, { progress = function(at, all)
      assert.is_true(at > done and at <= all)
      done = at
    end })
    for name, t in pairs(sd) do helper.same(m[name]:detach(), t:to "float64") end
    helper.same(other.h:detach(), mc.full({ 7 }, 2.5))
    assert.are.equal(8 * (n + 3 * 820) + 4 * 7, done)
  end)

  it("is half done, and says so, when progress raises", function()
    mc.save(path, { m = layer { value = 2 }:state_dict() })
    local m, seen = layer {}, 0
    helper.raises("enough; what was to be loaded is half written", function()
      mc.checkpoint.load_into(path, { m = m }, { progress = function()
        seen = seen + 1
        if seen == 2 then error("enough", 0) end
      end })
    end)
    helper.raises("the module is invalid: a load failed half-way: enough", function() m(mc.ones(3, 4), { 1, 1, 1 }) end)
  end)

  it("hands prefetch and decode_limit to whoever opens the file", function()
    mc.save(path, { m = layer {}:state_dict() })
    local given = {}
    with_open(function(open)
      return function(name, opts)
        given[#given + 1] = opts
        return open(name, opts)
      end
    end, function()
      local m = layer {}
      mc.load(path)
      mc.load(path, { only = "m", decode_limit = 5 })
      mc.checkpoint.load_into(path, { m = m }, { decode_limit = 6 })
      mc.checkpoint.load_into(path, { m = m }, { experts = { first = 0, count = 3, total = 3 } })
      mc.checkpoint.load_into(path, { m = m }, { rest = false })
      mc.checkpoint.plan(path, { m = m }, { decode_limit = 7 })
      mc.checkpoint.diff(path, path, { decode_limit = 8 })
    end)
    assert.are.same({ { prefetch = true }, { prefetch = false, decode_limit = 5 },
      { prefetch = true, decode_limit = 6 }, { prefetch = false }, { prefetch = false }, { decode_limit = 7 },
      { decode_limit = 8 }, { decode_limit = 8 } }, given)
    helper.raises("load: option decode_limit is 0, wanted", mc.load, path, { decode_limit = 0 })
  end)

  it("leaves unread, with rest = false, the tensors that nobody wants", function()
    mc.save(path, { m = layer { value = 3 }:state_dict(), big = { x = mc.ones(9), note = ("long "):rep(500), n = 4 },
      rng = mc.get_rng_state(), step = 2 })
    local m, read = layer {}, {}
    local report
    with_open(function(open)
      return function(...)
        local file = open(...)
        local plain, many = file.read, file.read_many
        function file.read(f, entry, first, t)
          read[entry.path] = true
          return plain(f, entry, first, t)
        end
        function file.read_many(f, list, n)
          for i = 0, n - 1 do read[f.entries[tonumber(list[i].entry) + 1].path] = true end
          return many(f, list, n)
        end
        return file
      end
    end, function() report = mc.checkpoint.load_into(path, { m = m }, { rest = false }) end)
    assert.is_true(read["/m/weight0"])
    assert.is_nil(read["/big/x"])
    assert.is_nil(read["/rng"])
    assert.are.same({ big = { note = ("long "):rep(500), n = 4 }, step = 2 }, report.rest)
    report = mc.checkpoint.load_into(path, { m = m }, { rest = false, rng = true })
    helper.same(report.rest.rng, mc.get_rng_state())
    assert.are.equal(3, m.weight:detach():max():item())
  end)

  it("warns with verify = true of what has no digest", function()
    mc.save(path, { m = layer { value = 1 }:state_dict() })
    with_open(function(open)
      return function(...)
        local file = open(...)
        for _, entry in ipairs(file.entries) do
          if entry.path:find "weight[12]" then entry.attrs.digest = nil end
        end
        return file
      end
    end, function()
      local report = mc.checkpoint.load_into(path, { m = layer {} }, { verify = true })
      assert.are.same({ "verify: 2 of 3 datasets have no digest and were not checked, m.weight1 first" },
        report.warnings)
    end)
    assert.are.same({}, mc.checkpoint.load_into(path, { m = layer {} }, { verify = true }).warnings)
  end)

  it("says of a missing name that there is a view of it", function()
    mc.save(path, { m = { other = mc.ones(2) } })
    for _, own in ipairs { "single", "per_expert" } do
      for _, view in ipairs { "/m/weight", "/m/weight1", "/m/weight3" } do
        with_open(function(open)
          return function(...)
            local file = open(...)
            table.insert(file.entries, { path = view, view = true, dtype = "float32", shape = { 3, 5, 4 }, bytes = 240,
              object = -1, offset = -1, attrs = {}, index = -1 })
            return file
          end
        end, function()
          local plan = mc.checkpoint.plan(path, { m = layer { single = own == "single" } })
          local hint = "; there is a view of that name, but views are not read: what it shows lies in other datasets"
          local name = own == "single" and "weight" or "weight{0-2}"
          assert.are.equal(("[missing] m.%s: not in the checkpoint%s"):format(name,
            view ~= "/m/weight3" and hint or ""), plan.error_text:match "%[missing%][^\n]*")
        end)
      end
    end
  end)

  it("refuses, when told to, to round, to take one of two layouts, or takes experts of several dtypes", function()
    local m = layer { dtype = "bfloat16" }
    local sd = layer { value = 1 }:state_dict()
    mc.save(path, { m = sd })
    helper.raises("[dtype] weight{0-2}: found float32, wanted bfloat16, and narrowing is refused",
      function() m:load_state_dict(sd, { refuse_narrowing = true }) end)
    helper.raises("[dtype] m.weight{0-2}: found float32, wanted bfloat16, and narrowing is refused",
      function() mc.checkpoint.load_into(path, { m = m }, { refuse_narrowing = true }) end)
    sd.weight1 = sd.weight1:to "float16"
    helper.raises("[dtype] weight{0-2}: the experts differ in dtype: float32 in 0,2, float16 in 1; wanted one dtype",
      function() m:load_state_dict(sd) end)
    m:load_state_dict(sd, { allow_mixed_dtypes = true })
    assert.are.equal(1, m.weight:detach():min():item())
    sd = layer { value = 2 }:state_dict()
    sd.weight = layer { value = 2, single = true }.weight
    sd.weight1 = nil
    helper.raises("[partial] weight and weight{0,2} (incomplete, missing 1) are both in the checkpoint",
      function() m:load_state_dict(sd, { refuse_partial = true }) end)
    m:load_state_dict(sd)
    assert.are.equal(2, m.weight:detach():min():item())
  end)

  it("gives targets without slots back their state when one of them or the copy fails", function()
    local function counter(n, fails)
      return { n = n, state_dict = function(self) return { n = self.n } end,
        load_state_dict = function(self, sd)
          if fails then error("a bad table", 0) end
          self.n = sd.n
        end }
    end
    mc.save(path, { a = { n = 5 }, b = { n = 6 }, m = layer { value = 4 }:state_dict() })
    local a, b, m = counter(1), counter(2, true), layer { value = 1 }
    helper.raises("a bad table", mc.checkpoint.load_into, path, { a = a, b = b, m = m })
    assert.are.same({ 1, 2, 1 }, { a.n, b.n, m.weight:detach():max():item() })
    b = counter(2)
    helper.raises("no", mc.checkpoint.load_into, path, { a = a, b = b, m = m },
      { progress = function() error("no", 0) end })
    assert.are.same({ 1, 2 }, { a.n, b.n })
    mc.checkpoint.load_into(path, { a = a, b = b, m = m })
    assert.are.same({ 5, 6, 4 }, { a.n, b.n, m.weight:detach():max():item() })
  end)
end)
