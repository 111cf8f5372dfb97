--- cuda_checkpoint.lua: a model's parameters between a GPU and a file: GB/s of saves, and of loads from the page cache.
--
--   scripts/mascon tests/bench/cuda_checkpoint.lua [folder] [model] [device]
--
-- The parameters of moe_lm_model.lua, bfloat16: 2.6 GB for 1.3b. A save ends when its bytes are on the disk; a load
-- when they are on the device, and goes into the model that is there, in the layout of the file and across. Medians of
-- 5 rounds, one more before them not counted; the folder (default $TMPDIR, else /tmp) needs room for three files.
-- Peers: cuda_checkpoint_torch.py, safetensors and torch.save on as many tensors of the same sizes.
local system = require "system"
local mc = require "mascon"

local here = arg[0]:match "^.*/" or "./"
local lm = dofile(here .. "../../scripts/examples/moe_lm_model.lua")
local folder, size, device = arg[1] or os.getenv "TMPDIR" or "/tmp", arg[2] or "1.3b", arg[3] or "cuda"
local ROUNDS = 5
mc.set_default_device(device)
io.stdout:setvbuf "line"

local function wait()
  if device:match "^cuda" then mc.cuda.synchronize(device) end
  return system.monotime()
end

local function median(fn)
  local list = {}
  for i = 0, ROUNDS do
    collectgarbage()
    local start = wait()
    fn()
    list[i] = wait() - start
  end
  table.sort(list) -- from 1 on: round 0 made files and buffers
  return list[math.ceil(ROUNDS / 2)]
end

local model = lm.Model(lm.sizes[size])
local bytes = 0
for _, p in ipairs(model:parameters()) do bytes = bytes + p:numel() * p:element_size() end
local function line(what, seconds)
  print(("cuda_checkpoint %-46s %7.2f GB/s  %7.3f s"):format(what, bytes / seconds / 1e9, seconds))
end
local function set_layout(layout)
  for _, block in model.blocks:each() do block.moe:set_layout { weight = layout } end
end

print(("cuda_checkpoint: %.2f GB of %s in %s"):format(bytes / 1e9, device, folder))
local path = ("%s/mascon-bench-%d.h5"):format(folder, math.floor(system.gettime() * 1e3))
local function save() mc.save(path, { model = model:state_dict() }) end
local function load() mc.checkpoint.load_into(path, { model = model }) end
for _, layout in ipairs { "single", "per_expert" } do
  set_layout(layout)
  line("mascon save, durable, " .. layout, median(save))
  line("mascon load, same layout", median(load))
  set_layout(layout == "single" and "per_expert" or "single")
  line("mascon load, across layouts", median(load))
end
set_layout "single"
save()
local begun = median(function() mc.save(path, { model = model:state_dict() }, { async = true }):wait() end)
line("mascon save, async and waited for", begun)
local start = wait()
local handle = mc.save(path, { model = model:state_dict() }, { async = true })
line("  until training goes on", wait() - start)
handle:wait()
os.remove(path)

if os.execute "python3 -c 'import torch' 2>/dev/null" == 0 then
  local shapes = {}
  for name, p in model:named_parameters() do
    shapes[#shapes + 1] = ("%s %s %s"):format(name, p.dtype, table.concat(p:shape(), ","))
  end
  local list = path .. ".txt"
  local file = assert(io.open(list, "w"))
  file:write(table.concat(shapes, "\n"))
  file:close()
  model = nil
  mc.collect_garbage()
  os.execute(("python3 '%scuda_checkpoint_torch.py' '%s' '%s'"):format(here, list, folder))
  os.remove(list)
else
  print "cuda_checkpoint torch: peer not installed"
end
