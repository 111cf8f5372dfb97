--- Facts about the running program: what a log's first line and `mascon doctor` show.
local ffi = require "ffi"
local lib = require "mascon.lib"

local M = {}

--- One of the CPU's facts, see mc_cpu_info in mascon.h ("isa", "threads", "gemm", "gemm_reason").
-- @treturn string "unknown" where the library has no answer
function M.cpu(key)
  local value = lib.C.mc_cpu_info(key)
  return value ~= nil and ffi.string(value) or "unknown"
end

--- What decides the bits of a run: versions, instruction set, threads, matrix products.
-- @treturn {[string]=string|number}
function M.facts()
  return {
    mascon = lib.version,
    luajit = jit.version,
    isa = M.cpu("isa"),
    threads = tonumber(M.cpu("threads")),
    gemm = M.cpu("gemm"),
  }
end

return M
