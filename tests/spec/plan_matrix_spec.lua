-- The load planner over a matrix of layouts, against an oracle that executes the plan on plain Lua
-- arrays and knows nothing of the planner's ways.

local plan = require("mascon.checkpoint.plan")

local helper = require("plan_helper")
local N, K = helper.N, helper.K
local packed, bias_want, offer = helper.packed, helper.bias_want, helper.offer
local joined, shuffled = helper.joined, helper.shuffled

local function numel(shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  return n
end

-- ---------------------------------------------------------------- the oracle

-- Element `at` of expert e of a tensor; distinct over everything used here.
local function value(tensor, e, at) return tensor * 1e7 + e * 1e3 + at end

-- A source of `count` experts in one layout: offers and their payload by name.
local function source(tensor, stem, count, layout, tail)
  local offers, data, per = {}, {}, numel(tail)
  if layout == "single" then
    local shape, flat = { count }, {}
    for i, size in ipairs(tail) do shape[i + 1] = size end
    for e = 0, count - 1 do
      for at = 0, per - 1 do flat[e * per + at] = value(tensor, e, at) end
    end
    offers[1], data[stem] = offer(stem, shape), flat
  elseif layout == "per_expert" then
    for e = 0, count - 1 do
      local flat = {}
      for at = 0, per - 1 do flat[at] = value(tensor, e, at) end
      offers[#offers + 1], data[stem .. e] = offer(stem .. e, { unpack(tail) }), flat
    end
  end
  return offers, data
end

-- Runs the copies on arrays. Every element must be written exactly once.
local function execute(p, data)
  local result = {}
  for _, copy in ipairs(p.copies) do
    local target = result[copy.want.name] or {}
    result[copy.want.name] = target
    for i = 0, copy.count - 1 do
      local v = data[copy.offer.name][copy.offer_first + i]
      if v == nil then error("a copy reads past the end of " .. copy.offer.name) end
      if target[copy.want_first + i] then error("an element is written twice") end
      target[copy.want_first + i] = v
    end
  end
  return result
end

local function check_values(got, tensor, count, per)
  local n = 0
  for e = 0, count - 1 do
    for at = 0, per - 1 do
      if got[e * per + at] ~= value(tensor, e, at) then
        error(("expert %d, element %d: got %s"):format(e, at, tostring(got[e * per + at])))
      end
      n = n + 1
    end
  end
  for _ in pairs(got) do n = n - 1 end
  assert.are.equal(0, n)
end

local LAYOUTS, BIASES = { "single", "per_expert" }, { "none", "single", "per_expert" }
local NESTINGS = { { "" }, { "a.b." }, { "fc1.", "fc10." }, { "m.", "m.weight." }, { "0.", "1.", "10." } }

describe("the plan of a matrix of layouts", function()
  local function check(G, prefixes, file_w, module_w, file_b, module_b)
    local wants, offers, data, absent = {}, {}, {}, {}
    local loaded, converted, wanted_errors = 0, 0, 0
    for at, prefix in ipairs(prefixes) do
      wants[#wants + 1] = packed(prefix .. "weight", G, module_w)
      if module_b ~= "none" then wants[#wants + 1] = bias_want(prefix .. "bias", G, module_b) end
      if module_b == "none" then absent[prefix .. "bias"] = "bias = false" end
      for t, part in ipairs { { "weight", file_w, { N, K }, module_w }, { "bias", file_b, { N }, module_b } } do
        local o, d = source(2 * at + t, prefix .. part[1], G, part[2], part[3])
        offers = joined(offers, o)
        for name, flat in pairs(d) do data[name] = flat end
        if part[4] == "none" then
          if part[2] ~= "none" then wanted_errors = wanted_errors + 1 end
        elseif part[2] == "none" then
          wanted_errors = wanted_errors + 1
        elseif part[2] == part[4] then
          loaded = loaded + #o
        else
          converted = converted + #o
        end
      end
    end
    for _, strict in ipairs { true, false } do
      local p = plan.make(wants, shuffled(offers, G + 7), { strict = strict, absent = absent })
      assert.are.equal(loaded, #p.loaded)
      assert.are.equal(converted, #p.converted)
      assert.are.same({}, p.ignored)
      assert.are.same({}, p.warnings)
      assert.are.equal(strict and wanted_errors or 0, #p.errors)
      assert.are.equal(not strict or wanted_errors == 0, p.ok)
      assert.are.equal(#offers, #p.loaded + #p.converted + #p.unexpected)
      local got = execute(p, data)
      for at, prefix in ipairs(prefixes) do
        check_values(got[prefix .. "weight"], 2 * at + 1, G, N * K)
        if file_b ~= "none" and module_b ~= "none" then
          check_values(got[prefix .. "bias"], 2 * at + 2, G, N)
        else
          assert.is_nil(got[prefix .. "bias"])
        end
      end
    end
  end

  for _, G in ipairs { 1, 2, 3, 11, 64, 65 } do
    it(("is right for every pair of layouts, bias forms and nestings of %d experts"):format(G), function()
      for _, prefixes in ipairs(NESTINGS) do
        for _, file_w in ipairs(LAYOUTS) do
          for _, module_w in ipairs(LAYOUTS) do
            for _, file_b in ipairs(BIASES) do
              for _, module_b in ipairs(BIASES) do
                check(G, prefixes, file_w, module_w, file_b, module_b)
              end
            end
          end
        end
      end
    end)
  end

  it("is right for every subset of entries of a small layer", function()
    local G = 3
    for _, layout in ipairs(LAYOUTS) do
      for single = 0, 4 do -- experts in the stacked entry; 0: there is none
        for bits = 0, 2 ^ (G + 1) - 1 do
          local offers, data = source(1, "m.weight", single, single > 0 and "single" or "none", { N, K })
          local set, low, surplus = {}, 0, false
          for i = 0, G do
            if math.floor(bits / 2 ^ i) % 2 == 1 then
              set[i] = true
              offers[#offers + 1] = offer("m.weight" .. i, { N, K })
              data["m.weight" .. i] = {}
              for at = 0, N * K - 1 do data["m.weight" .. i][at] = value(2, i, at) end
              if i < G then low = low + 1 else surplus = true end
            end
          end
          for _, allow in ipairs { false, true } do
            local p = plan.make({ packed("m.weight", G, layout) }, offers,
              { strict = false, allow_partial_experts = allow })
            local codes = {}
            for _, e in ipairs(p.errors) do codes[e.code] = true end
            local wrong_count = surplus or (single > 0 and single ~= G)
            local partial = not wrong_count and single == 0 and low > 0 and low < G
            assert.are.equal(wrong_count or nil, codes.count)
            assert.are.equal((partial and not allow) or nil, codes.partial)
            assert.are.equal(not wrong_count and (not partial or allow), p.ok)
            if p.ok then
              local got = execute(p, data)["m.weight"] or {}
              local from_set = low == G and (single == 0 or layout == "per_expert") or partial
              for e = 0, G - 1 do
                local wanted
                if from_set then
                  wanted = set[e] and value(2, e, 4)
                elseif single > 0 then
                  wanted = value(1, e, 4)
                end
                assert.are.equal(wanted or nil, got[e * N * K + 4])
              end
              local both = single > 0 and low > 0
              assert.are.equal((both or partial) and 1 or 0, #p.warnings)
              assert.are.equal(both and (from_set and 1 or low) or 0, #p.ignored)
            end
          end
        end
      end
    end
  end)
end)
