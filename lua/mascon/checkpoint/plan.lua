--- The load planner: what a module wants against what a source offers, names and shapes only.
--
--   plan.make(wants, offers, options) -> plan
--
-- A pure function: no payload is read, nothing is written, no argument is changed. The result is
-- either a list of copies (destination slice <- source slice, transform) or the list of all errors.
-- This is the only place that knows that a grouped layer has two layouts: `weight` [G, N, K] in one
-- entry, or `weight0` .. `weight{G-1}` [N, K] in an entry each. A want is always the packed memory
-- under its single-layout name, so the module's own layout changes only which source wins when both
-- are complete, and the names that are reported.
-- Rules: DESIGN.md idea 2; the numbers L1.. in the specs are those of the load rules.

local experts = require("mascon.checkpoint.plan_experts")
local fit = require("mascon.checkpoint.plan_fit")
local names = require("mascon.checkpoint.plan_names")
local Plan = require("mascon.checkpoint.plan_report")
local share = require("mascon.checkpoint.plan_share")

local M = {}

local OPTIONS = {
  strict = true, assign = true, verify_duplicates = true, allow_partial_experts = true, prefix = true,
  where = true, absent = true, refuse_narrowing = true, refuse_partial = true,
  allow_mixed_dtypes = true, experts = true, views = true, holder = true,
}

local LOADED, CONVERTED, IGNORED, FAILED = "loaded", "converted", "ignored", "failed"

local Builder = {}
Builder.__index = Builder

-- ---------------------------------------------------------------- notes on the way

