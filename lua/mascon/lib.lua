--- The C library: found, loaded and kept for the life of the process.
-- `lib.C` is the FFI namespace; `lib.check(status, op, ...)` turns a failed status into an error at
-- the user's line. package.loaded holds this module for ever, so that the library outlives every tensor.
local ffi = require "ffi"
local args = require "mascon.args"

local M = {}

local built, cdef = pcall(require, "mascon.cdef") -- made by the build
if not built then
  error("mascon is not built: run scripts/quickstart.sh, or cmake -B build && cmake --build build, and start with "
    .. "scripts/mascon; or install it", 0)
end
ffi.cdef(cdef)
ffi.cdef [[ int setenv(const char *name, const char *value, int overwrite); ]]

-- A training step is a few thousand short traces; at LuaJIT's limits (1000, 512 KiB) it throws all of its code away
-- again and again, which costs more than interpreting. Room for machine code is taken as it is needed.
jit.opt.start("maxtrace=8000", "maxmcode=32768")

-- One OpenMP pool whose threads sleep while they wait: spinning threads of two pools fight for cores.
-- Read by the OpenMP runtime when the library below is loaded; a value of the user's own stays.
ffi.C.setenv("OMP_WAIT_POLICY", "passive", 0)

local function load()
  local path, tried = package.searchpath("mascon.libmascon", package.cpath)
  if not path then
    error("libmascon.so is not on package.cpath; build it (cmake -B build && cmake --build build) and start "
      .. "with scripts/mascon, or install it" .. tried, 0)
  end
  return ffi.load(path), path
end

local C, path = load()
M.C, M.path = C, path
M.version = ffi.string(C.mc_version())

M.OK, M.EINVAL, M.ENOMEM = 0, 1, 2

--- Raises the thread's last C error at the user's line.
-- Operands that were freed (by mc.scope or t:free()) are named with the place that freed them.
local function raise_last(...)
  for i = 1, select("#", ...) do
    local t = select(i, ...)
    if type(t) == "table" and rawget(t, "freed") then
      args.raise(("operand %d was freed by %s and cannot be used"):format(i, t.freed))
    end
  end
  return args.raise(ffi.string(C.mc_last_error()))
end
M.raise_last = raise_last

--- Raises unless `status` is MC_OK; the tensors of the call may follow.
function M.check(status, ...)
  if status ~= 0 then
    M.last_status = status -- the kind of failure, for whoever turns it into an exit status
    raise_last(...)
  end
end

local function handle_of(x)
  if type(x) == "table" and rawget(x, "slot") ~= nil then
    return x.h
  end
  return x
end

--- What to do when the call C[name](out.h, operands ...) gave `status`: when memory is out, collect fully
-- and try once more; else raise. `out` and the operands are the call's arguments with tensors instead of handles.
function M.failed(status, name, out, ...)
  if status == M.ENOMEM then
    M.make_memory()
    local n, handles = select("#", ...), { ... }
    for i = 1, n do handles[i] = handle_of(handles[i]) end
    status = C[name](handle_of(out), unpack(handles, 1, n))
    if status == 0 then return end
  end
  raise_last(...)
end

return M
