--- mc.cuda: what CUDA devices have beyond what all devices have: facts, memory statistics, graphs.
--
--     local step = mc.cuda.graph(function() return train_one_step(x, y) end, {warmup = 1})
--     for i = 1, steps do
--       x:copy_(batch.x)            -- the graph reads the same tensors at each replay
--       y:copy_(batch.y)
--       step:replay()
--     end
--     print(step.outputs[1]:item()) -- what the function returned, as the last replay left it
local ffi = require "ffi"
local args = require "mascon.args"
local class = require "mascon.class"
local lib = require "mascon.lib"
local memory = require "mascon.memory"
local random = require "mascon.random"
local tensor = require "mascon.tensor"

local C, check = lib.C, lib.check

local M = {}

local count = ffi.new "int[1]"
--- Number of CUDA devices; 0 where the plugin or a driver is missing.
function M.device_count()
  check(C.mc_device_count("cuda", count))
  return count[0]
end
function M.is_available() return M.device_count() > 0 end

local function device_of(what, device)
  return tensor.parse_device(what, device or "cuda")
end

--- Waits for all work of a device (default "cuda"). Raises what a kernel has found wrong with ids or splits since the
-- last time that a value was read.
function M.synchronize(device)
  check(C.mc_device_synchronize(device_of("synchronize", device)))
end

local FACTS = { "name", "capability", "driver", "runtime", "blas", "attention" }

--- Facts of a device (default "cuda"): {name, capability, driver, runtime, blas, attention}, strings.
function M.info(device)
  local code, facts = device_of("info", device), {}
  for _, key in ipairs(FACTS) do
    local text = C.mc_device_info(code, key)
    if text ~= nil then facts[key] = ffi.string(text) end
  end
  return facts
end

local stats = ffi.new "mc_device_memory_stats"
local sizes = ffi.new "int64_t[2]"

--- Memory of a device (default "cuda"), in bytes: live_bytes held by tensors, peak_bytes (since
-- mc.reset_peak_memory()), cached_bytes kept for reuse, graph_bytes of live graphs, free_bytes and total_bytes of the
-- device; allocations so far, and device_allocations, those that the cache could not serve.
function M.memory_stats(device)
  local code = device_of("memory_stats", device)
  check(C.mc_memory_device_stats(code, stats))
  check(C.mc_device_memory(code, sizes, sizes + 1))
  return {
    live_bytes = tonumber(stats.live_bytes), peak_bytes = tonumber(stats.peak_bytes),
    cached_bytes = tonumber(stats.cached_bytes), graph_bytes = tonumber(stats.graph_bytes),
    allocations = tonumber(stats.allocations), device_allocations = tonumber(stats.device_allocations),
    free_bytes = tonumber(sizes[0]), total_bytes = tonumber(sizes[1]),
  }
end

local PROFILE_ROWS = 256
local row_count = ffi.new "int64_t[1]"

--- mc.cuda.profile(fn, device): runs fn() and times every op on the device (default "cuda"). Returns a list of
-- {op =, calls =, seconds =, share =}, longest first, whose tostring is a table to print; replays of graphs are not
-- seen.
function M.profile(fn, device)
  args.callable("profile", fn)
  local code = device_of("profile", device)
  local rows = ffi.new("mc_profile_row[?]", PROFILE_ROWS)
  check(C.mc_profile_begin(code))
  local ok, err = pcall(fn)
  local status = C.mc_profile_end(code, rows, PROFILE_ROWS, row_count)
  if not ok then error(err, 0) end
  check(status)
  local list, total = {}, 0
  for i = 1, tonumber(row_count[0]) do
    local row = rows[i - 1]
    list[i] = { op = ffi.string(row.op), calls = tonumber(row.calls), seconds = row.seconds }
    total = total + row.seconds
  end
  for _, row in ipairs(list) do row.share = total > 0 and row.seconds / total or 0 end
  return setmetatable(list, { __tostring = function()
    local lines = { ("%-28s %8s %12s %7s"):format("op", "calls", "ms", "share") }
    for _, row in ipairs(list) do
      lines[#lines + 1] = ("%-28s %8d %12.3f %6.1f%%"):format(row.op, row.calls, 1e3 * row.seconds, 100 * row.share)
    end
    return table.concat(lines, "\n")
  end })
end

-- -- graphs ------------------------------------------------------------------------------------------

local Graph = class.class "Graph"

local spec = { device = { "string", "cuda" }, warmup = { "natural", 0 } }

local function pack(ok, ...)
  return ok, { n = select("#", ...), ... }
end

-- As pcall(fn), but a function that yields is given up: what others did until it goes on would be recorded.
local function run(fn)
  if not coroutine.running() then return pack(pcall(fn)) end
  local co = coroutine.create(function() return fn() end)
  local ok, results = pack(coroutine.resume(co))
  if coroutine.status(co) == "dead" then return ok, results end
  return false, { args.user_line() .. ": graph: the function yields while it is recorded" }
end

--- mc.cuda.graph(fn, {warmup = 0, device = "cuda"}): records the device's work of one call fn() without running it;
-- g:replay() then runs all of it for the cost of one launch. fn is first called `warmup` times for real: an optimizer
-- must have made its state before it is recorded. What fn returns is g.outputs, filled by each replay. fn may not read
-- values (item, totable, printing) nor bring host values in (mc.tensor, splits as tables): it raises then.
function M.graph(fn, opts)
  args.callable("graph", fn)
  local o = args.options("graph", opts, spec)
  local device = device_of("graph", o.device)
  for _ = 1, o.warmup do fn() end
  random.generator(device) -- its seed is a value of the host
  memory.collect()
  check(C.mc_graph_begin(device))
  local ok, results = run(fn)
  if not ok then
    C.mc_graph_abort(device)
    error(results[1], 0)
  end
  local handle = ffi.new "mc_graph *[1]"
  check(C.mc_graph_end(handle, device))
  local self = setmetatable({}, Graph)
  self.handle = ffi.gc(handle[0], C.mc_graph_free)
  self.outputs = memory.keep(results)
  return self
end

local function handle_of(what, g)
  if not g.handle then args.raise(("graph: %s: it was freed"):format(what)) end
  return g.handle
end

--- Runs the recorded work once, after what was given to the device before. Returns the outputs.
function Graph:replay()
  check(C.mc_graph_replay(handle_of("replay", self)))
  return unpack(self.outputs, 1, self.outputs.n)
end

--- Waits for the last replay and gives the graph's memory back; the outputs stay valid.
function Graph:free()
  C.mc_graph_free(ffi.gc(handle_of("free", self), nil))
  self.handle = nil
end

return M
