-- Wants, offers and lists for the specs of the load planner.

local M = {}

M.N, M.K = 3, 5
local N, K = M.N, M.K
M.LAYOUTS = { "single", "per_expert" }

--- A packed weight [G, N, K] wanted under `name`.
local function packed(name, G, layout, shape, extra)
  local want = { name = name, shape = shape or { G, N, K }, dtype = "float32",
    packed = { count = G, role = "weight", layout = layout or "single" } }
  for key, value in pairs(extra or {}) do want[key] = value end
  return want
end
M.packed = packed

--- A packed bias [G, n or N].
local function bias_want(name, G, layout, n)
  return { name = name, shape = { G, n or N }, dtype = "float32",
    packed = { count = G, role = "bias", layout = layout or "single" } }
end
M.bias_want = bias_want

--- One entry of a source.
local function offer(name, shape, extra)
  local entry = { name = name, shape = shape, dtype = "float32" }
  for key, value in pairs(extra or {}) do entry[key] = value end
  return entry
end
M.offer = offer

--- Entries stem0 .. of the experts in `list`.
local function members(stem, list, shape)
  local offers = {}
  for _, i in ipairs(list) do offers[#offers + 1] = offer(stem .. i, shape or { N, K }) end
  return offers
end
M.members = members

local function range(first, last)
  local list = {}
  for i = first, last do list[#list + 1] = i end
  return list
end
M.range = range

local function joined(...)
  local all = {}
  for _, list in ipairs { ... } do
    for _, entry in ipairs(list) do all[#all + 1] = entry end
  end
  return all
end
M.joined = joined

local function copy_deep(value)
  if type(value) ~= "table" then return value end
  local result = {}
  for key, entry in pairs(value) do result[key] = copy_deep(entry) end
  return result
end
M.copy_deep = copy_deep

--- The errors of a plan as they are printed.
local function lines(p)
  local list = {}
  for i, e in ipairs(p.errors) do list[i] = ("[%s] %s"):format(e.code, e.message) end
  return list
end
M.lines = lines

local function names_of(offers)
  local list = {}
  for i, o in ipairs(offers) do list[i] = o.name end
  return list
end
M.names_of = names_of

--- A shuffled copy, the same for the same seed.
local function shuffled(list, seed)
  local result = { unpack(list) }
  for i = #result, 2, -1 do
    seed = (seed * 1103515245 + 12345) % 2147483648
    local j = seed % i + 1
    result[i], result[j] = result[j], result[i]
  end
  return result
end
M.shuffled = shuffled

return M
