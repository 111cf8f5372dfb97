--- Fuzzes the load planner, and loading as a whole, in one process.
--
--   scripts/mascon tests/fuzz/planner.lua SECONDS SEED
--
-- Half of the time: random wants and offers, near to what layers want, against planner.make, held to what every plan
-- promises. The other half: files with changed structures and right checksums (faults/h5edit.lua) through plan,
-- load_into, load, inspect and verify: an error of ours that names the file, or a result; never a fault inside the
-- library; and the process must not grow.
package.path = arg[0]:match "^(.*)/" .. "/../faults/?.lua;" .. package.path
local edit = require "h5edit"
local mc = require "mascon"
local tools = require "tools"
local planner = require "mascon.checkpoint.plan"
local names = require "mascon.checkpoint.plan_names"

local seconds, seed = tonumber(arg[1]) or 6, tonumber(arg[2]) or 1
local random = math.random
local DTYPES = { "float32", "float32", "float32", "float64", "bfloat16", "float16", "int64", "uint8", "bool",
  "float8_e4m3fn", "float4_x" }

local function pick(list) return list[random(#list)] end
local function chance(n) return random(n) == 1 end

-- A value as Lua text, for whoever has to find out what went wrong.
local function show(value, depth)
  if type(value) ~= "table" or (depth or 0) > 5 then
    return type(value) == "string" and ("%q"):format(value) or tostring(value)
  end
  local parts = {}
  for key, entry in pairs(value) do
    parts[#parts + 1] = ("[%s] = %s"):format(show(key), show(entry, (depth or 0) + 1))
  end
  table.sort(parts)
  return "{" .. table.concat(parts, ", ") .. "}"
end

local function give_up(what, ...)
  io.stderr:write("fuzz: planner: ", what, "\n")
  for i = 1, select("#", ...) do io.stderr:write(tostring((select(i, ...))), "\n") end
  os.exit(1)
end

-- ---------------------------------------------------------------- wants and offers

local STEMS = { "weight", "bias", "m.weight", "m.bias", "m.n.weight", "step", "exp_avg.weight", "" }
local NUMBERS = { "0", "1", "2", "3", "10", "11", "00", "01", "007", "-1", "1.0", "9007199254740993", "1e3", "x", " 1",
  ("9"):rep(30) }
local SIZES = { 0, 1, 2, 3, 4, 5, 12, 2 ^ 31, 2 ^ 53, 2 ^ 60 }

local function a_shape(base)
  local shape = {}
  for i, n in ipairs(base) do shape[i] = n end
  local kind = random(12)
  if kind == 1 then
    shape[random(#shape + 1)] = pick(SIZES)
  elseif kind == 2 then
    table.remove(shape)
  elseif kind == 3 then
    table.insert(shape, random(#shape + 1), 1)
  elseif kind == 4 and #shape >= 2 then
    shape[1], shape[2] = shape[2], shape[1]
  elseif kind == 5 and #shape >= 2 then
    shape[1] = shape[1] * table.remove(shape, 2)
  end
  return shape
end

local function a_dtype(near) return chance(6) and pick(DTYPES) or near end

local function some_wants()
  local wants, taken = {}, {}
  for _ = 1, random(0, 4) do
    local name = pick(STEMS)
    if name ~= "" and not taken[name] then
      taken[name] = true
      local want = { name = name, dtype = pick(DTYPES), optional = chance(6) or nil }
      if chance(3) then want.id = random(2) end
      local count = random(4)
      if name:find "bias" then
        want.shape = { count, random(3) }
        want.packed = { count = count, role = "bias", layout = pick { "single", "per_expert" } }
      elseif name == "step" then
        want.shape = {}
        want.packed = { count = count, role = "scalar", layout = pick { "single", "per_expert" } }
      else
        want.shape = { count, random(3), random(4) }
        want.packed = { count = count, role = "weight", layout = pick { "single", "per_expert" } }
      end
      if chance(4) then want.packed = nil end
      wants[#wants + 1] = want
    end
  end
  return wants
end

local function an_offer(name, shape, dtype)
  local offer = { name = name, shape = a_shape(shape), dtype = a_dtype(dtype) }
  if chance(20) then
    offer.shape, offer.dtype = nil, nil
    offer.value = pick { 0, 1, 0.5, -1, 2 ^ 53, 0 / 0, math.huge }
  end
  if chance(25) then offer.problem = "it is odd" end
  if chance(6) then offer.id = random(3) end
  if chance(20) then offer.packed = { count = random(4) } end
  return offer
end

-- Offers that nearly serve the wants, in any layout, and some that do not.
local function some_offers(wants, range)
  local offers = {}
  for _, want in ipairs(wants) do
    local packed = want.packed
    if packed and random(3) > 1 then
      local member = { unpack(want.shape, 2) }
      local all = range and chance(2) and range.total or packed.count
      for index = 0, all - 1 + (chance(6) and random(3) or 0) do
        if not chance(15) then offers[#offers + 1] = an_offer(want.name .. index, member, want.dtype) end
      end
      if chance(5) then offers[#offers + 1] = an_offer(want.name .. pick(NUMBERS), member, want.dtype) end
    end
    if not packed or random(3) == 1 then offers[#offers + 1] = an_offer(want.name, want.shape, want.dtype) end
  end
  for _ = 1, random(0, 2) do offers[#offers + 1] = an_offer(pick(STEMS) .. pick(NUMBERS), { 2 }, "float32") end
  if #offers > 1 and chance(15) then offers[#offers + 1] = offers[random(#offers)] end
  for i = #offers, 2, -1 do
    local j = random(i)
    offers[i], offers[j] = offers[j], offers[i]
  end
  if chance(4) then -- as a map
    local map = {}
    for _, offer in ipairs(offers) do
      if offer.name then map[offer.name], offer.name = offer, nil end
    end
    if map[1] == nil then return map end
  end
  return offers
end

local OPTIONS = { "strict", "verify_duplicates", "allow_partial_experts", "refuse_narrowing", "refuse_partial",
  "allow_mixed_dtypes" }
local function some_options()
  local options = {}
  for _, name in ipairs(OPTIONS) do
    if chance(3) then options[name] = chance(2) end
  end
  if chance(6) then options.prefix = pick { "m.", "", "n." } end
  if chance(6) then options.absent = { bias = "bias = false" } end
  if chance(4) then -- the part of one rank
    local first, count = random(0, 2), random(4)
    options.experts = { first = first, count = count, total = first + count + random(0, 2) }
  end
  if chance(6) then options.views = { weight = true, bias0 = true } end
  return options
end

-- Every element of a want that must come from somewhere comes from one place, and no copy leaves its ends.
local function check_plan(plan, wants, options)
  if plan.ok ~= (#plan.errors == 0) then return "ok is " .. tostring(plan.ok) end
  if plan.ok == (plan.error_text ~= nil) then return "the error text is " .. tostring(plan.error_text) end
  for _, e in ipairs(plan.errors) do
    if type(e.code) ~= "string" or (e.message or "") == "" then return "an error without words" end
  end
  if not plan.ok then return nil end
  local covered, served = {}, {}
  for _, copy in ipairs(plan.copies) do
    local want, offer = copy.want, copy.offer
    local n = names.numel(want.shape)
    if copy.count < 0 or copy.want_first < 0 or copy.want_first + copy.count > n then
      return ("a copy to [%s, +%s) of %s elements"):format(copy.want_first, copy.count, n)
    end
    if copy.value == nil then
      local m = names.numel(offer.shape)
      if copy.offer_first < 0 or copy.offer_first + copy.count > m then
        return ("a copy from [%s, +%s) of %s elements"):format(copy.offer_first, copy.count, m)
      end
      if not copy.cast and offer.dtype ~= want.dtype then return "a cast that is not named" end
      if offer.problem then return "a copy from what cannot be read" end
    end
    covered[want] = covered[want] or {}
    table.insert(covered[want], { copy.want_first, copy.want_first + copy.count })
    if want.id ~= nil then served[want.id] = true end
  end
  for _, want in ipairs(wants) do
    local parts, at, n = covered[want] or {}, 0, names.numel(want.shape)
    table.sort(parts, function(a, b) return a[1] < b[1] or a[1] == b[1] and a[2] < b[2] end)
    local whole = true
    for _, part in ipairs(parts) do
      if part[1] < at then return want.name .. " is written twice" end
      whole = whole and part[1] == at
      at = part[2]
    end
    whole = whole and at == n
    local may_lack = want.optional or options.strict == false or options.allow_partial_experts
      or want.id ~= nil and served[want.id]
    if not whole and not may_lack then return want.name .. " is not covered" end
    if not whole and n > 0 and not want.optional and plan.complete and not (want.id ~= nil and served[want.id]) then
      return want.name .. " is not covered, and the plan says it is complete"
    end
  end
  return nil
end

local function one_plan()
  local wants = some_wants()
  local options = some_options()
  local offers = some_offers(wants, options.experts)
  local before = show { wants, offers, options }
  local ok, plan = pcall(planner.make, wants, offers, options)
  if not ok then give_up("planner.make raises: " .. tostring(plan), before) end
  local wrong = check_plan(plan, wants, options)
  local shown, text = pcall(tostring, plan)
  if not shown then wrong = "it cannot be printed: " .. text end
  if show { wants, offers, options } ~= before then wrong = "its arguments are changed" end
  if wrong then give_up(wrong, before, plan.error_text or text) end
  return plan.ok
end

-- ---------------------------------------------------------------- files

local folder = tools.new_folder()
local target = folder .. "/changed.h5"

local Model = mc.nn.Module:extend "Model"
function Model:init(layout)
  local single = layout == "single"
  self.embed = mc.nn.Embedding { num_embeddings = 5, embedding_dim = 4 }
  self.experts = mc.nn.GroupedLinear { num_gemms = 11, in_features = 4, out_features = 3,
    single_grouped_weight = single, single_grouped_bias = single }
end

local function seeds()
  local list = { tools.slurp "tests/golden/v1_per_expert.h5", tools.slurp "tests/golden/v1_single.h5" }
  for _, layout in ipairs { "single", "per_expert" } do
    mc.save(target, { model = Model(layout):state_dict(), step = 1, list = { 1, 2, true, "text" } })
    list[#list + 1] = tools.slurp(target)
  end
  for i, text in ipairs(list) do list[i] = { text = text, headers = edit.headers(text) } end
  return list
end

local ODD = { 0, 1, 2, 8, 9, 32, 33, 255, 65535, 65536, 2 ^ 31, 2 ^ 32 - 1, 2 ^ 40, 2 ^ 61, 2 ^ 62, 2 ^ 63, -1LL }

local function changed(file)
  local text = file.text
  for _ = 1, random(3) do
    local header = pick(file.headers)
    local m = #header.messages > 0 and pick(header.messages)
    if m and m.n > 0 then
      local at, kind = m.at + random(0, m.n - 1), random(6)
      if kind == 1 then
        text = edit.put(text, at, string.char(random(0, 255)))
      elseif kind == 2 then
        text = edit.put(text, at, string.char((text:byte(at) + pick { 1, 255 }) % 256))
      elseif kind == 3 then -- another message's content
        local other = pick(pick(file.headers).messages)
        text = edit.put(text, m.at, text:sub(other.at, other.at + math.min(m.n, other.n) - 1))
      else
        local width = pick { 1, 2, 4, 8 }
        if m.n >= width then
          local value = chance(3) and #text + random(-2, 2) or pick(ODD)
          text = edit.put(text, m.at + random(0, m.n - width), edit.bytes(value, width))
        end
      end
    end
  end
  if chance(30) then text = text:sub(1, random(#text)) end
  return #text < 48 and text or edit.repair(text, #text == #file.text and file.headers or {}, true)
end

local models = { single = Model "single", per_expert = Model "per_expert" }
local WAYS = {
  plan = function() return mc.checkpoint.plan(target, { model = models.single }) end,
  load_into = function()
    return mc.checkpoint.load_into(target, { model = models[pick { "single", "per_expert" }] },
      { strict = chance(2), verify = chance(2) })
  end,
  load = function() return mc.load(target) end,
  inspect = function() return tostring(mc.checkpoint.inspect(target, { stats = chance(4) })) end,
  verify = function() return tostring(mc.checkpoint.verify(target)) end,
}
local WAY_NAMES = { "plan", "load_into", "load", "inspect", "verify" }

local function one_file(list)
  local bytes = changed(pick(list))
  tools.spill(target, bytes)
  local way = pick(WAY_NAMES)
  local began = tools.now()
  local ok, err = pcall(WAYS[way])
  local wrong
  if not ok then
    err = tostring(err)
    if not err:find(target, 1, true) then wrong = "does not name the file" end
    if err:find("lua/mascon/", 1, true) or err:find("attempt to", 1, true) then wrong = "fails inside the library" end
  end
  if tools.now() - began > 5 then wrong = "takes more than 5 seconds" end
  if wrong then
    local keep = ("%s/found-%d.h5"):format(os.getenv "FINDINGS" or "/tmp", os.time())
    tools.spill(keep, bytes)
    give_up(("%s %s; the file is kept as %s"):format(way, wrong, keep), err)
  end
  return ok
end

local function resident() -- bytes
  return tonumber(tools.slurp("/proc/self/statm"):match "^%d+ (%d+)") * 4096
end

-- ----------------------------------------------------------------

math.randomseed(seed)
local GROWTH = 64e6 -- bytes of garbage that may wait
local plans, fits, files, loaded = 0, 0, 0, 0
local list = seeds()
local began = tools.now()
repeat
  for _ = 1, 200 do
    plans = plans + 1
    if one_plan() then fits = fits + 1 end
  end
until tools.now() - began > seconds / 2
local start
repeat
  files = files + 1
  if one_file(list) then loaded = loaded + 1 end
  if files == 20 then
    collectgarbage()
    start = resident()
  end
until files >= 40 and tools.now() - began > seconds
collectgarbage()
local grown = resident() - start
tools.remove_folder(folder)
if grown > GROWTH then give_up(("the process has grown by %.0f MB over %d files"):format(grown / 1e6, files)) end
if fits < plans / 50 or fits > plans * 0.98 then
  give_up(("%d of %d plans fit: nothing is tried"):format(fits, plans))
end
if loaded < files / 50 or loaded > files * 0.98 then
  give_up(("%d of %d files load: nothing is tried"):format(loaded, files))
end
print(("planner: %d plans, %d fit; %d files, %d fine; nothing found"):format(plans, fits, files, loaded))
