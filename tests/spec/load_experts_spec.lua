-- L29: the part of an expert-parallel rank, experts = {first =, count =, total =}: as the planner sees it, and from
-- files, where only the bytes of those experts may be read.
local hdf5 = require "mascon.checkpoint.hdf5"
local helper = require "plan_helper"
local mc = require "mascon"
local plan = require "mascon.checkpoint.plan"

local N, K = helper.N, helper.K
local packed, bias_want, offer = helper.packed, helper.bias_want, helper.offer
local members, range, joined, lines = helper.members, helper.range, helper.joined, helper.lines

local EIGHT = { first = 8, count = 8, total = 64 }

describe("the plan of a range of experts (L29)", function()
  it("reads one stretch of a stacked entry", function()
    local p = plan.make({ packed("m.weight", 8), bias_want("m.bias", 8) },
      { offer("m.weight", { 64, N, K }), offer("m.bias", { 64, 1, N }) }, { experts = EIGHT })
    assert.are.same({}, lines(p))
    assert.are.equal(2, #p.copies)
    assert.are.same({ 8 * N * K, 8 * N * K, 0 }, { p.copies[1].offer_first, p.copies[1].count, p.copies[1].want_first })
    assert.are.same({ 8 * N, 8 * N, 0 }, { p.copies[2].offer_first, p.copies[2].count, p.copies[2].want_first })
    assert.are.same({ { "m.weight" }, { "m.bias" } }, { p.loaded, p.converted })
  end)

  it("takes the wanted members and lists the others as ignored", function()
    for _, layout in ipairs(helper.LAYOUTS) do
      local p = plan.make({ packed("m.weight", 8, layout) }, members("m.weight", range(0, 63)), { experts = EIGHT })
      assert.are.same({}, lines(p))
      assert.are.same({}, p.warnings)
      assert.are.equal(8, #p.copies)
      for i, copy in ipairs(p.copies) do
        assert.are.same({ "m.weight" .. i + 7, (i - 1) * N * K, 0 }, { copy.name, copy.want_first, copy.offer_first })
      end
      assert.are.equal(8, #(layout == "single" and p.converted or p.loaded))
      assert.are.equal(56, #p.ignored)
      assert.are.same({}, p.unexpected)
      assert.are.same({}, p.missing)
    end
  end)

  it("follows first and count where the experts do not divide evenly", function()
    local seen = {}
    for _, part in ipairs { { 0, 3 }, { 3, 3 }, { 6, 2 }, { 8, 2 } } do
      local p = plan.make({ packed("m.weight", part[2]) }, members("m.weight", range(0, 9)),
        { experts = { first = part[1], count = part[2], total = 10 } })
      for _, copy in ipairs(p.copies) do seen[#seen + 1] = copy.name end
    end
    assert.are.same(helper.names_of(members("m.weight", range(0, 9))), seen)
  end)

  it("names both counts when the source has another total", function()
    local function make(offers, options)
      return lines(plan.make({ packed("m.weight", 8) }, offers, options or { experts = EIGHT }))
    end
    assert.are.same({ "[count] m.weight: 32 experts in the checkpoint (shape [32, 3, 5]), 64 in all by the option "
      .. "experts" }, make { offer("m.weight", { 32, N, K }) })
    assert.are.same({ "[count] m.weight: 8 experts in the checkpoint (shape [8, 3, 5]), 64 in all by the option "
      .. "experts" }, make { offer("m.weight", { 8, N, K }) })
    assert.are.same({ "[count] m.weight{0-31}: 32 experts in the checkpoint, 64 in all by the option experts" },
      make(members("m.weight", range(0, 31))))
    assert.are.same({ "[count] m.weight{0-64}: 65 experts in the checkpoint, 64 in all by the option experts" },
      make(members("m.weight", range(0, 64)), { experts = EIGHT, strict = false, allow_partial_experts = true }))
    -- a file of a part of the experts is taken where the caller says that it is one
    assert.are.same({}, make(members("m.weight", range(8, 15)), { experts = EIGHT, allow_partial_experts = true }))
  end)

  it("names the experts that are missing inside the range, and asks for none outside it", function()
    local offers = members("m.weight", joined(range(0, 9), range(11, 20), range(22, 63)))
    local p = plan.make({ packed("m.weight", 8) }, offers, { experts = EIGHT, strict = false })
    assert.are.same({ "[partial] m.weight{8,9,11-15}: only 7 of the experts 8-15 of 64 are in the checkpoint, "
      .. "missing 10" }, lines(p))
    assert.are.same({ "m.weight10" }, p.missing)
    p = plan.make({ packed("m.weight", 8) }, offers, { experts = EIGHT, allow_partial_experts = true })
    assert.is_true(p.ok)
    assert.are.equal(7, #p.copies)
    assert.are.equal(3 * N * K, p.copies[3].want_first) -- expert 11 is the fourth
    p = plan.make({ packed("m.weight", 8) }, offers, { experts = { first = 56, count = 8, total = 64 } })
    assert.is_true(p.ok)
    p = plan.make({ packed("m.weight", 8) }, members("m.weight", range(0, 7)), { experts = EIGHT })
    assert.are.same({ "[partial] m.weight{0-7}: only 0 of the experts 8-15 of 64 are in the checkpoint, missing 8-15" },
      lines(p))
    p = plan.make({ packed("m.weight", 8) }, members("m.weight", range(0, 7)),
      { experts = EIGHT, allow_partial_experts = true })
    assert.is_true(p.ok)
    assert.are.same({}, p.copies)
    p = plan.make({ packed("m.weight", 8, "per_expert") }, {}, { experts = EIGHT })
    assert.are.same({ "[missing] m.weight{8-15}: not in the checkpoint" }, lines(p))
  end)

  it("lets the own layout win, over these experts alone", function()
    local offers = joined({ offer("m.weight", { 64, N, K }) }, members("m.weight", range(0, 63)))
    local p = plan.make({ packed("m.weight", 8, "per_expert") }, offers, { experts = EIGHT, verify_duplicates = true })
    assert.are.same({ "m.weight and m.weight{8-15} are both in the checkpoint: m.weight{8-15} is used, "
      .. "m.weight ignored" }, p.warnings)
    assert.are.equal(8, #p.compare)
    assert.are.same({ 8, 8 * N * K, "m.weight8" }, { p.compare[1].expert, p.compare[1].a_first, p.compare[1].b_name })
    p = plan.make({ packed("m.weight", 8, "per_expert") },
      joined({ offer("m.weight", { 64, N, K }) }, members("m.weight", range(0, 31))), { experts = EIGHT })
    assert.are.same({ "m.weight and m.weight{8-15} (incomplete, the last is expert 31) are both in the checkpoint: "
      .. "m.weight is used, m.weight{8-15} ignored" }, p.warnings)
    assert.are.equal(32, #p.ignored)
    assert.is_true(p.ok)
  end)

  it("leaves layers of another count and plain tensors as they are", function()
    local p = plan.make({ packed("a.weight", 8), packed("b.weight", 4),
      { name = "router.weight", shape = { 64, K }, dtype = "float32" } },
      { offer("a.weight", { 64, N, K }), offer("b.weight", { 4, N, K }), offer("router.weight", { 64, K }) },
      { experts = EIGHT })
    assert.is_true(p.ok)
    assert.are.same({ 0, 64 * K }, { p.copies[3].offer_first, p.copies[3].count })
    assert.are.same({ 0, 4 * N * K }, { p.copies[2].offer_first, p.copies[2].count })
    assert.are.same({ "[count] experts: count is 8, but no grouped layer has that many experts; they have 2, 16" },
      lines(plan.make({ packed("a.weight", 16), packed("b.weight", 2) },
        { offer("a.weight", { 16, N, K }), offer("b.weight", { 2, N, K }) }, { experts = EIGHT })))
    assert.are.same({ "[count] experts: there is no grouped layer to load them into" },
      lines(plan.make({}, {}, { experts = EIGHT })))
  end)

  it("makes the scalars of these experts agree and of no others", function()
    local want = { name = "step.m.weight", shape = { 1 }, dtype = "float32",
      packed = { count = 2, role = "scalar", layout = "single" } }
    local offers = {}
    for i = 0, 5 do offers[i + 1] = { name = "step.m.weight" .. i, value = i < 2 and 1 or i < 4 and 7 or 9 } end
    local p = plan.make({ want }, offers, { experts = { first = 2, count = 2, total = 6 } })
    assert.are.same({}, lines(p))
    assert.are.equal(7, p.copies[1].value)
    assert.are.equal(4, #p.ignored)
    p = plan.make({ want }, offers, { experts = { first = 3, count = 2, total = 6 } })
    assert.are.same({ "[state] step.m.weight: experts must agree, but step.m.weight3 and step.m.weight4 differ: "
      .. "7 and 9" }, lines(p))
  end)

  it("is printed, and is refused when it is none", function()
    local p = plan.make({ packed("m.weight", 8) }, { offer("m.weight", { 64, N, K }) }, { experts = EIGHT })
    assert.is_truthy(tostring(p):find("(experts 8-15 of 64)", 1, true))
    assert.has_error(function() plan.make({}, {}, { experts = { first = 60, count = 8, total = 64 } }) end,
      "plan: experts: first = 60 and count = 8 go beyond total = 64")
    assert.has_error(function() plan.make({}, {}, { experts = { first = -1, count = 8, total = 64 } }) end,
      "plan: experts: first is -1, wanted an integer of 0 or more")
  end)
end)

-- ---------------------------------------------------------------- files

local G, R = 12, 3 -- experts in all, and of a rank

-- Elements that tell expert, row and column.
local function code(e, r, c) return 1000 * e + 10 * r + c end

local function model(count, layout, first)
  local Net = mc.nn.Module:extend "Net"
  function Net.init(self)
    self.router = mc.nn.Linear { in_features = 5, out_features = G, bias = false }
    self.experts = mc.nn.GroupedLinear { num_gemms = count, in_features = 5, out_features = 4,
      single_grouped_weight = layout == "single", single_grouped_bias = layout == "single" }
  end
  local net = Net()
  if first then
    mc.no_grad(function()
      net.router.weight:copy_(mc.arange(G * 5):view(G, 5))
      for e = 0, count - 1 do
        for r = 0, 3 do
          for c = 0, 4 do net.experts.weight[e + 1][r + 1][c + 1]:fill_(code(first + e, r, c)) end
          net.experts.bias[e + 1][r + 1]:fill_(code(first + e, r, 7))
        end
      end
    end)
  end
  return net
end

local function train(net, opt)
  local m, splits = net.experts, {}
  for i = 1, m.num_gemms do splits[i] = 1 end
  m(mc.ones(m.num_gemms, 5), splits):sum():backward()
  opt:step()
  opt:zero_grad()
end

describe("a file of all experts", function()
  local path = os.tmpname()
  teardown(function() os.remove(path) end)

  -- runs fn and returns the bytes that were read of each dataset
  local function bytes_read(fn)
    local open, read = hdf5.open, {}
    hdf5.open = function(...)
      local file = open(...)
      local plain, many = file.read, file.read_many
      function file.read(f, entry, first, t)
        read[entry.path] = (read[entry.path] or 0) + t:numel() * t:element_size()
        return plain(f, entry, first, t)
      end
      function file.read_many(f, list, n)
        for i = 0, n - 1 do
          local entry, numel = f.entries[tonumber(list[i].entry) + 1], 1
          for _, size in ipairs(entry.shape) do numel = numel * size end
          read[entry.path] = (read[entry.path] or 0) + tonumber(list[i].count) * entry.bytes / numel
        end
        return many(f, list, n)
      end
      return file
    end
    local ok, err = pcall(fn)
    hdf5.open = open
    if not ok then error(err, 0) end
    return read
  end

  for _, stored in ipairs { "single", "per_expert" } do
    for _, own in ipairs { "single", "per_expert" } do
      it(("in the layout %s loads by parts into models of the layout %s, reading no other byte"):format(stored, own),
        function()
          local whole = model(G, stored, 0)
          local opt = mc.optim.AdamW { params = whole, lr = 0.01 }
          train(whole, opt)
          mc.save(path, { model = whole:state_dict(), optimizer = opt:state_dict(), step = 1 }, { layout = stored })
          for first = 0, G - R, R do
            local part = model(R, own)
            local part_opt = mc.optim.AdamW { params = part, lr = 0.5 }
            local report
            local read = bytes_read(function()
              report = mc.checkpoint.load_into(path, { model = part, optimizer = part_opt },
                { experts = { first = first, count = R, total = G } })
            end)
            local total = 0
            for name, n in pairs(read) do
              total = total + n
              local expert = name:match "^/model/experts/%a+(%d+)$"
              assert.is_true(not expert or tonumber(expert) >= first and tonumber(expert) < first + R, name)
            end
            local expert_bytes = 4 * R * (4 * 5 + 4)
            assert.are.equal(3 * (expert_bytes + 4 * G * 5), total) -- values and two moments
            assert.are.same({}, report.unexpected)
            assert.are.same({ step = 1 }, report.rest)
            assert.are.equal(stored == "per_expert" and 2 * (G - R) or 0, #report.ignored)
            assert.is_true(mc.equal(whole.router.weight, part.router.weight))
            local moments, part_moments = opt:slots(), part_opt:slots()
            for i, slot in ipairs(moments) do
              local a, b = slot.tensor, part_moments[i].tensor
              if slot.packed then a = a:narrow(1, first + 1, R) end
              assert.is_true(mc.equal(a, b), slot.name)
            end
            for _, name in ipairs { "weight", "bias" } do
              assert.is_true(mc.equal(whole.experts[name]:detach():narrow(1, first + 1, R),
                part.experts[name]:detach()), name)
            end
          end
          local sd, part = mc.load(path).model, model(R, own)
          part:load_state_dict(sd, { experts = { first = 5, count = R, total = G } })
          assert.is_true(mc.equal(whole.experts.weight:detach():narrow(1, 6, R), part.experts.weight:detach()))
        end)
    end
  end

  it("reads one stretch when the source casts on the way, too", function()
    mc.save(path, { model = model(G, "single", 0):state_dict() })
    local part = model(2, "per_expert")
    part:to "float64"
    local read = bytes_read(function()
      mc.checkpoint.load_into(path, { model = part }, { experts = { first = 7, count = 2, total = G } })
    end)
    assert.are.equal(2 * 4 * 5 * 4, read["/model/experts/weight"])
    assert.are.equal(code(8, 3, 2), part.experts.weight[2][4][3]:item())
  end)

  it("does not load by halves", function()
    mc.save(path, { model = model(G, "single", 0):state_dict() })
    local part = model(R, "per_expert", 50)
    local before = part.experts.weight:clone():detach()
    local function fails(text, experts)
      local ok, err = pcall(mc.checkpoint.load_into, path, { model = part }, { experts = experts })
      assert.is_false(ok)
      assert.is_truthy(err:find(text, 1, true), err)
      assert.is_true(mc.equal(before, part.experts.weight:detach()))
    end
    fails("[count] model.experts.weight: 12 experts in the checkpoint (shape [12, 4, 5]), 16 in all by the option "
      .. "experts", { first = 3, count = R, total = 16 })
    fails("load_into: experts: first = 11 and count = 3 go beyond total = 12", { first = 11, count = 3, total = 12 })
    fails("[count] experts: count is 4, but no grouped layer has that many experts; they have 3",
      { first = 4, count = 4, total = 12 })
    fails("load_into: experts: option total is missing", { first = 4, count = 4 })
    fails("load_into: experts: unknown option last", { first = 4, count = 4, total = 12, last = 5 })
    local plan_of = mc.checkpoint.plan(path, { model = part }, { experts = { first = 3, count = R, total = G } })
    assert.is_true(plan_of.ok)
    assert.is_truthy(tostring(plan_of):find("(experts 3-5 of 12, single -> per_expert)", 1, true), tostring(plan_of))
  end)
end)
