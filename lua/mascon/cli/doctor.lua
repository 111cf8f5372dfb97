-- mascon doctor: what this installation consists of, whether it works, and what is missing and why.
--
-- One line a fact on standard output, each with its mark: `ok`, `none` (something that may be missing
-- is), or `PROBLEM`. Status 1 when there is a problem. Each check stands alone: one that fails does
-- not hide the ones after it.

local ffi = require("ffi")

local help = require("mascon.cli.help")

local M = {summary = "Check this installation and show what it found."}

function M.options(command) help.example(command, "mascon doctor") end

-- Debian's packages of the Lua libraries.
local LUA_LIBRARIES = {
  {module = "pl.compat", package = "lua-penlight"},
  {module = "argparse", package = "lua-argparse"},
  {module = "dkjson", package = "lua-dkjson"},
  {module = "lfs", package = "lua-filesystem"},
  {module = "term", package = "lua-term"},
  {module = "system", package = "lua-system"},
}

-- An error's first line, without the place in this file.
local function first_line(text)
  return (tostring(text):match("^[^\n]*"):gsub("^%S*%.lua:%d+: ", ""))
end

local function check_luajit()
  local gc64 = ffi.abi("gc64")
  local compiler = jit.status() and "on" or "off"
  local facts = ("%s, gc64 %s, compiler %s"):format(jit.version, gc64 and "yes" or "no", compiler)
  if not gc64 then
    return "PROBLEM", facts .. ": Lua values are limited to 2 GB; take LuaJIT 2.1 with GC64"
  end
  return "ok", facts
end

local function check_lua_libraries()
  local missing = {}
  for _, library in ipairs(LUA_LIBRARIES) do
    if not pcall(require, library.module) then missing[#missing + 1] = library.package end
  end
  if #missing > 0 then
    return "PROBLEM", "missing; run: apt-get install " .. table.concat(missing, " ")
  end
  return "ok", "penlight argparse dkjson lfs term system"
end

local function check_library()
  local lib = require("mascon.lib")
  return "ok", ("mascon %s, %s"):format(lib.version, lib.path)
end

local function check_cpu()
  local cpu = require("mascon.train.environment").cpu
  return "ok", ("kernels for %s, %s threads (MASCON_NUM_THREADS sets them)"):format(
    cpu("isa"), cpu("threads"))
end

local function check_gemm()
  local cpu = require("mascon.train.environment").cpu
  local provider, reason = cpu("gemm"), cpu("gemm_reason")
  if reason == "" then return "ok", provider end
  return "none", ("%s, since %s"):format(provider, reason)
end

local function check_cuda() return require("mascon.cli.doctor_cuda").device() end
local function check_cuda_test() return require("mascon.cli.doctor_cuda").self_test() end

-- y = x w^T on the fast path against sums in Lua, sizes that are no multiple of a tile. The integers are
-- small enough for every sum to be exact in float32.
local function check_arithmetic()
  local mc = require("mascon")
  local rows, inner, columns = 37, 29, 41
  local a, b = {}, {}
  for i = 1, rows do
    a[i] = {}
    for k = 1, inner do a[i][k] = (i * 7 + k * 3) % 11 - 5 end
  end
  for k = 1, inner do
    b[k] = {}
    for j = 1, columns do b[k][j] = (k * 5 + j * 2) % 13 - 6 end
  end
  local product = mc.matmul(mc.tensor(a), mc.tensor(b)):totable()
  for i = 1, rows do
    for j = 1, columns do
      local sum = 0
      for k = 1, inner do sum = sum + a[i][k] * b[k][j] end
      if product[i][j] ~= sum then
        return "PROBLEM", ("matmul: element [%d, %d] is %s, not %s"):format(
          i, j, product[i][j], sum)
      end
    end
  end
  return "ok", ("a product of %d x %d x %d is exact"):format(rows, inner, columns)
end

-- A file written and read back.
local function check_files()
  local mc = require("mascon")
  local path = os.tmpname()
  local ok, why = pcall(function()
    local tensor = mc.arange(1000)
    mc.save(path, {tensor = tensor})
    if not mc.equal(mc.load(path).tensor, tensor) then error("other values came back", 0) end
  end)
  os.remove(path)
  if not ok then return "PROBLEM", first_line(why) end
  return "ok", "a checkpoint written and read back is the same"
end

local checks = {
  {"LuaJIT", check_luajit},
  {"Lua libraries", check_lua_libraries},
  {"library", check_library},
}
-- What can only be checked once the library is there.
local library_checks = {
  {"CPU", check_cpu},
  {"matrix products", check_gemm},
  {"HDF5 files", check_files},
  {"CUDA", check_cuda},
  {"CUDA self-test", check_cuda_test},
  {"arithmetic", check_arithmetic},
}

-- Runs the checks and prints a line for each; returns the number of problems.
local function run_all(list)
  local problems = 0
  for _, check in ipairs(list) do
    local ran, mark, text = pcall(check[2])
    if not ran then mark, text = "PROBLEM", first_line(mark) end
    if mark == "PROBLEM" then problems = problems + 1 end
    print(("%-8s %-16s %s"):format(mark, check[1], text))
  end
  return problems
end

--- Runs every check and prints one line for each.
-- @treturn int 0, or 1 when a check found a problem
function M.run()
  local problems = run_all(checks)
  if pcall(require, "mascon") then problems = problems + run_all(library_checks) end
  print(problems == 0 and "no problem found" or ("%d problem(s) found"):format(problems))
  return problems == 0 and 0 or 1
end

return M