function Builder:fail(code, name, text)
  local errors = self.plan.errors
  errors[#errors + 1] = { code = code, name = name, message = text }
end

function Builder:warn(text)
  local warnings = self.plan.warnings
  warnings[#warnings + 1] = text
end

function Builder:full(name) return self.prefix .. name end

function Builder:text(name) return names.show(self.prefix .. name) end

function Builder:members_text(want, list) return names.members(self.prefix .. want.name, list) end

local function mark(outcome, set, list, value)
  for i = 1, #list do outcome[set.by[list[i]]] = value end
end

-- ---------------------------------------------------------------- the index

-- offers by name; members of every stem that is wanted, or known to be absent, by expert number
function Builder:index(wants, offers)
  local list = offers
  if offers[1] == nil then
    local keys = {}
    for name in pairs(offers) do keys[#keys + 1] = name end
    names.sort(keys)
    list = {}
    self.names = {}
    for i, name in ipairs(keys) do list[i], self.names[i] = offers[name], name end
  else
    self.names = {}
    for i = 1, #list do self.names[i] = list[i].name end
  end
  self.offers = list

  local plain, stems = {}, {}
  for _, want in ipairs(wants) do
    if not want.packed then plain[want.name] = true end
    stems[want.name] = true
  end
  for name in pairs(self.options.absent or {}) do stems[name] = true end

  local prefix, by_name, sets, outside = self.prefix, {}, {}, {}
  for k = 1, #list do
    local name = self.names[k]
    if name:sub(1, #prefix) ~= prefix then
      outside[k] = true
    else
      name = name:sub(#prefix + 1)
      if by_name[name] then
        self:fail("conflict", name, self:text(name) .. ": two entries have this name")
      end
      by_name[name] = k
      local stem, index = names.split(name)
      if index and stems[stem] and not plain[name] then
        local set = sets[stem]
        if not set then
          set = { by = {}, list = {}, name = stem }
          sets[stem] = set
        end
        if not set.by[index] then
          set.by[index] = k
          set.list[#set.list + 1] = index
        end
      end
    end
  end
  for _, set in pairs(sets) do table.sort(set.list) end
  self.by_name, self.sets, self.outside, self.stems = by_name, sets, outside, stems
end

-- ---------------------------------------------------------------- one entry against one place

-- Returns the copy of `count` elements from the entry at offer_first into want at want_first, or nil after
-- reporting nothing: the caller groups problems over experts. problems is {code, text}.
function Builder:piece(want, k, want_first, count, offer_first, fitted)
  local offer = self.offers[k]
  if offer.problem then return nil, { { code = "file", text = offer.problem } } end
  local copy = { want = want, want_first = want_first, count = count, offer = offer, offer_first = offer_first,
    name = self.names[k], reshape = fitted == "reshape" }
  if offer.value ~= nil and offer.dtype == nil then
    if names.numel(want.shape) ~= 1 then
      return nil, { { code = "shape", text = ("found a number, wanted %s"):format(names.shape(want.shape)) } }
    end
    local why = fit.number(offer.value, want.dtype)
    if why then return nil, { { code = "dtype", text = why } } end
    copy.value = offer.value
    return copy
  end
  if type(fitted) == "table" then return nil, fitted end
  local how, why = fit.cast(offer.dtype, want.dtype)
  if not how then
    return nil, { { code = "dtype", text = ("found %s, wanted %s: %s"):format(tostring(offer.dtype),
      want.dtype, why) } }
  end
  if how == "narrow" and self.options.refuse_narrowing then
    return nil, { { code = "dtype", text = ("found %s, wanted %s, and narrowing is refused")
      :format(offer.dtype, want.dtype) } }
  end
  if how ~= "same" then
    copy.cast = { from = offer.dtype, to = want.dtype }
    copy.narrow = how == "narrow"
  end
  return copy
end

local function shape_of(offer) return offer.shape or {} end

-- Which experts of the source are those of a packed want.
function Builder:range(want)
  return experts.range(want, self.options.experts, self.options.holder or "module")
end

-- The whole of a want from the entry k. Returns a list of one copy, or nil after reporting.
function Builder:whole(want, k)
  local offer, fitted = self.offers[k], nil
  local count, first = names.numel(want.shape), 0
  if want.packed then
    local range = self:range(want)
    if want.packed.role ~= "scalar" then first = range.first * (count / range.count) end
    if not offer.problem then fitted = fit.packed(shape_of(offer), want, range, offer.packed and offer.packed.count) end
  elseif not offer.problem then
    fitted = fit.plain(shape_of(offer), want.shape)
  end
  local copy, problems = self:piece(want, k, 0, count, first, fitted)
  if copy then return { copy } end
  for _, problem in ipairs(problems) do
    self:fail(problem.code, self.names[k], names.show(self.names[k]) .. ": " .. problem.text)
  end
  self.outcome[k] = FAILED
  return nil
end

-- "float32 {0,2}, bfloat16 {1}" for members whose dtypes differ, else nil.
local function mixed_dtypes(self, set)
  local order, having = {}, {}
  for _, index in ipairs(set.present) do
    local offer = self.offers[set.by[index]]
    local dtype = not offer.problem and offer.dtype -- else reported already, or a plain number
    if dtype then
      if not having[dtype] then
        having[dtype] = {}
        order[#order + 1] = dtype
      end
      table.insert(having[dtype], index)
    end
  end
  if #order < 2 then return nil end
  for i, dtype in ipairs(order) do
    order[i] = ("%s in %s"):format(dtype, names.ranges(having[dtype]))
  end
  return table.concat(order, ", ")
end

-- The experts of `set.present` from an entry each. Returns a list of copies, or nil after reporting.
function Builder:experts(want, set)
  local copies, grouped, order = {}, {}, {}
  local per_expert, range = names.numel(want.shape), self:range(want)
  if want.packed.role ~= "scalar" then per_expert = per_expert / want.packed.count end
  for i, index in ipairs(set.present) do
    local k = set.by[index]
    local offer, fitted = self.offers[k], nil
    if not offer.problem then fitted = fit.member(shape_of(offer), want) end
    local first = want.packed.role == "scalar" and 0 or (index - range.first) * per_expert
    local copy, problems = self:piece(want, k, first, per_expert, 0, fitted)
    copies[i] = copy
    for _, problem in ipairs(problems or {}) do
      local id = problem.code .. problem.text
      if not grouped[id] then
        grouped[id] = { code = problem.code, text = problem.text, list = {} }
        order[#order + 1] = grouped[id]
      end
      table.insert(grouped[id].list, index)
    end
  end
  for _, problem in ipairs(order) do
    self:fail(problem.code, self:full(names.member(want.name, problem.list[1])),
      self:members_text(want, problem.list) .. ": " .. problem.text)
  end
  local mixed = not self.options.allow_mixed_dtypes and mixed_dtypes(self, set)
  if mixed then
    self:fail("dtype", self:full(want.name), ("%s: the experts differ in dtype: %s; wanted one dtype")
      :format(self:members_text(want, set.present), mixed))
  end
  if #order > 0 or mixed then
    mark(self.outcome, set, set.list, FAILED)
    return nil
  end
  return copies
end

-- ---------------------------------------------------------------- one want

-- Enters checked copies of a want into the plan, with their outcome and warnings.
function Builder:accept(want, copies, ks, layout)
  local converted = layout ~= nil and layout ~= want.packed.layout
  local narrow, narrow_from
  for i, copy in ipairs(copies) do
    copy.layout = layout
    self.outcome[ks[i]] = (converted or copy.cast or copy.reshape) and CONVERTED or LOADED
    if copy.narrow then
      narrow = narrow or {}
      narrow[#narrow + 1], narrow_from = copy.name, copy.cast.from
    end
    copy.narrow = nil
  end
  if narrow then
    self:warn(("%s: %s is rounded to %s"):format(names.fold(narrow)[1].text, narrow_from, want.dtype))
  end
  local id = want.id
  local served = id ~= nil and self.served[id]
  if served then
    share.compare_tied(self, want, copies, served)
    return
  end
  if id ~= nil then self.served[id] = { want = want, copies = copies } end
  local list = self.plan.copies
  for _, copy in ipairs(share.adopt(self, want, copies)) do
    copy.layout = layout
    list[#list + 1] = copy
  end
end

function Builder:plain(want)
  local k = self.by_name[want.name]
  if not k then
    self.missing[#self.missing + 1] = want
    return
  end
  local copies = self:whole(want, k)
  if copies then self:accept(want, copies, { k }, nil) end
end

-- Per-expert scalars (an optimizer's step) share one place, so all of them must agree (L27).
function Builder:scalar(want, set, copies)
  local first, demote = copies[1], not self.strict
  local name = self:full(want.name)
  for i = 2, #copies do
    local copy = copies[i]
    local a, b = first.offer, copy.offer
    local text = ("%s: experts must agree, but %s and %s differ"):format(names.show(name),
      names.show(first.name), names.show(copy.name))
    if a.value ~= nil and b.value ~= nil then
      if a.value ~= b.value then
        text = ("%s: %s and %s"):format(text, tostring(a.value), tostring(b.value))
        if not demote then
          self:fail("state", name, text)
        else
          self:warn(text .. "; not loaded")
        end
        mark(self.outcome, set, set.list, demote and IGNORED or FAILED)
        return nil
      end
    else
      share.compare(self, { code = "state", name = name, text = text, count = 1, a = a, a_first = 0,
        a_name = first.name, b = b, b_first = 0, b_name = copy.name, demote = demote or nil,
        copy = first })
    end
  end
  return { first }
end

-- All experts of a want from an entry each; `set` may be partial. Those outside the want's range are left alone.
function Builder:from_experts(want, set)
  local copies = self:experts(want, set)
  if not copies then return end
  mark(self.outcome, set, set.list, IGNORED)
  if #copies == 0 then return end
  local ks = {}
  for i, index in ipairs(set.present) do ks[i] = set.by[index] end
  if want.packed.role == "scalar" then
    local all = copies
    copies = self:scalar(want, set, all)
    if not copies then return end
    for i = 2, #all do self.outcome[ks[i]] = want.packed.layout == "single" and CONVERTED or LOADED end
  end
  self:accept(want, copies, ks, "per_expert")
end

-- Another number of experts than is wanted: never demoted, whichever layout would have won (L8, L9).
function Builder:count(want, set)
  local count = set.highest == math.huge and "more than 10^15" or ("%.0f"):format(set.highest)
  local listed = {}
  for i, index in ipairs(set.list) do
    if index ~= math.huge then listed[i] = index end
  end
  local text = #listed > 0 and self:members_text(want, listed) or self:text(want.name)
  local holes = #set.missing > 0 and ", missing " .. names.ranges(set.missing) or ""
  self:fail("count", self:full(want.name), ("%s: %s experts in the checkpoint%s, %s"):format(text, count, holes,
    experts.wanted(self:range(want))))
  mark(self.outcome, set, set.list, FAILED)
end

-- The names of a set for people: those that are wanted, where there are any.
function Builder:set_text(want, set)
  return self:members_text(want, #set.present > 0 and set.present or set.list)
end

function Builder:partial(want, set)
  local range = self:range(want)
  local message = range.partly and ("%s: only %d of the %s are in the checkpoint, missing %s"):format(
    self:set_text(want, set), #set.present, experts.text(range), names.ranges(set.missing))
    or ("%s: only %d of %.0f experts are in the checkpoint, missing %s"):format(self:set_text(want, set),
    #set.present, range.count, names.ranges(set.missing))
  local list = self.plan.missing
  self.plan.complete = false
  for _, index in ipairs(set.missing) do
    list[#list + 1] = self:full(names.member(want.name, index))
  end
  if self.options.allow_partial_experts and want.packed.role ~= "scalar" then
    self:warn(message .. "; those keep their values")
    self:from_experts(want, set)
  else
    self:fail("partial", self:full(want.name), message)
    self:experts(want, set) -- what is wrong with those that are there
    mark(self.outcome, set, set.list, FAILED)
  end
end

-- Both layouts are in the source: the module's own wins when it is complete (L4, L5, L6).
function Builder:both(want, single, set)
  local own_is_single = want.packed.layout == "single"
  local use_single = own_is_single or not set.complete
  local single_text, set_text, holes = self:text(want.name), self:set_text(want, set), experts.holes(set)
  if not set.complete and self.options.refuse_partial then
    self:fail("partial", self:full(want.name), ("%s and %s%s are both in the checkpoint")
      :format(single_text, set_text, holes))
    mark(self.outcome, set, set.list, FAILED)
    self.outcome[single] = FAILED
    return
  end
  self:warn(("%s and %s%s are both in the checkpoint: %s is used, %s ignored"):format(single_text,
    set_text, holes, use_single and single_text or set_text, use_single and set_text or single_text))
  if self.options.verify_duplicates then share.compare_layouts(self, want, single, set) end
  if use_single then
    mark(self.outcome, set, set.list, IGNORED)
    self:from_single(want, single)
  else
    self.outcome[single] = IGNORED
    -- an ignored entry with another number of experts is no second copy of this layer
    local offer = self.offers[single]
    local fitted = not offer.problem and fit.packed(shape_of(offer), want, self:range(want),
      offer.packed and offer.packed.count)
    for _, problem in ipairs(type(fitted) == "table" and fitted or {}) do
      if problem.code == "count" then
        self:fail("count", self.names[single], names.show(self.names[single]) .. ": " .. problem.text)
      end
    end
    self:from_experts(want, set)
  end
end

function Builder:from_single(want, single)
  local copies = self:whole(want, single)
  if copies then self:accept(want, copies, { single }, "single") end
end

function Builder:packed(want)
  local single, found = self.by_name[want.name], self.sets[want.name]
  local set = found and experts.survey(found, self:range(want))
  if set and #set.surplus > 0 then
    self:count(want, set)
    if #set.present > 0 then self:experts(want, set) end
    if single and self:whole(want, single) then self.outcome[single] = FAILED end
  elseif single and set then
    self:both(want, single, set)
  elseif single then
    self:from_single(want, single)
  elseif not set then
    self.missing[#self.missing + 1] = want
  elseif set.complete then
    self:from_experts(want, set)
  elseif #set.missing > 0 then
    self:partial(want, set)
  elseif self.options.allow_partial_experts then -- this range is there, others may lie in other files
    self:from_experts(want, set)
  else
    self:count(want, set)
  end
end

-- ---------------------------------------------------------------- what is left over

-- Whether the source has a view of a want under any of its names.
local function has_view(self, want)
  local views, name = self.options.views or {}, self:full(want.name)
  if not want.packed then return views[name] end
  for _, index in ipairs(experts.list(self:range(want))) do
    if views[names.member(name, index)] then return true end
  end
  return views[name]
end

local function missing_hint(self, want)
  if has_view(self, want) then
    return "there is a view of that name, but views are not read: what it shows lies in other datasets"
  end
  if want.packed then
    return want.packed.role == "bias" and "the module was built with bias = true" or nil
  end
  local set = self.sets[want.name]
  if set then
    return ("the checkpoint has %s, a grouped layer"):format(names.members(self:full(want.name), set.list))
  end
  return nil
end

function Builder:report_missing()
  local list = self.plan.missing
  for _, want in ipairs(self.missing) do
    -- a tied parameter that was found under its other name is not missing
    if want.id == nil or not self.served[want.id] then
      local text = self:text(want.name)
      if not want.optional then self.plan.complete = false end
      if want.packed and want.packed.layout == "per_expert" then
        local all = experts.list(self:range(want))
        for _, index in ipairs(all) do list[#list + 1] = self:full(names.member(want.name, index)) end
        text = self:members_text(want, all)
      else
        list[#list + 1] = self:full(want.name)
      end
      if self.strict and not want.optional then
        local hint = missing_hint(self, want)
        self:fail("missing", self:full(want.name), ("%s: not in the checkpoint%s"):format(text,
          hint and "; " .. hint or ""))
      end
    end
  end
end

local function unexpected_hint(self, name)
  local bare = name:sub(#self.prefix + 1)
  local absent = self.options.absent or {}
  local stem, index, digits = names.split(bare)
  local reason = absent[bare] or (index and absent[stem])
  if reason then return ("the module was built with %s"):format(reason) end
  if stem and not index and self.stems[stem] then
    return ("%s is no expert number: those have no leading zeros"):format(digits)
  end
  return nil
end

function Builder:report_unexpected()
  local plan, unexpected = self.plan, {}
  for k = 1, #self.offers do
    local outcome = self.outcome[k]
    if outcome == nil and not self.outside[k] then
      unexpected[#unexpected + 1] = self.names[k]
    elseif outcome ~= nil and outcome ~= FAILED then
      local list = plan[outcome]
      list[#list + 1] = self.names[k]
    end
  end
  plan.unexpected = unexpected
  if not self.strict then return end
  for _, group in ipairs(names.fold(unexpected)) do
    local hint = unexpected_hint(self, group.names[1])
    self:fail("unexpected", group.names[1], ("%s: not in the module%s"):format(group.text,
      hint and "; " .. hint or ""))
  end
end

-- ---------------------------------------------------------------- the function

local function check_want(want)
  local packed = want.packed
  if not packed then return end
  local role, layout = packed.role, packed.layout
  assert(role == "weight" or role == "bias" or role == "scalar", "plan: unknown role of a packed want")
  assert(layout == "single" or layout == "per_expert", "plan: unknown layout of a packed want")
  assert(not want.name:find("%d$"), "plan: the name of a packed want must not end in a digit")
  assert(role == "scalar" and names.numel(want.shape) == 1 or want.shape[1] == packed.count,
    "plan: the first size of a packed want must be its count")
end

--- Plans a load.
-- @tparam {table,...} wants in order, each {name=, shape=, dtype=, device=|nil, optional=|nil, id=|nil,
--   packed = {count=, role = "weight" | "bias" | "scalar", layout = "single" | "per_expert"} or nil};
--   other fields are kept. Equal ids are one tied parameter.
-- @tparam table offers a list of {name=, shape=, dtype=}, or a map name -> {shape=, dtype=}. Optional:
--   value (a number instead of a payload), problem (why it cannot be read), id (equal for one object
--   under two names), packed = {count=} (declares a 2-D [G * N, K] weight), device, storage,
--   storage_first, storage_numel, contiguous, aligned, obstacle (why it cannot be adopted) for assign.
-- @tparam table|nil options strict = true, assign = false | true | "strict", verify_duplicates,
--   allow_partial_experts, refuse_partial, refuse_narrowing, allow_mixed_dtypes, prefix (only entries
--   whose name starts with it take part), where (first word of the error text), absent (name ->
--   reason: parameters the module was built without), experts = {first, count, total} (the part of an
--   expert-parallel rank, plan_experts.lua; the source's names outside it are `ignored`), views (name -> true:
--   virtual datasets, which are never read), holder = "module" (what messages call the wants' owner).
-- @treturn Plan {ok, copies, compare, errors = {{code, name, message}, ...}, warnings, loaded,
--   converted, ignored, missing, unexpected, error_text}. Of the names in the source each is in one
--   of loaded (as it is), converted (layout, dtype or bracketing changed), ignored, unexpected; `missing`
--   has names of the module in its own layout, and `complete` tells whether all but optional wants have a source.
--   `compare` lists stretches whose bits must be equal: the
--   executor checks them before any copy and tells plan:differs(entry, element).
function M.make(wants, offers, options)
  options = options or {}
  for key in pairs(options) do
    if not OPTIONS[key] then error(("plan: unknown option '%s'"):format(tostring(key)), 2) end
  end
  local why = options.experts and experts.problem(options.experts)
  if why then error("plan: experts: " .. why, 2) end
  local plan = setmetatable({
    where = options.where or "checkpoint", copies = {}, compare = {}, errors = {}, warnings = {},
    loaded = {}, converted = {}, ignored = {}, missing = {}, unexpected = {}, complete = true,
    experts = options.experts,
  }, Plan)
  local builder = setmetatable({
    plan = plan, options = options, strict = options.strict ~= false, prefix = options.prefix or "",
    outcome = {}, missing = {}, served = {}, adopted = {},
  }, Builder)
  builder:index(wants, offers)
  local unused = options.experts and experts.unused(wants, options.experts)
  if unused then builder:fail("count", "experts", unused) end
  for _, want in ipairs(wants) do
    check_want(want)
    if want.packed then builder:packed(want) else builder:plain(want) end
  end
  builder:report_missing()
  builder:report_unexpected()
  return plan:refresh()
end

return M
