--- Two sources of one memory: comparisons the executor must make before any copy, and adoption of a
-- source's storage instead of a copy. A part of the load planner (plan.lua); `self` is its builder.
-- Pure Lua, metadata only.

local fit = require("mascon.checkpoint.plan_fit")
local names = require("mascon.checkpoint.plan_names")

local M = {}

local function shape_of(offer) return offer.shape or {} end

-- ---------------------------------------------------------------- comparisons asked of the executor

-- Bits of two stretches that must be equal. Reports at once when the dtypes already differ.
function M.compare(self, entry)
  if entry.a.dtype ~= entry.b.dtype then
    self:fail(entry.code, entry.name, ("%s: they are %s and %s"):format(entry.text,
      tostring(entry.a.dtype), tostring(entry.b.dtype)))
    return
  end
  local list = self.plan.compare
  list[#list + 1] = entry
end

-- Both layouts are there: every wanted expert of the set must equal its slice of the entry `single`.
function M.compare_layouts(self, want, single, set)
  local offer = self.offers[single]
  local wrong = type(fit.packed(shape_of(offer), want, self:range(want), offer.packed and offer.packed.count))
    == "table"
  local per_expert = names.numel(want.shape) / want.packed.count
  if want.packed.role == "scalar" then per_expert = 1 end
  for _, index in ipairs(set.present) do
    local k = set.by[index]
    local member = self.offers[k]
    local name = self:full(want.name)
    local text = ("%s (expert %.0f) and %s differ"):format(names.show(name), index,
      names.show(self.names[k]))
    if wrong or offer.problem or member.problem or
      type(fit.member(shape_of(member), want)) == "table" then
      self:fail("conflict", name, text .. (": their shapes are %s and %s"):format(
        names.shape(shape_of(offer)), names.shape(shape_of(member))))
    else
      M.compare(self, { code = "conflict", name = name, text = text, expert = index, count = per_expert,
        a = offer, a_first = want.packed.role == "scalar" and 0 or index * per_expert,
        a_name = self.names[single], b = member, b_first = 0, b_name = self.names[k] })
    end
  end
end

-- A tied parameter under two names: where its two sources are distinct entries, their bits must agree.
function M.compare_tied(self, want, copies, served)
  local i, j, first, total = 1, 1, 0, names.numel(want.shape)
  local a, b = served.copies, copies
  local name = self:full(want.name)
  local text = ("%s and %s are one tied parameter, but the values"):format(
    names.show(self:full(served.want.name)), names.show(name))
  while first < total and a[i] and b[j] do
    local x, y = a[i], b[j]
    local last = math.min(x.want_first + x.count, y.want_first + y.count)
    local same = x.offer == y.offer or (x.offer.id ~= nil and x.offer.id == y.offer.id)
    local x_first, y_first = x.offer_first + first - x.want_first, y.offer_first + first - y.want_first
    if not (same and x_first == y_first) and x.value == nil and y.value == nil then
      M.compare(self, { code = "conflict", name = name, count = last - first,
        text = ("%s of %s and %s differ"):format(text, names.show(x.name), names.show(y.name)),
        a = x.offer, a_first = x_first, a_name = x.name, b = y.offer, b_first = y_first,
        b_name = y.name })
    end
    first = last
    if x.want_first + x.count == last then i = i + 1 end
    if y.want_first + y.count == last then j = j + 1 end
  end
end

-- ---------------------------------------------------------------- adoption of storage

-- Why these copies cannot be one adoption of the source's storage; nil when they can.
local function adoption_obstacle(self, want, copies)
  local first = copies[1].offer
  if first.storage == nil then return "the source is not a tensor in memory" end
  local at = 0
  for _, copy in ipairs(copies) do
    local offer = copy.offer
    if offer.obstacle then return offer.obstacle end
    if copy.cast then return ("its dtype is %s, wanted %s"):format(copy.cast.from, copy.cast.to) end
    if offer.device ~= want.device then
      return ("it is on %s, wanted %s"):format(tostring(offer.device), tostring(want.device))
    end
    if offer.contiguous == false then return "it is not contiguous" end
    if offer.aligned == false then return "it is not aligned" end
    if offer.storage ~= first.storage then return "its experts lie in separate storages" end
    if copy.want_first ~= at or (offer.storage_first or 0) ~= at then
      return "it is a part of a larger storage, or out of order"
    end
    at = at + copy.count
  end
  if at ~= names.numel(want.shape) or first.storage_numel ~= at then
    return "it is a part of a larger storage"
  end
  if self.adopted[first.storage] then
    return ("%s has already adopted its storage"):format(names.show(self.adopted[first.storage]))
  end
  return nil
end

function M.adopt(self, want, copies)
  if not self.options.assign or names.numel(want.shape) == 0 or copies[1].value ~= nil then
    return copies
  end
  local why = adoption_obstacle(self, want, copies)
  local sources = {}
  for i, copy in ipairs(copies) do sources[i] = copy.name end
  if not why then
    local first = copies[1]
    self.adopted[first.offer.storage] = self:full(want.name)
    return { { want = want, want_first = 0, count = names.numel(want.shape), offer = first.offer,
      offer_first = 0, name = first.name, names = sources, adopt = true, reshape = first.reshape } }
  end
  local text = ("%s: %s"):format(names.fold(sources)[1].text, why)
  if self.options.assign == "strict" then
    self:fail("adopt", self:full(want.name), text .. '; copying is forbidden by assign = "strict"')
  else
    self:warn(text .. "; copied, not adopted")
  end
  return copies
end

return M
