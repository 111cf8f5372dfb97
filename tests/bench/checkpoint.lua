--- checkpoint.lua: saving and loading beside the file system itself.
--
--   scripts/mascon tests/bench/checkpoint.lua [folder] [MiB]
--
-- One line per case, MB/s, the best of 3. A save ends when its bytes are on the disk; the peer is `cp` of the same
-- file and `sync` of the copy. Loads read what the page cache holds.
local system = require "system"
local mc = require "mascon"

local folder = arg[1] or os.getenv "TMPDIR" or "/tmp"
local size = tonumber(arg[2]) or 256 -- MiB
local name = ("%s/mascon_bench_%d"):format(folder, math.floor(system.gettime() * 1e3))
local file, copy = name .. ".h5", name .. "_copy.h5"

-- 8 layers of 8 experts, and small tensors between them, of `size` MiB in all.
local WIDTH = 1024
local layers = 8
local layer_list = {}
for i = 1, layers do
  layer_list[i] = mc.nn.GroupedLinear { num_gemms = 8, in_features = WIDTH,
    out_features = math.max(1, math.floor(size * 2 ^ 20 / (layers * 8 * WIDTH * 4))), bias = true }
end
local model = mc.nn.ModuleList(layer_list)
local bytes = 0
for _, p in ipairs(model:parameters()) do bytes = bytes + p:numel() * 4 end

local function best(fn)
  local least = math.huge
  for _ = 1, 3 do
    local start = system.monotime()
    fn()
    least = math.min(least, system.monotime() - start)
  end
  return bytes / least / 1e6
end

local function shell(...)
  assert(os.execute((...):format(select(2, ...))) == 0, "a shell command failed")
end

local function report(what, rate, peer)
  print(("checkpoint mascon %-34s %6.0f MB/s%s"):format(what, rate,
    peer and (" (%.2f of cp and sync)"):format(rate / peer) or ""))
end

local save = best(function() mc.save(file, { model = model:state_dict() }) end)
local cp = best(function() shell("cp '%s' '%s' && sync '%s'", file, copy, copy) end)
report(("save, %d tensors, %.0f MB"):format(#model:parameters(), bytes / 1e6), save, cp)
print(("checkpoint cp     %-34s %6.0f MB/s"):format("cp and sync of the same file", cp))
report("load, as tables of tensors", best(function() mc.load(file) end))
report("load_into, the same layout", best(function() mc.checkpoint.load_into(file, { model = model }) end))
for _, layer in model:each() do layer:set_layout { weight = "single", bias = "single" } end
report("load_into, the other layout", best(function() mc.checkpoint.load_into(file, { model = model }) end))
os.remove(file)
os.remove(copy)
