--- Handles, their pool, and when memory is given back.
--
-- Every tensor has a slot: a C handle made once and reused. `owners` maps slots to tensors and holds them
-- weakly, so after a collection the slots of dead tensors read nil and a sweep releases their handles: no
-- finalizer per tensor. The collector cannot see tensor bytes; the core counts them and raises
-- `pressure` when a soft limit is passed, and the next tensor made then collects.
local lib = require "mascon.lib"
local args = require "mascon.args"
local extent = require "mascon.extent"

local C = lib.C
local M = {}

local FREE = false -- owners[slot] of a slot in the pool
local GROW = 64 -- handles made at a time
local LIMIT_MIN = 64 * 2 ^ 20 -- garbage tolerated beyond the live set, bytes; at least half of it

local handles = {} -- slot -> mc_tensor *
local owners = setmetatable({}, { __mode = "v" }) -- slot -> tensor, FREE, or nil: died
local pool, pooled = {}, 0 -- slots that are free
local slots = 0
local swept -- false after a collection that no sweep has followed yet
local stats = C.mc_memory_stats()
local scope = nil -- the innermost mc.scope: {first = .., n = .., line = ..} or nil

local function grow()
  for _ = 1, GROW do
    local h = C.mc_tensor_new()
    if h == nil then
      if pooled > 0 then return end
      lib.raise_last()
    end
    slots = slots + 1
    handles[slots] = h
    owners[slots] = FREE
    pooled = pooled + 1
    pool[pooled] = slots
  end
end

local function sweep()
  swept = true
  for slot = 1, slots do
    if owners[slot] == nil then
      C.mc_tensor_release(handles[slot])
      owners[slot] = FREE
      pooled = pooled + 1
      pool[pooled] = slot
    end
  end
end

-- A userdata that dies in every cycle tells us that there was one.
local function watch()
  swept = false
  getmetatable(newproxy(true)).__gc = watch
end
watch()
swept = true

--- Collects all garbage and gives its tensors' memory back.
function M.collect()
  collectgarbage()
  sweep()
  local live = tonumber(stats.live_bytes)
  C.mc_memory_set_soft_limit(live + math.max(LIMIT_MIN, live / 2))
end
local collect = M.collect

local function make_room()
  if stats.pressure ~= 0 then
    collect()
  elseif not swept then
    sweep()
  end
  if pooled == 0 then
    grow()
  end
end

--- A tensor with an empty handle, to be the output of a C call. `meta` is the tensor metatable.
-- Fields: h handle, slot, node the tape node that made it or false, rg whether it takes part in gradients.
local meta
local function new()
  if pooled == 0 or not swept or stats.pressure ~= 0 then
    make_room()
  end
  local slot = pool[pooled]
  pooled = pooled - 1
  local t = setmetatable({ h = handles[slot], slot = slot, node = false, rg = false }, meta)
  owners[slot] = t
  if scope then
    scope.n = scope.n + 1
    scope[scope.n] = t
  end
  return t
end
M.new = new

function M.set_metatable(mt)
  meta = mt
end

function M.is_tensor(v)
  return getmetatable(v) == meta
end

--- Gives a tensor's bytes back now; any later use raises and names `who`.
function M.free(t, who)
  local slot = t.slot
  if not slot then return end
  C.mc_tensor_release(t.h)
  t.h, t.slot, t.node, t.freed = nil, nil, false, who
  owners[slot] = FREE
  pooled = pooled + 1
  pool[pooled] = slot
end
local free = M.free

function lib.make_memory()
  collect()
  C.mc_memory_trim()
end

-- -- scopes --------------------------------------------------------------------------------------

-- A scope's list is weak: what becomes garbage inside is given back while it runs, as outside.
local WEAK = { __mode = "v" }

--- Adds every table reachable from `v` to the set `seen`; a loop, since graphs are long chains.
local function mark(v, seen)
  local stack, n = { v }, 1
  while n > 0 do
    local x = stack[n]
    n = n - 1
    if type(x) == "table" and not seen[x] then
      seen[x] = true
      for k, y in pairs(x) do
        if type(k) == "table" then n = n + 1; stack[n] = k end
        if type(y) == "table" then n = n + 1; stack[n] = y end
      end
    end
  end
end

-- Ends a scope; `ok, ...` are pcall's results.
local function leave(mine, ok, ...)
  local outer, seen = scope, {}
  for i = 1, select("#", ...) do
    mark((select(i, ...)), seen)
  end
  local who = "mc.scope at " .. mine.line
  for i = 1, mine.n do
    local t = mine[i]
    if t and (seen[t] or t.kept) then
      if outer then -- the outer scope decides about what this one lets go
        outer.n = outer.n + 1
        outer[outer.n] = t
      end
    elseif t then
      free(t, who)
    end
  end
  if not ok then
    error((...), 0)
  end
  return ...
end

--- Runs fn(...) and frees every tensor made inside, also when it raises, except what it returns (nested
-- tables too, with the graph that made it) and what is owned by a parameter, module or optimizer or was
-- passed to mc.keep. Returns fn's results.
function M.scope(fn, ...)
  args.callable("scope", fn)
  local mine = setmetatable({ n = 0, line = args.user_line() }, WEAK)
  local outer
  local function enter() outer, scope = scope, mine end
  local function exit() scope = outer end
  return leave(mine, extent.run(enter, exit, fn, ...))
end

--- Marks a tensor, or all in a nested table, as kept: no mc.scope frees it. Returns its argument.
function M.keep(v)
  local seen = {}
  mark(v, seen)
  for t in pairs(seen) do
    if getmetatable(t) == meta then
      t.kept = true
    end
  end
  return v
end

--- {live_bytes, peak_bytes, cached_bytes, soft_limit, live_storages, handles}
function M.stats()
  return {
    live_bytes = tonumber(stats.live_bytes), peak_bytes = tonumber(stats.peak_bytes),
    cached_bytes = tonumber(stats.cached_bytes), soft_limit = tonumber(stats.soft_limit),
    live_storages = stats.live_storages, handles = slots,
  }
end

return M
