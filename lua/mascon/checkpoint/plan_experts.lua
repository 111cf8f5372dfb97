--- Which experts of a source are a layer's: all of them, or the range that one rank of an expert-parallel run
-- holds (rule L29). A part of the load planner (plan.lua). Pure Lua, metadata only.
--
-- A range is {first, count, total}: the layer's experts 0 .. count-1 are experts first .. first+count-1 of the
-- source, which has `total`. Numbers in names, texts and sets are the source's. A range is meant for every packed
-- want of exactly `count` experts; layers of other counts are planned as without it.

local names = require("mascon.checkpoint.plan_names")

local M = {}

--- Why a table is no range, or nil.
function M.problem(experts)
  for _, key in ipairs { "first", "count", "total" } do
    local v = experts[key]
    if type(v) ~= "number" or v ~= math.floor(v) or v < (key == "first" and 0 or 1) or v > 2 ^ 53 then
      return ("%s is %s, wanted an integer of %d or more"):format(key, tostring(v), key == "first" and 0 or 1)
    end
  end
  if experts.first + experts.count > experts.total then
    return ("first = %.0f and count = %.0f go beyond total = %.0f"):format(experts.first, experts.count,
      experts.total)
  end
  return nil
end

--- The range of a want.
-- @tparam string holder what the want is a part of, for people: "module"
-- @treturn table {first, count, total, holder, partly = whether the source has experts outside it}
function M.range(want, experts, holder)
  local count = want.packed.count
  if experts and experts.count == count then
    return { first = experts.first, count = count, total = experts.total, partly = experts.total ~= count,
      holder = holder }
  end
  return { first = 0, count = count, total = count, partly = false, holder = holder }
end

--- "experts 8-15 of 64"
function M.text(range)
  local last = range.first + range.count - 1
  local span = range.count == 1 and "expert %.0f" or "experts %.0f-%.0f"
  return span:format(range.first, last) .. (" of %.0f"):format(range.total)
end

--- The numbers of a range, in order.
function M.list(range)
  local list = {}
  for i = 1, range.count do list[i] = range.first + i - 1 end
  return list
end

--- What a set of members is to a range of experts.
-- @tparam table set {by = {number = entry}, list = sorted numbers}
-- @treturn table by, list, and lists of numbers: present and missing (inside the range), surplus (beyond the
--   total); highest = the number of experts the names tell of; short = whether that is less than the total;
--   complete = nothing is missing or short
function M.survey(set, range)
  local first, last = range.first, range.first + range.count - 1
  local present, missing, surplus = {}, {}, {}
  for _, index in ipairs(set.list) do
    if index >= range.total then
      surplus[#surplus + 1] = index
    elseif index >= first and index <= last then
      present[#present + 1] = index
    end
  end
  for index = first, last do
    if not set.by[index] then missing[#missing + 1] = index end
  end
  local highest = set.list[#set.list] + 1
  local short = range.partly and highest < range.total
  return { by = set.by, list = set.list, present = present, missing = missing, surplus = surplus, highest = highest,
    short = short, complete = #missing == 0 and not short }
end

--- " (incomplete, missing 3,4)" for a set that is not complete.
function M.holes(set)
  if set.complete then return "" end
  if #set.missing == 0 then return (" (incomplete, the last is expert %.0f)"):format(set.highest - 1) end
  return (" (incomplete, missing %s)"):format(names.ranges(set.missing))
end

--- "64 in the module", or "64 in all by the option experts": what a count in a source is held against.
function M.wanted(range)
  return range.partly and ("%.0f in all by the option experts"):format(range.total)
    or ("%.0f in the %s"):format(range.count, range.holder)
end

--- What is wrong when a range was given and no want has that many experts: a text, or nil.
function M.unused(wants, experts)
  local counts, order = {}, {}
  for _, want in ipairs(wants) do
    local count = want.packed and want.packed.count
    if count == experts.count then return nil end
    if count and not counts[count] then
      counts[count] = true
      order[#order + 1] = count
    end
  end
  if #order == 0 then return "experts: there is no grouped layer to load them into" end
  table.sort(order)
  for i, count in ipairs(order) do order[i] = ("%.0f"):format(count) end
  return ("experts: count is %.0f, but no grouped layer has that many experts; they have %s"):format(experts.count,
    table.concat(order, ", "))
end

return M
