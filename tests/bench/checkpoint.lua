--- checkpoint.lua: checkpoints beside plain system calls on as many bytes.
--
--   scripts/mascon tests/bench/checkpoint.lua [folder] [MiB] [datasets]
--
-- One line per case, the median of some rounds in which case and peers alternate. A save ends when its bytes are on
-- the disk. The peers are tests/bench/raw.c and `cp`. The full run has 4096 MiB and 44000 datasets.
local system = require "system"
local mc = require "mascon"
local execute = require "mascon.checkpoint.execute"

local folder = arg[1] or os.getenv "TMPDIR" or "/tmp"
local size = tonumber(arg[2]) or 256
local datasets = tonumber(arg[3]) or 4400
local build = os.getenv "MASCON_BUILD_DIR" or "build"
local raw = build .. "/bench/bench_raw"
local stem = ("%s/mascon-bench-%d"):format(folder, math.floor(system.gettime() * 1e3))
local ROUNDS = 5
local THREADS = tonumber(os.getenv "MASCON_NUM_THREADS") or mc.get_num_threads()
local WRITERS = math.max(4, math.min(7, THREADS)) -- as bench_bytes: what the core takes on so many cores

-- ---------------------------------------------------------------- measuring

local function median(list)
  table.sort(list)
  return list[math.floor((#list + 1) / 2)]
end

local function seconds(fn)
  collectgarbage()
  local start = system.monotime()
  fn()
  return system.monotime() - start
end

local function shell(...)
  assert(os.execute((...):format(select(2, ...))) == 0, "a shell command failed")
end

-- Seconds that bench_raw says its work took.
local function bench_raw(...)
  local pipe = assert(io.popen(("'%s' %s"):format(raw, (...):format(select(2, ...)))))
  local text = pipe:read "*a"
  pipe:close()
  local took = tonumber(text)
  assert(took, "bench_raw failed; build it with: cmake --build build --target bench")
  return took
end

-- Rounds of all cases, one after the other in each round: {name = median seconds}.
local function race(rounds, cases)
  local times = {}
  for _ = 1, rounds do
    for _, case in ipairs(cases) do
      local name, fn = case[1], case[2]
      times[name] = times[name] or {}
      table.insert(times[name], fn())
    end
  end
  for name, list in pairs(times) do times[name] = median(list) end
  return times
end

local function line(what, ...) print(("checkpoint %-46s %s"):format(what, (...):format(select(2, ...)))) end

-- A line of /proc/self/status, in bytes.
local function status(name)
  for text in io.lines "/proc/self/status" do
    local kib = text:match("^" .. name .. ":%s*(%d+) kB")
    if kib then return tonumber(kib) * 1024 end
  end
end

-- Bytes by which fn made the process grow at most.
local function growth(fn)
  collectgarbage()
  local clear = assert(io.open("/proc/self/clear_refs", "w"))
  clear:write "5\n"
  clear:close()
  local before = status "VmRSS"
  fn()
  return status "VmHWM" - before
end

local function bytes_of(path)
  local file = assert(io.open(path))
  local n = file:seek "end"
  file:close()
  return n
end

-- ---------------------------------------------------------------- models

-- `layers` layers of `experts` experts of [out, 1024] floats.
local function new_model(layers, experts, out, width)
  local list = {}
  for i = 1, layers do
    list[i] = mc.nn.GroupedLinear { num_gemms = experts, in_features = width or 1024, out_features = out, bias = false,
      init_method = function(t) t:normal_() end }
  end
  return mc.nn.ModuleList(list)
end

local function set_layout(model, layout)
  for _, layer in model:each() do layer:set_layout { weight = layout } end
end

-- ---------------------------------------------------------------- saving

local model = new_model(16, 64, math.max(1, math.floor(size * 2 ^ 20 / (16 * 64 * 1024 * 4))))
local bytes = 0
for _, p in ipairs(model:parameters()) do bytes = bytes + p:numel() * 4 end
local per_expert, single, copy, plain = stem .. "-e.h5", stem .. "-s.h5", stem .. "-c.h5", stem .. ".bin"
print(("checkpoint: %.2f GB in 1,024 tensors, %d threads, in %s"):format(bytes / 1e9, THREADS, folder))

local function save(path, layout, opts)
  set_layout(model, layout)
  return seconds(function() mc.save(path, { model = model:state_dict() }, opts) end)
end

local t = race(ROUNDS, {
  { "write", function() return bench_raw("write '%s' %.0f", plain, bytes) end },
  { "direct", function()
    os.remove(plain)
    return bench_raw("direct '%s' %.0f %d", plain, bytes, WRITERS)
  end },
  { "per_expert", function() os.remove(plain) os.remove(per_expert) return save(per_expert, "per_expert") end },
  { "single", function() os.remove(single) return save(single, "single") end },
})
os.remove(plain)
line("raw write + fsync, 1 thread", "%6.0f MB/s", bytes / t.write / 1e6)
line(("raw O_DIRECT, %d threads"):format(WRITERS), "%6.0f MB/s", bytes / t.direct / 1e6)
for _, layout in ipairs { "per_expert", "single" } do
  line("durable save, " .. layout, "%6.0f MB/s, %.2f of raw write + fsync, %.2f of raw O_DIRECT",
    bytes / t[layout] / 1e6, t.write / t[layout], t.direct / t[layout])
end

-- ---------------------------------------------------------------- loading

local phase
local copy_phase = execute.copy
execute.copy = function(...)
  local args = { n = select("#", ...), ... }
  phase = seconds(function() copy_phase(unpack(args, 1, args.n)) end)
end

-- {payload, total} seconds of a load.
local payload = {}
local function load(path, layout, cold)
  set_layout(model, layout)
  if cold then bench_raw("drop '%s'", path) end
  local total = seconds(function() mc.checkpoint.load_into(path, { model = model }) end)
  local name = ("%s %s %s"):format(path, layout, tostring(cold))
  payload[name] = payload[name] or {}
  table.insert(payload[name], phase)
  return total
end

for _, cold in ipairs { false, true } do
  local cases, files = {}, { per_expert = per_expert, single = single }
  for _, from in ipairs { "per_expert", "single" } do
    cases[#cases + 1] = { from, function()
      if cold then bench_raw("drop '%s'", files[from]) end
      return bench_raw("read '%s' %d", files[from], THREADS)
    end }
    for _, into in ipairs { "per_expert", "single" } do
      cases[#cases + 1] = { from .. " -> " .. into, function() return load(files[from], into, cold) end }
    end
  end
  for _, case in ipairs(cases) do case[2]() end
  for name in pairs(payload) do payload[name] = nil end
  local times = race(ROUNDS, cases)
  local how = cold and "not in the page cache" or "in the page cache"
  for _, case in ipairs(cases) do
    local from, into = case[1]:match "^(%S+) %-> (%S+)$"
    local total, peer = times[case[1]], times[from or case[1]]
    if not from then
      line(("raw read of %s, %d threads, %s"):format(case[1], THREADS, how), "%6.0f MB/s", bytes / peer / 1e6)
    else
      local p = median(payload[("%s %s %s"):format(files[from], into, tostring(cold))])
      line("load " .. case[1], "%6.0f MB/s payload, %.2f of raw; %6.0f MB/s in all, %.2f", bytes / p / 1e6,
        peer / p, bytes / total / 1e6, peer / total)
    end
  end
end
set_layout(model, "single")
line("peak extra memory of a load, across", "%6.1f MiB",
  growth(function() mc.checkpoint.load_into(per_expert, { model = model }) end) / 2 ^ 20)

-- ---------------------------------------------------------------- converting

local c = race(3, {
  { "cp", function()
    os.remove(copy)
    return seconds(function() shell("cp '%s' '%s'", per_expert, copy) end)
  end },
  { "synced", function()
    os.remove(copy)
    return seconds(function() shell("cp '%s' '%s' && sync '%s'", per_expert, copy, copy) end)
  end },
  { "convert", function()
    os.remove(copy)
    return seconds(function() mc.checkpoint.convert(per_expert, copy, { layout = "single" }) end)
  end },
})
line("cp; cp and sync", "%6.0f MB/s; %6.0f MB/s", bytes / c.cp / 1e6, bytes / c.synced / 1e6)
line("convert per_expert -> single, durable", "%6.0f MB/s, %.2f of cp, %.2f of cp and sync", bytes / c.convert / 1e6,
  c.cp / c.convert, c.synced / c.convert)
os.remove(copy)
line("peak extra memory of a conversion", "%6.1f MiB",
  growth(function() mc.checkpoint.convert(per_expert, copy, { layout = "single" }) end) / 2 ^ 20)
for _, path in ipairs { per_expert, single, copy } do os.remove(path) end
model = nil -- luacheck: ignore 311
collectgarbage()

-- ---------------------------------------------------------------- views

local small = new_model(1, 64, 256)
for _, layout in ipairs { "per_expert", "single" } do
  set_layout(small, layout)
  local function one(views)
    os.remove(copy)
    return seconds(function() mc.save(copy, { model = small:state_dict() }, { views = views }) end)
  end
  one(false)
  local with, without
  local v = race(11, {
    { "without", function() local s = one(false) without = bytes_of(copy) return s end },
    { "with", function() local s = one(true) with = bytes_of(copy) return s end },
  })
  line("views, 64 experts of 1 MiB, stored " .. layout, "%5.1f ms without, %5.1f ms with: %+.1f %%, size %+.2f %%",
    v.without * 1e3, v.with * 1e3, (v.with / v.without - 1) * 100, (with / without - 1) * 100)
end
os.remove(copy)

-- ---------------------------------------------------------------- many datasets

local layers = math.max(1, math.floor(datasets / 256))
local many = new_model(layers, 256, 8, 64)
local many_bytes = 0
for _, p in ipairs(many:parameters()) do many_bytes = many_bytes + p:numel() * 4 end
local mascon = arg[0]:gsub("tests/bench/[^/]*$", "") .. "scripts/mascon"
for _, layout in ipairs { "per_expert", "single" } do
  set_layout(many, layout)
  local count = layout == "single" and layers or layers * 256
  local m = race(3, {
    { "save", function()
      os.remove(copy)
      return seconds(function() mc.save(copy, { model = many:state_dict() }) end)
    end },
    { "plan", function() return seconds(function() assert(mc.checkpoint.plan(copy, { model = many }).ok) end) end },
    { "load", function() return seconds(function() mc.checkpoint.load_into(copy, { model = many }) end) end },
    { "inspect", function() return seconds(function() shell("'%s' inspect '%s' >/dev/null", mascon, copy) end) end },
  })
  line(("%d datasets of %.1f MB in all"):format(count, many_bytes / 1e6),
    "save %.3f s, scan and plan %.3f s, load %.3f s, `mascon inspect` %.3f s", m.save, m.plan, m.load, m.inspect)
end
os.remove(copy)
