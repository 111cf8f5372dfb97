-- The whole matrix of checkpoint layouts, as generated cases: every source into every module, from a file and from a
-- table, each element checked by a value that tells its expert, row and column. The sources are made of plain
-- tensors by rules of this file, which knows nothing of the planner or of state dicts.
local helper = require "helper"
local hdf5 = require "mascon.checkpoint.hdf5"
local lfs = require "lfs"
local mc = require "mascon"

-- In memory where that is to be had: what is saved here need not last. Each case is cheap, opening a file is not, so
-- one file holds many sources and one load fills many modules.
local folder = os.tmpname()
os.remove(folder)
if lfs.attributes("/dev/shm", "mode") == "directory" then folder = "/dev/shm/" .. folder:match "[^/]+$" end
assert(lfs.mkdir(folder))

local N, K = 5, 4 -- distinct from one another and from every number of experts
local COUNTS = { 1, 2, 3, 11, 64, 65 }
local LAYOUTS, BIASES = { "single", "per_expert" }, { "none", "single", "per_expert" }

-- ---------------------------------------------------------------- values

-- The i-th number (0-based) of all: distinct, and exact in float32, float16 and bfloat16.
local function number(i) return (128 + i % 128) * 2 ^ (math.floor(i / 128) - 8) end

-- The weight or bias of a layer of shape d = {G, N, K}, experts first .. last, as one tensor.
local function weight_of(d, first, last, dtype, shift)
  local flat, at = {}, shift or 0
  for e = first, last do
    for r = 0, d[2] - 1 do
      for c = 0, d[3] - 1 do flat[#flat + 1] = number(at + (e * d[2] + r) * d[3] + c) end
    end
  end
  return mc.tensor(flat, { dtype = dtype }):view(last - first + 1, d[2], d[3])
end

local function bias_of(d, first, last, dtype, shift)
  local flat, at = {}, (shift or 0) + d[1] * d[2] * d[3]
  for e = first, last do
    for r = 0, d[2] - 1 do flat[#flat + 1] = number(at + e * d[2] + r) end
  end
  return mc.tensor(flat, { dtype = dtype }):view(last - first + 1, d[2])
end

-- ---------------------------------------------------------------- sources and modules

-- A part of a source: name -> tensor, in a layout.
local function put(map, name, whole, layout)
  if layout == "single" then
    map[name] = whole
  elseif layout == "per_expert" then
    for e = 0, whole:size(1) - 1 do map[name .. e] = whole[e + 1]:clone() end
  end
  return map
end

local function source(d, weight, bias, dtype, prefix, shift)
  local map = put({}, (prefix or "") .. "weight", weight_of(d, 0, d[1] - 1, dtype, shift), weight)
  return put(map, (prefix or "") .. "bias", bias_of(d, 0, d[1] - 1, dtype, shift), bias)
end

local function layer(d, weight, bias, dtype)
  return mc.nn.GroupedLinear { num_gemms = d[1], out_features = d[2], in_features = d[3], bias = bias ~= "none",
    single_grouped_weight = weight == "single", single_grouped_bias = bias == "single", params_dtype = dtype,
    init_method = function(t) t:fill_(-1) end }
end

-- A layer that has the values of the source without having been loaded.
local function wanted_layer(d, weight, bias, dtype)
  local m = layer(d, weight, bias, dtype)
  mc.no_grad(function()
    m.weight:copy_(weight_of(d, 0, d[1] - 1, dtype))
    if m.bias then m.bias:copy_(bias_of(d, 0, d[1] - 1, dtype)) end
  end)
  return m
end

-- ---------------------------------------------------------------- what must hold after a load

local function snapshot(map)
  local copy = {}
  for name, t in pairs(map) do copy[name] = { t, t:clone(), t:shape() } end
  return copy
end

local function check_unchanged(map, before)
  for name, t in pairs(map) do
    local was = before[name]
    assert(was and was[1] == t, "the caller's map changed at " .. name)
    assert(mc.equal(was[2], t), "the caller's tensor changed: " .. name)
    assert.are.same(was[3], t:shape())
    before[name] = nil
  end
  assert(next(before) == nil, "the caller's map lost an entry")
end

local function check_values(m, d, dtype, first, shift)
  first = first or 0
  local last = first + m.num_gemms - 1
  assert(mc.equal(weight_of(d, first, last, dtype, shift), m.weight:detach()), "a weight is not where it belongs")
  if m.bias then assert(mc.equal(bias_of(d, first, last, dtype, shift), m.bias:detach()), "a bias is wrong") end
end

-- Parameters as they are now; the returned function checks that they are the same objects of the same kind.
local function remember(m)
  local weight, bias, layout = m.weight, m.bias, m:layout()
  local names = {}
  for name, p in m:named_parameters() do names[#names + 1] = { name, p } end
  return function()
    assert(m.weight == weight and m.bias == bias, "a parameter is another object")
    assert.are.same(layout, m:layout())
    local i = 0
    for name, p in m:named_parameters() do
      i = i + 1
      assert(names[i][1] == name and names[i][2] == p and p.requires_grad, "a parameter changed: " .. name)
    end
    assert.are.equal(#names, i)
  end
end

-- y and the gradients of one step, in a fixed order.
local function step(m)
  local splits = {}
  for i = 1, m.num_gemms do splits[i] = i % 3 end
  local rows = 0
  for _, n in ipairs(splits) do rows = rows + n end
  local x = mc.arange(rows * m.in_features):view(rows, m.in_features):to(m.weight.dtype)
  local y = m(x, splits)
  y:sum():backward()
  local all = { y:detach(), m.weight.grad, m.bias and m.bias.grad or nil }
  m:zero_grad()
  return all
end

local function check_step(m, like)
  local a, b = step(m), step(like)
  assert.are.equal(#b, #a)
  for i = 1, #b do assert(mc.equal(a[i], b[i]), "forward or backward differ") end
end

local function bytes_of(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "*a"
  f:close()
  return text
end

local function codes_of(err)
  local list, seen = {}, {}
  for code in err:gmatch "\n%[(%a+)%]" do
    if not seen[code] then
      seen[code] = true
      list[#list + 1] = code
    end
  end
  table.sort(list)
  return table.concat(list, " ")
end

-- Which errors a pair of biases gives, strict or not.
local function bias_error(file, module)
  if file == "none" and module ~= "none" then return "missing" end
  if file ~= "none" and module == "none" then return "unexpected" end
  return ""
end

-- Every pair of layouts of weight and bias: fn(file weight, file bias, module weight, module bias).
local function each_file(fn)
  for _, weight in ipairs(LAYOUTS) do
    for _, bias in ipairs(BIASES) do fn(weight, bias) end
  end
end

describe("the matrix of layouts", function()
  teardown(function()
    for name in lfs.dir(folder) do os.remove(folder .. "/" .. name) end
    lfs.rmdir(folder)
  end)

  -- 2 x 2 layouts of the weight, 3 x 3 forms of the bias, from a table and from a file
  local shapes = {}
  for _, G in ipairs(COUNTS) do shapes[#shapes + 1] = { G, N, K } end
  for _, square in ipairs { { 3, 4, 4 }, { 5, 5, 4 }, { 4, 4, 4 }, { 3, 1, 4 }, { 1, 1, 1 } } do
    shapes[#shapes + 1] = square
  end
  -- fn(key, map, m, bias error) for every source and module of a shape; 36 of them
  local function each_pair(d, fn)
    each_file(function(file_weight, file_bias)
      local map = source(d, file_weight, file_bias, "float32")
      each_file(function(weight, bias)
        fn(table.concat({ file_weight, file_bias, "into", weight, bias }, "_"), map,
          layer(d, weight, bias, "float32"), bias_error(file_bias, bias), weight, bias)
      end)
    end)
  end

  local function check_pair(d, m, like, why)
    if why == "missing" then
      assert(mc.equal(weight_of(d, 0, d[1] - 1, "float32"), m.weight:detach()))
      assert(mc.equal(mc.zeros(d[1], d[2]), m.bias:detach()), "a bias came from nowhere")
    else
      check_values(m, d, "float32")
      if like then check_step(m, like) end
    end
  end

  for _, d in ipairs(shapes) do
    local title = ("every pair of layouts of %d experts [%d, %d]"):format(d[1], d[2], d[3])

    it("is right for tables, for " .. title, function()
      each_pair(d, function(_, map, m, why, weight, bias)
        local check_parameters, before = remember(m), snapshot(map)
        if why ~= "" then -- strict: refused whole
          local ok, err = pcall(m.load_state_dict, m, map)
          assert.is_false(ok)
          assert.are.equal(why, codes_of(err))
          assert(mc.equal(m.weight:detach(), mc.full({ d[1], d[2], d[3] }, -1)), "an error changed a weight")
        end
        local report = m:load_state_dict(map, { strict = why == "" })
        check_parameters()
        check_unchanged(map, before)
        check_pair(d, m, wanted_layer(d, weight, bias, "float32"), why)
        assert.are.same(report, m:load_state_dict(map, { strict = why == "" }))
        check_pair(d, m, nil, why)
        local n = 0
        for _ in pairs(map) do n = n + 1 end
        assert.are.equal(n, #report.loaded + #report.converted + #report.unexpected)
        assert.are.same({}, report.ignored)
      end)
    end)

    it("is right for files, for " .. title, function()
      local maps, targets, checks, whys, entries = {}, {}, {}, {}, 0
      local saved, fresh = {}, {}
      each_pair(d, function(key, map, m, why, weight, bias)
        maps[key], targets[key], whys[key], checks[key] = map, m, why, remember(m)
        for _ in pairs(map) do entries = entries + 1 end
        if why ~= "missing" then fresh[key] = wanted_layer(d, weight, bias, "float32") end
      end)
      local path = folder .. "/source.h5"
      mc.save(path, maps)
      local plan = mc.checkpoint.plan(path, targets)
      local wrong = {}
      for _, e in ipairs(plan.errors) do wrong[e.name:match "^[^.]+"] = e.code end
      for key, why in pairs(whys) do assert.are.equal(why ~= "" and why or nil, wrong[key], key) end
      assert.is_false(pcall(mc.checkpoint.load_into, path, targets))
      for _, m in pairs(targets) do
        assert(mc.equal(m.weight:detach(), mc.full({ d[1], d[2], d[3] }, -1)), "an error changed a weight")
      end
      local report = mc.checkpoint.load_into(path, targets, { strict = false })
      for key, m in pairs(targets) do
        checks[key]()
        check_pair(d, m, fresh[key], whys[key])
        if fresh[key] then saved[key], fresh[key] = m:state_dict(), fresh[key]:state_dict() end
      end
      assert.are.equal(entries, #report.loaded + #report.converted + #report.unexpected)
      assert.are.same(report, mc.checkpoint.load_into(path, targets, { strict = false }))
      for key, m in pairs(targets) do check_pair(d, m, nil, whys[key]) end
      mc.save(folder .. "/again.h5", saved)
      mc.save(folder .. "/fresh.h5", fresh)
      assert(bytes_of(folder .. "/again.h5") == bytes_of(folder .. "/fresh.h5"),
        "a save after a load is not that of modules that were never loaded")
    end)
  end

  it("is right for every pair of dtypes", function()
    local d, dtypes = { 3, N, K }, { "float32", "bfloat16", "float16", "float64" }
    for _, from in ipairs(dtypes) do
      for _, stored in ipairs(LAYOUTS) do
        local map = source(d, stored, stored, from)
        map[stored == "single" and "weight" or "weight0"]:view(-1)[1]:fill_(1 + 2 ^ -9) -- 16 bits round it, not alike
        local first = mc.tensor({ 1 + 2 ^ -9 }, { dtype = from })
        local targets, sources = {}, {}
        for _, to in ipairs(dtypes) do
          for _, own in ipairs(LAYOUTS) do
            targets[to .. own], sources[to .. own] = layer(d, own, own, to), map
          end
        end
        mc.save(folder .. "/source.h5", sources)
        local report = mc.checkpoint.load_into(folder .. "/source.h5", targets)
        local rounded = 0
        for _, to in ipairs(dtypes) do
          local rounds = from ~= to and to ~= "float64" and not (to == "float32" and from ~= "float64")
          for _, own in ipairs(LAYOUTS) do
            rounded = rounded + (rounds and 2 or 0)
            local m = layer(d, own, own, to)
            assert.are.equal(rounds and 2 or 0, #m:load_state_dict(map).warnings)
            for _, loaded in ipairs { m, targets[to .. own] } do
              assert(mc.equal(loaded.weight:detach():view(-1):narrow(1, 1, 1), first:to(to)), from .. " to " .. to)
              mc.no_grad(function() loaded.weight:view(-1)[1]:fill_(number(0)) end)
              check_values(loaded, d, to)
            end
          end
        end
        assert.are.equal(rounded, #report.warnings)
      end
    end
  end)

  -- ---------------------------------------------------------------- nesting

  local function nest(parts, d, own)
    local root
    if parts.sequential then
      local list = {}
      for i in ipairs(parts) do list[i] = layer(d, own, own, "float32") end
      return mc.nn.Sequential(unpack(list)), list
    end
    local Node = mc.nn.Module:extend "Node"
    root = Node()
    local list = {}
    for i, name in ipairs(parts) do
      local at = root
      for part in name:gmatch "([^.]+)%." do
        if not at[part] then at[part] = Node() end
        at = at[part]
      end
      local leaf = name:match "[^.]+$"
      list[i] = layer(d, own, own, "float32")
      at[leaf] = list[i]
    end
    return root, list
  end

  for _, parts in ipairs { { "a.b" }, { "fc1", "fc10" }, { "m.x", "m.weight.x" }, { "weight", "weight0.bias" },
    { "0", "1", "2", sequential = true } } do
    it("is right for layers at " .. table.concat(parts, ", "), function()
      local d = { 3, 3, 2 }
      for _, stored in ipairs(LAYOUTS) do
        local flat, nested = {}, {}
        for i, name in ipairs(parts) do
          for key, t in pairs(source(d, stored, stored, "float32", name .. ".", 100 * i)) do flat[key] = t end
          local at = nested
          for part in name:gmatch "[^.]+" do
            at[part] = at[part] or {}
            at = at[part]
          end
          for key, t in pairs(source(d, stored, stored, "float32", "", 100 * i)) do at[key] = t end
        end
        mc.save(folder .. "/nest.h5", { flat_single = flat, flat_per_expert = flat, nested_single = nested,
          nested_per_expert = nested })
        local targets, layers = {}, {}
        for _, form in ipairs { "flat_", "nested_" } do
          for _, own in ipairs(LAYOUTS) do targets[form .. own], layers[form .. own] = nest(parts, d, own) end
        end
        local function check(report)
          for _, list in pairs(layers) do
            for i, m in ipairs(list) do check_values(m, d, "float32", 0, 100 * i) end
          end
          assert.are.same({}, report.warnings)
        end
        check(mc.checkpoint.load_into(folder .. "/nest.h5", targets))
        for key, root in pairs(targets) do
          for _, m in ipairs(layers[key]) do mc.no_grad(function() m.weight:zero_() m.bias:zero_() end) end
          targets[key] = root:load_state_dict(key:find "flat" and flat or nested)
        end
        check(targets.flat_single)
      end
    end)
  end

  -- ---------------------------------------------------------------- maps that are not plainly complete

  -- Loads a map into both layouts, from a table, strict or not, and, unless no_file, from a file. `codes` is what must
  -- come ("": loaded) for every module, and text must be in each error.
  local function expect(map, d, codes, text, options, no_file)
    local before, targets, checks = snapshot(map), {}, {}
    local function judge(m, ok, result, times)
      checks[m]()
      if codes == "" then
        assert(ok, result)
        check_values(m, d, "float32")
        return
      end
      assert.is_false(ok)
      assert.are.equal(codes, codes_of(result))
      if text then assert.are.equal(times, select(2, result:gsub(text:gsub("%p", "%%%0"), ""))) end
      assert(mc.equal(m.weight:detach(), mc.full({ d[1], d[2], d[3] }, -1)), "an error changed a weight")
      assert(mc.equal(m.bias:detach(), mc.zeros(d[1], d[2])), "an error changed a bias")
    end
    for _, own in ipairs(LAYOUTS) do
      for _, strict in ipairs { true, false } do
        local o = { strict = strict }
        for key, value in pairs(options or {}) do o[key] = value end
        local m = layer(d, own, own, "float32")
        checks[m] = remember(m)
        local ok, result = pcall(m.load_state_dict, m, map, o)
        judge(m, ok, result, 1)
      end
      targets[own] = layer(d, own, own, "float32")
      checks[targets[own]] = remember(targets[own])
    end
    if not no_file then
      mc.save(folder .. "/map.h5", { single = map, per_expert = map })
      local ok, result = pcall(mc.checkpoint.load_into, folder .. "/map.h5", targets, options)
      for _, m in pairs(targets) do judge(m, ok, result, 2) end
    end
    check_unchanged(map, before)
  end

  it("names each single expert that is missing", function()
    for _, G in ipairs { 2, 3, 11 } do
      local d = { G, N, K }
      for e = 0, G - 1 do
        for _, role in ipairs { "weight", "bias" } do
          local map = source(d, "per_expert", "per_expert", "float32")
          map[role .. e] = nil
          expect(map, d, "partial", ("only %d of %d experts are in the checkpoint, missing %d"):format(G - 1, G, e),
            nil, G ~= 3)
        end
      end
    end
  end)

  it("takes both layouts when they agree, and tells when they differ", function()
    local d = { 3, N, K }
    local function both()
      local map = source(d, "single", "single", "float32")
      for name, t in pairs(source(d, "per_expert", "per_expert", "float32")) do map[name] = t end
      return map
    end
    expect(both(), d, "", nil, { verify_duplicates = true })
    for e = 0, 2 do
      local map = both()
      map["weight" .. e][2][3]:fill_(-7)
      expect(map, d, "conflict", ("weight%d differ, first at element 6 (0-based)"):format(e),
        { verify_duplicates = true })
      for _, own in ipairs(LAYOUTS) do -- without it the module's own wins
        local m = layer(d, own, own, "float32")
        m:load_state_dict(map)
        assert.are.equal(own == "single" and number((e * N + 1) * K + 2) or -7, m.weight[e + 1][2][3]:item())
      end
      map = both()
      map["bias" .. e] = nil -- the complete one is used, whichever it is
      expect(map, d, "")
      expect(map, d, "partial", "are both in the checkpoint", { refuse_partial = true })
    end
  end)

  it("refuses every wrong count and shape", function()
    for _, G in ipairs { 1, 2, 3, 11 } do
      local d = { G, N, K }
      -- a map of one layout with one entry put in the place of another
      local function wrong(weight, name, t, codes, text)
        local map = source(d, weight, weight == "single" and "per_expert" or "single", "float32")
        map[name] = t
        expect(map, d, codes, text, nil, G ~= 3)
      end
      local w = weight_of(d, 0, G - 1, "float32")
      wrong("per_expert", "weight" .. G, mc.zeros(N, K), "count",
        ("%d experts in the checkpoint, %d in the module"):format(G + 1, G))
      wrong("single", "bias" .. G, mc.zeros(N), "count")
      wrong("single", "weight", weight_of({ G + 1, N, K }, 0, G, "float32"), "count",
        ("%d experts in the checkpoint (shape [%d, 5, 4]), %d in the module"):format(G + 1, G + 1, G))
      wrong("per_expert", "bias", mc.zeros(G + 1, N), "count")
      wrong("per_expert", "weight" .. G - 1, mc.zeros(N + 1, K), "shape", "found [6, 4], wanted [5, 4]")
      wrong("per_expert", "weight0", mc.zeros(N, K + 2), "shape", "found [5, 6], wanted [5, 4]")
      wrong("per_expert", "weight0", mc.zeros(K, N), "shape", "it looks transposed")
      wrong("single", "weight", mc.zeros(G, N + 1, K), "shape")
      wrong("single", "weight", mc.zeros(G, N, K + 2), "shape")
      wrong("single", "weight", mc.zeros(G, K, N), "shape", "looks transposed")
      wrong("single", "weight", mc.zeros(N, G * K), "shape")
      wrong("single", "weight", w:view(G * N, K), "shape", "the experts below one another")
      wrong("single", "bias0", mc.zeros(N + 1), "shape")
      wrong("per_expert", "bias", mc.zeros(G, N + 1), "shape")
      wrong("per_expert", "bias", mc.zeros(N, G), "shape")
    end
  end)

  it("takes every form of a bias", function()
    for _, d in ipairs { { 3, N, K }, { 1, N, K }, { 3, 1, K }, { 1, 1, K }, { 5, 5, K } } do
      for _, form in ipairs { { d[1], 1, d[2] }, { d[1] * d[2] }, { d[1], d[2] } } do
        local map = source(d, "single", "single", "float32")
        map.bias = map.bias:view(form)
        expect(map, d, "")
      end
      for _, form in ipairs { { 1, d[2] }, { d[2], 1 }, { d[2] }, d[2] == 1 and {} or { d[2] } } do
        local map = source(d, "per_expert", "per_expert", "float32")
        for e = 0, d[1] - 1 do map["bias" .. e] = map["bias" .. e]:view(form) end
        expect(map, d, "")
      end
    end
  end)

  for _, own in ipairs(LAYOUTS) do
    it(("takes [G * N, K] where its group says how many experts it has, into the layout %s"):format(own), function()
      local d = { 3, N, K }
      local function write(count)
        local path = folder .. "/two.h5"
        local w = hdf5.create(path)
        w:attr("/", "format", "mascon")
        w:attr("/", "format_version", 1)
        w:attr("/", "table", true)
        w:group("/m")
        w:attr("/m", "table", true)
        w:tensor("/m/weight", weight_of(d, 0, 2, "float32"):view(3 * N, K))
        w:tensor("/m/bias", bias_of(d, 0, 2, "float32"))
        w:attr("/m", "type", "GroupedLinear")
        w:attr("/m", "num_gemms", count)
        w:attr("/m", "weight_layout", "single")
        w:commit()
        return path
      end
      local m = layer(d, own, own, "float32")
      local report = mc.checkpoint.load_into(write(3), { m = m })
      check_values(m, d, "float32")
      assert.are.equal("m.weight", report.converted[own == "single" and 1 or 2])
      m = layer(d, own, own, "float32")
      m:load_state_dict(mc.load(folder .. "/two.h5").m) -- a loaded tensor remembers
      check_values(m, d, "float32")
      local ok, err = pcall(mc.checkpoint.load_into, write(15), { m = layer(d, own, own, "float32") })
      assert.is_false(ok)
      assert.are.equal("shape", codes_of(err))
    end)

    it(("adopts or copies, but never replaces a parameter, in the layout %s"):format(own), function()
      for _, G in ipairs { 1, 3, 11 } do
        local d = { G, N, K }
        each_file(function(weight, bias)
          if bias == "none" then return end
          local map = source(d, weight, bias, "float32")
          local before = snapshot(map)
          local m = layer(d, own, own, "float32")
          local check_parameters = remember(m)
          m:load_state_dict(map, { assign = true })
          check_parameters()
          check_unchanged(map, before)
          check_values(m, d, "float32")
          if weight == "single" then assert.are.equal(map.weight:storage_id(), m.weight:storage_id()) end
          check_step(m, wanted_layer(d, own, own, "float32"))
          assert.are.equal(m.weight:storage_id(), m:expert(G - 1).weight:storage_id())
        end)
      end
    end)
  end

  it("loads every range of experts", function()
    for _, G in ipairs { 2, 3, 11, 65 } do
      local d = { G, N, K }
      for _, stored in ipairs(LAYOUTS) do
        local map = source(d, stored, stored, "float32")
        local before = snapshot(map)
        mc.save(folder .. "/source.h5", { single = map, per_expert = map })
        for _, part in ipairs { { 0, 1 }, { G - 1, 1 }, { 1, G - 1 }, { math.floor(G / 3), math.ceil(G / 3) } } do
          local range = { first = part[1], count = part[2], total = G }
          local others, targets = stored == "per_expert" and 2 * (G - part[2]) or 0, {}
          for _, own in ipairs(LAYOUTS) do
            targets[own] = layer({ part[2], N, K }, own, own, "float32")
            local m = layer({ part[2], N, K }, own, own, "float32")
            assert.are.equal(others, #m:load_state_dict(map, { experts = range }).ignored)
            check_values(m, d, "float32", part[1])
          end
          local report = mc.checkpoint.load_into(folder .. "/source.h5", targets, { experts = range })
          assert.are.equal(2 * others, #report.ignored)
          for _, m in pairs(targets) do check_values(m, d, "float32", part[1]) end
        end
        check_unchanged(map, before)
      end
    end
  end)

  it("makes no second copy of what it loads, in one layout or across", function()
    local script, code = folder .. "/peak.lua", [[
local folder, mc = arg[1], require "mascon"
local function peak()
  for line in io.lines "/proc/self/status" do
    local kb = line:match "^VmHWM:%s+(%d+)"
    if kb then return kb / 1024 end
  end
end
local layer = mc.nn.GroupedLinear{num_gemms = 32, in_features = 512, out_features = 1024, bias = false}
for _, layout in ipairs{"single", "per_expert"} do
  mc.save(folder .. "/" .. layout, {m = layer:state_dict()}, {layout = layout})
end
local before = peak()
for _, stored in ipairs{"single", "per_expert"} do
  for _, own in ipairs{"single", "per_expert"} do
    layer:set_layout{weight = own}
    mc.checkpoint.load_into(folder .. "/" .. stored, {m = layer}, {verify = true})
  end
end
print(peak() - before)
]]
    local file = assert(io.open(script, "w"))
    file:write(code)
    file:close()
    local pipe = io.popen(("scripts/mascon %s %s"):format(script, folder))
    local extra = pipe:read "*n" -- MiB; the layer has 64
    pipe:close()
    assert.is_true(extra ~= nil and (extra < 24 or helper.sanitized()), tostring(extra))
  end)
end)
